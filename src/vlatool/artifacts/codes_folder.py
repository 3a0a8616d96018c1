"""A folder of codes: which layout it has, and the codes of one episode after the other.

Legend: N pictures of an episode, K codes of a picture. Source: formats/codes 1, 3, 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.artifacts.codes import (
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

_MAX_FILE_BYTES = 2**16  # of one picture
_MAX_PACKED_BYTES = 2**28
_READ_AT_ONCE = 16
_HINT = "encode the pictures of this episode again, or copy their codes again"


@dataclass(frozen=True)
class CodesFolder:
    """A folder of codes; everything is read when it is asked for.

    Attributes:
        path: The folder.
        layout: How codes lie there.
        manifest: What they are; the published values where nothing says it.
        has_manifest: Whether anything does.
    """

    path: Path
    layout: CodesLayout
    manifest: CodesManifest
    has_manifest: bool

    @classmethod
    def find(cls, path: Path) -> "CodesFolder | None":
        """The codes in a folder; None where none are.

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
        """The codes in a folder; DataError where none are, or where they are not complete."""
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
                f"{path}: the command that writes these codes runs, or was interrupted",
                hint="let it end, or run it again; it goes on where it was",
                code="data.incomplete_codes",
                details={"path": str(path)},
            )
        return codes

    @property
    def is_unfinished(self) -> bool:
        """Whether a run that writes them has begun and not ended."""
        record = None if self.has_manifest else read_record(self.path)
        return record is not None

    def path_of(self, episode: str) -> Path:
        """Where the codes of an episode are: a file, or a folder."""
        return self.path / (episode + (PACKED_SUFFIX if self.layout == "packed" else ""))

    def episodes(self) -> list[str]:
        """Names of the episodes that have codes, sorted; hidden ones are passed over."""
        if self.layout == "packed":
            names = {path.stem for path in self.path.glob(f"*{PACKED_SUFFIX}")}
        else:
            names = {path.parent.name for path in self.path.glob(f"*/*{JSON_SUFFIX}")}
        return sorted(name for name in names if not name.startswith("."))

    def stems(self, episode: str) -> list[str]:
        """Names of the pictures of an episode in separate files."""
        return sorted(path.stem for path in self.path_of(episode).glob(f"*{JSON_SUFFIX}"))

    def read(self, episode: str, stems: Iterable[str] | None = None) -> EpisodeCodes:
        """The codes of the pictures with these names, or of all that are there.

        Raises:
            DataError: Codes are missing, too few, out of range or no whole numbers; names the
                picture. Or packed ones were made by another tokenizer than the manifest says.
        """
        if self.layout == "packed":
            codes = self._read_packed(episode)
            return codes if stems is None else self._select(codes, sorted(set(stems)))
        stored = self.stems(episode)
        names = stored if stems is None else sorted(set(stems))
        if not stored:
            raise self._missing_error(episode, "any picture")
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
        """The codes of a picture, uint16 [K]."""
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
            raise self._missing_error(episode, "any picture") from None
        except KeyError as error:
            raise self._broken_error(path, episode, "", f"lacks the array {error}") from None
        except (ValueError, OSError) as error:
            raise self._broken_error(path, episode, "", str(error)) from None
        return EpisodeCodes(episode, stems, codes)

    def _check_codes(self, path: Path, episode: str, stems: Sequence[str], codes: Array) -> Array:
        """The codes of an archive, uint16 [N, K]; the first picture that is wrong is told."""
        expected = (len(stems), self.manifest.codes_per_picture)
        if (
            codes.shape != expected
            or codes.dtype.kind not in "iu"
            or sorted(set(stems)) != [*stems]
        ):
            actual = f"{codes.dtype} {list(codes.shape)} of {len(stems)} pictures"
            raise self._broken_error(
                path, episode, "", f"codes are {actual}, not {list(expected)}, sorted"
            )
        for stem in stems:
            if "/" in stem or not is_file_name(f"{stem}{JSON_SUFFIX}"):
                raise self._broken_error(
                    path, episode, "", f"{stem[:100]!r} is no name of a picture"
                )
        wrong = np.flatnonzero(((codes < 0) | (codes >= self.manifest.codebook_size)).any(axis=1))
        if len(wrong):
            reason = f"a code outside 0 to {self.manifest.codebook_size - 1}"
            raise self._broken_error(path, episode, stems[int(wrong[0])], reason)
        return codes.astype(np.uint16)

    def _check_tokenizer(self, path: Path, digest: str) -> None:
        if self.has_manifest and digest != self.manifest.tokenizer_digest:
            raise DataError(
                f"{path}: codes of another tokenizer ({digest or 'unknown'}) than "
                f"{MANIFEST_NAME} says ({self.manifest.tokenizer_digest or 'unknown'})",
                hint="codes of different tokenizers do not mix: encode the pictures again",
                code="data.other_tokenizer",
                details={"path": str(path)},
            )

    def _check_all_present(self, episode: str, stems: Sequence[str]) -> None:
        if stems:
            more = f" and {len(stems) - 1} more pictures" if len(stems) > 1 else ""
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
    """By what lies there: published folders have no manifest, unfinished ones not yet."""
    if path.name == PACKED_NAME and (any(path.glob(f"*{PACKED_SUFFIX}")) or read_record(path)):
        return "packed"
    if path.name == JSON_NAME and (any(path.glob(f"*/*{JSON_SUFFIX}")) or read_record(path)):
        return "json"
    return None


def is_codes(location: Path) -> bool:
    """Whether a folder of codes is here."""
    try:
        return CodesFolder.find(location) is not None
    except DataError:
        return True  # a broken manifest of one


def select_codes(tree: Path, named: Path | None = None) -> CodesFolder:
    """The codes to use with a folder of windows: packed ones where both layouts are there.

    Args:
        tree: The folder.
        named: Where they are instead.

    Raises:
        UsageError: Both layouts are there and were made in different ways.
        DataError: There are none, they are not complete, or they belong to earlier pictures.
    """
    folders = [tree / name for name in (PACKED_NAME, JSON_NAME)]
    present = [folder for folder in folders if is_codes(folder)] if named is None else [named]
    if not present:
        raise DataError(
            f"{tree}: has no codes: neither {PACKED_NAME}/ nor {JSON_NAME}/ is there",
            hint="encode its pictures first, or name the folder with --tokens",
            code="data.no_codes",
            details={"path": str(tree)},
        )
    opened = [CodesFolder.open(folder) for folder in present]
    for other in opened[1:]:
        if opened[0].manifest.identity() != other.manifest.identity():
            raise UsageError(
                f"{tree}: {PACKED_NAME}/ and {JSON_NAME}/ are codes of different tokenizers",
                hint=f"choose one with --tokens {opened[0].path}",
                code="usage.two_codes",
            )
    _check_current(opened[0])
    return opened[0]


def _check_current(codes: CodesFolder) -> None:
    """Refuses codes of pictures that were made anew since."""
    record, above = read_record(codes.path), read_record(codes.path.parent)
    if record and above and record.parent and record.parent != above.fingerprint:
        raise DataError(
            f"{codes.path}: codes of earlier pictures; {codes.path.parent} was made anew since",
            hint="encode the pictures again with --overwrite",
            code="data.stale_codes",
            details={"path": str(codes.path)},
        )
