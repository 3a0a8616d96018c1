"""Folders of codes: detection of the layout, reading episode by episode.

Legend: N images of an episode, K codes of an image. Source: formats/codes 1, 3, 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.artifacts.codes.format import (
    JSON_NAME,
    JSON_SUFFIX,
    MANIFEST_NAME,
    PACKED_NAME,
    PACKED_SUFFIX,
    CodesLayout,
    CodesManifest,
    EpisodeCodes,
    parse_codes,
    read_codes_manifest,
)
from vlatool.artifacts.npz_bytes import read_arrays
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.jobs.record import read_record
from vlatool.storage.background import in_parallel
from vlatool.storage.documents import DocumentError, parse_json, read_document
from vlatool.storage.uri import is_file_name, is_remote

_MAX_FILE_BYTES = 2**16  # of one image
_MAX_PACKED_BYTES = 2**28
_READ_AT_ONCE = 16
_HINT = "encode the images of this episode again, or copy their codes again"


@dataclass(frozen=True)
class CodesFolder:
    """Folder of codes, read lazily.

    Attributes:
        path: The folder.
        layout: Layout of the codes.
        manifest: The manifest; the published values if the folder has none.
        has_manifest: True if the folder has a manifest.
    """

    path: Path
    layout: CodesLayout
    manifest: CodesManifest
    has_manifest: bool

    @classmethod
    def find(cls, path: Path) -> "CodesFolder | None":
        """The codes in a folder; None if there are none.

        Raises:
            DataError: The manifest is broken.
        """
        manifest = read_codes_manifest(path)
        if manifest is not None:
            return cls(path, manifest.layout, manifest, has_manifest=True)
        layout = _layout_of(path)
        return layout and cls(path, layout, CodesManifest(layout=layout), has_manifest=False)

    @classmethod
    def open(cls, path: Path) -> "CodesFolder":
        """The codes in a folder; raises DataError if there are none or they are incomplete."""
        codes = cls.find(path)
        if codes is None:
            raise DataError(
                f"{path}: no codes here",
                hint=f"give a folder such as A/{PACKED_NAME} or A/{JSON_NAME}",
                code="data.no_codes",
                details={"path": str(path)},
            )
        if codes.is_unfinished:
            raise DataError(
                f"{path}: the command that writes these codes is running, or was interrupted",
                hint="wait for it, or run it again to resume",
                code="data.incomplete_codes",
                details={"path": str(path)},
            )
        return codes

    @property
    def is_unfinished(self) -> bool:
        """True if a run that writes these codes has started and not finished."""
        record = None if self.has_manifest else read_record(self.path)
        return record is not None

    def path_of(self, episode: str) -> Path:
        """Path of the codes of an episode: a file (packed) or a folder (json)."""
        return self.path / (episode + (PACKED_SUFFIX if self.layout == "packed" else ""))

    def episodes(self) -> list[str]:
        """Names of the episodes that have codes, sorted; hidden ones are skipped."""
        if self.layout == "packed":
            names = {path.stem for path in self.path.glob(f"*{PACKED_SUFFIX}")}
        else:
            names = {path.parent.name for path in self.path.glob(f"*/*{JSON_SUFFIX}")}
        return sorted(name for name in names if not name.startswith("."))

    def stems(self, episode: str) -> list[str]:
        """Stems of the images of an episode in the layout `json`."""
        return sorted(path.stem for path in self.path_of(episode).glob(f"*{JSON_SUFFIX}"))

    def read(self, episode: str, stems: Iterable[str] | None = None) -> EpisodeCodes:
        """Codes of the images with these stems, or of all images of the episode.

        Raises:
            DataError: Codes are missing, too few, out of range or no integers (the image is
                named), or packed codes have another tokenizer than the manifest.
        """
        if self.layout == "packed":
            codes = self._read_packed(episode)
            return codes if stems is None else self._select(codes, sorted(set(stems)))
        stored = self.stems(episode)
        names = stored if stems is None else sorted(set(stems))
        if not stored:
            raise self._missing_error(episode, "any image")
        self._check_all_present(episode, sorted({*names}.difference(stored)))
        read = partial(self._read_file, episode)
        is_far = is_remote(self.path)
        rows = in_parallel(read, names, _READ_AT_ONCE) if is_far else map(read, names)
        return EpisodeCodes(episode, tuple(names), np.stack(list(rows)))

    def _select(self, episode_codes: EpisodeCodes, stems: Sequence[str]) -> EpisodeCodes:
        self._check_all_present(
            episode_codes.episode, [stem for stem in stems if stem not in episode_codes.row_of]
        )
        rows = episode_codes.codes[[episode_codes.row_of[stem] for stem in stems]]
        return EpisodeCodes(episode_codes.episode, tuple(stems), rows)

    def _read_file(self, episode: str, stem: str) -> Array:
        """Codes of an image, uint16 [K]."""
        path = self.path_of(episode) / f"{stem}{JSON_SUFFIX}"
        try:
            value = parse_json(read_document(path, max_bytes=_MAX_FILE_BYTES))
            return parse_codes(value, self.manifest.codes_per_picture, self.manifest.codebook_size)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing_error(episode, stem) from None
        except (DocumentError, ValueError, OSError) as error:
            raise self._broken_error(path, episode, stem, str(error)) from None

    def _read_packed(self, episode: str) -> EpisodeCodes:
        path = self.path_of(episode)
        try:
            if path.stat().st_size > _MAX_PACKED_BYTES:
                raise ValueError(f"more than {_MAX_PACKED_BYTES} bytes")
            arrays = read_arrays(path.read_bytes(), ("codes", "stems", "tokenizer_digest"))
            stems = tuple(str(stem) for stem in arrays["stems"].reshape(-1))
            self._check_tokenizer(path, str(arrays["tokenizer_digest"]))
            codes = self._check_codes(path, episode, stems, arrays["codes"])
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing_error(episode, "any image") from None
        except KeyError as error:
            raise self._broken_error(path, episode, "", f"lacks the array {error}") from None
        except (ValueError, OSError) as error:
            raise self._broken_error(path, episode, "", str(error)) from None
        return EpisodeCodes(episode, stems, codes)

    def _check_codes(self, path: Path, episode: str, stems: Sequence[str], codes: Array) -> Array:
        """Codes of an archive as uint16 [N, K].

        Raises:
            DataError: Shape, stems or codes are invalid; names the first wrong image.
        """
        expected = (len(stems), self.manifest.codes_per_picture)
        if (
            codes.shape != expected
            or codes.dtype.kind not in "iu"
            or sorted(set(stems)) != [*stems]
        ):
            actual = f"{codes.dtype} {list(codes.shape)} of {len(stems)} images"
            raise self._broken_error(
                path, episode, "", f"codes are {actual}, not {list(expected)}, sorted"
            )
        for stem in stems:
            if "/" in stem or not is_file_name(f"{stem}{JSON_SUFFIX}"):
                raise self._broken_error(
                    path, episode, "", f"{stem[:100]!r} is not the name of an image"
                )
        wrong = np.flatnonzero(((codes < 0) | (codes >= self.manifest.codebook_size)).any(axis=1))
        if len(wrong):
            reason = f"a code outside 0 to {self.manifest.codebook_size - 1}"
            raise self._broken_error(path, episode, stems[int(wrong[0])], reason)
        return codes.astype(np.uint16)

    def _check_tokenizer(self, path: Path, digest: str) -> None:
        if self.has_manifest and digest != self.manifest.tokenizer_digest:
            raise DataError(
                f"{path}: codes of another tokenizer ({digest or 'unknown'}) than that of "
                f"{MANIFEST_NAME} ({self.manifest.tokenizer_digest or 'unknown'})",
                hint="codes of different tokenizers cannot be mixed: encode the images again",
                code="data.other_tokenizer",
                details={"path": str(path)},
            )

    def _check_all_present(self, episode: str, stems: Sequence[str]) -> None:
        if stems:
            more = f" and {len(stems) - 1} more images" if len(stems) > 1 else ""
            raise self._missing_error(episode, f"{stems[0]}{more}", stems)

    def _missing_error(self, episode: str, label: str, stems: Sequence[str] = ()) -> DataError:
        path = self.path_of(episode)
        return DataError(
            f"{path}: no codes of {label}",
            hint=_HINT,
            code="data.missing_codes",
            details={"path": str(path), "episode": episode, "pictures": list(stems)},
        )

    def _broken_error(self, path: Path, episode: str, stem: str, reason: str) -> DataError:
        prefix = f"{stem}: " if stem and path.stem != stem else ""
        return DataError(
            f"{path}: {prefix}{reason}",
            hint=_HINT,
            code="data.broken_codes",
            details={"path": str(path), "episode": episode, "picture": stem},
        )


def _layout_of(path: Path) -> CodesLayout | None:
    """Layout by the files: published folders have no manifest, unfinished ones not yet."""
    if path.name == PACKED_NAME and (any(path.glob(f"*{PACKED_SUFFIX}")) or read_record(path)):
        return "packed"
    if path.name == JSON_NAME and (any(path.glob(f"*/*{JSON_SUFFIX}")) or read_record(path)):
        return "json"
    return None


def is_codes(location: Path) -> bool:
    """True if a location is a folder of codes."""
    try:
        return CodesFolder.find(location) is not None
    except DataError:
        return True  # its manifest is broken


def select_codes(tree: Path, named: Path | None = None) -> CodesFolder:
    """Codes for a folder of windows; packed ones if both layouts exist.

    Args:
        tree: The folder of windows.
        named: Folder of the codes; None: the one in `tree`.

    Raises:
        UsageError: Both layouts exist, with codes of different tokenizers.
        DataError: There are no codes, they are incomplete, or they belong to earlier images.
    """
    folders = [tree / name for name in (PACKED_NAME, JSON_NAME)]
    present = [folder for folder in folders if is_codes(folder)] if named is None else [named]
    if not present:
        raise DataError(
            f"{tree}: has no codes: neither {PACKED_NAME}/ nor {JSON_NAME}/ exists",
            hint="encode its images first, or pass the folder as --tokens",
            code="data.no_codes",
            details={"path": str(tree)},
        )
    opened = [CodesFolder.open(folder) for folder in present]
    for other in opened[1:]:
        if opened[0].manifest.identity() != other.manifest.identity():
            raise UsageError(
                f"{tree}: {PACKED_NAME}/ and {JSON_NAME}/ are codes of different tokenizers",
                hint=f"select one with --tokens {opened[0].path}",
                code="usage.two_codes",
            )
    _check_current(opened[0])
    return opened[0]


def _check_current(codes: CodesFolder) -> None:
    """Raises DataError if the images were written again after the codes."""
    record, above = read_record(codes.path), read_record(codes.path.parent)
    if record and above and record.parent and record.parent != above.fingerprint:
        raise DataError(
            f"{codes.path}: codes of earlier images; {codes.path.parent} was written again since",
            hint="encode the images again with --overwrite",
            code="data.stale_codes",
            details={"path": str(codes.path)},
        )
