"""Codes of images, 32 integers per image, as small JSON files or packed by episode.

Both layouts are separate outputs inside the folder that holds the images: the published
`TiToken/EPISODE/STEM.json`, one nested list per image, and `tokens/EPISODE.npz`, one array per
episode. STEM is the name of the image without its suffix.

Legend: N images of an episode, K codes of an image.
Source: reference/future-vla 3; formats/codes 1, 3, 4.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import Reporter, counted
from vlatool.jobs.files import FileEntry, digests_below, folder_entry
from vlatool.jobs.job import InputState, input_state
from vlatool.jobs.ownership import contents_record
from vlatool.media.npz import read_arrays, write_arrays
from vlatool.storage.atomic import atomic_folder, write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.documents import DocumentError, parse_json, read_document
from vlatool.storage.manifest import Count, ManifestType, Number
from vlatool.storage.uri import can_list, is_file_name, is_remote
from vlatool.transforms.neighbors import spread

CodesLayout = Literal["json", "packed"]

JSON_NAME = "TiToken"
PACKED_NAME = "tokens"
MANIFEST_NAME = "manifest.json"
IMAGES_NAME = "images"  # folder of the images, beside the folders of their codes
CHECKS_NAME = "checks"  # images side by side with their reconstructions
CODES_PER_IMAGE = 32
CODEBOOK_SIZE = 4096
# Patterns of all files of each layout.
OWNED_FILES: Mapping[CodesLayout, tuple[str, ...]] = {
    "json": ("*/*.json", MANIFEST_NAME),
    "packed": ("*.npz", MANIFEST_NAME),
}

PACKED_SUFFIX = ".npz"
JSON_SUFFIX = ".json"

_MAX_FILE_BYTES = 2**16  # of one image
_MAX_PACKED_BYTES = 2**28
_READ_AT_ONCE = 16
_HINT = "encode the images of this episode again, or copy their codes again"


@dataclass(frozen=True)
class CodesManifest:
    """Manifest of a folder of codes; published folders have none."""

    # number of codes per image
    codes_per_picture: Annotated[int, Field(gt=0, strict=True)] = CODES_PER_IMAGE
    # size of the codebook; codes are below it
    codebook_size: Annotated[int, Field(gt=0, le=2**16, strict=True)] = CODEBOOK_SIZE
    tokenizer: str = ""  # name of the visual tokenizer; may be empty
    tokenizer_digest: str = ""  # digest of its weights; may be empty
    precision: str = ""  # precision of the computation, such as `fp32`; may be empty
    layout: CodesLayout = "json"
    episodes: Count = 0  # number of episodes with codes
    pictures: Count = 0  # number of images with codes
    digest: str = ""  # digest of all codes and stems, equal for both layouts
    # share of codes that are the same with fp32, measured on a sample; 1 for fp32 itself
    agreement: Number = 1.0
    # map from episode to the digest of its codes; empty in published folders
    episode_digests: Mapping[str, str] = field(default_factory=dict[str, str])

    def of_episodes(self, digests: Mapping[str, str], images: int) -> Self:
        """The manifest of episodes with these digests and, in all, this number of images."""
        return replace(
            self,
            episodes=len(digests),
            pictures=images,
            digest=combined_digest(digests),
            episode_digests=dict(sorted(digests.items())),
        )

    def save(self, folder: Path) -> None:
        """Writes the manifest atomically; it marks the folder as complete."""
        MANIFEST.write(folder, asdict(self))

    def encoding_info(self) -> dict[str, Any]:
        """Values that all codes of one tokenizer share."""
        return {key: getattr(self, key) for key in _ENCODING_KEYS}

    def identity(self) -> dict[str, Any]:
        """Values that codes must share to be mixed; the name counts only without a digest."""
        info = self.encoding_info()
        if self.tokenizer_digest:
            del info["tokenizer"]
        return info


MANIFEST = ManifestType(
    MANIFEST_NAME,
    "vlatool.codes",
    1,
    CodesManifest,
    hint="copy the folder again, or write it again",
    optional=("agreement", "episode_digests"),
)
_ENCODING_KEYS = (
    "codes_per_picture",
    "codebook_size",
    "tokenizer",
    "tokenizer_digest",
    "precision",
)


@dataclass(frozen=True)
class EpisodeCodes:
    episode: str  # name of the episode and of the folder of its images
    stems: tuple[str, ...]  # names of N images without suffix, sorted
    codes: Array  # uint16 [N, K]

    @classmethod
    def of(cls, episode: str, codes: Mapping[str, Sequence[int] | Array]) -> "EpisodeCodes":
        """Codes of an episode from the codes of each image by its stem."""
        stems = tuple(sorted(codes))
        return cls(episode, stems, np.array([codes[stem] for stem in stems], np.uint16))

    @property
    def digest(self) -> str:
        """SHA-256 of stems and codes, equal for both layouts."""
        digest = hashlib.sha256()
        for stem, row in zip(self.stems, self.codes.astype("<u2"), strict=True):
            digest.update(f"{stem} {row.tobytes().hex()}\n".encode())
        return digest.hexdigest()

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Map from stem to row of `codes`."""
        return {stem: row for row, stem in enumerate(self.stems)}


def combined_digest(digests: Mapping[str, str]) -> str:
    """Digest of a folder from the digests of its episodes by name."""
    combined = hashlib.sha256()
    for episode, digest in sorted(digests.items()):
        combined.update(f"{episode} {digest}\n".encode())
    return combined.hexdigest()


def write_codes(
    folder: Path, layout: CodesLayout, codes: EpisodeCodes, tokenizer_digest: str = ""
) -> FileEntry:
    """Writes the codes of one episode atomically; returns the entry of the file or folder."""
    if layout == "packed":
        data = write_arrays(
            {
                "codes": codes.codes.astype("<u2"),
                "stems": np.array(codes.stems, np.str_),
                "tokenizer_digest": np.array(tokenizer_digest, np.str_),
            }
        )
        name = f"{codes.episode}{PACKED_SUFFIX}"
        write_bytes(folder / name, data)
        return FileEntry(name, len(data), hashlib.sha256(data).hexdigest(), len(codes.stems))
    with atomic_folder(folder / codes.episode) as partial:
        for stem, row in zip(codes.stems, codes.codes.tolist(), strict=True):
            (partial / f"{stem}{JSON_SUFFIX}").write_text(json.dumps([[code] for code in row]))
        files = digests_below(partial)
    return folder_entry(codes.episode, files)


def check_image_name(episode: str, stem: str) -> str:
    """Path of an image side by side with its reconstruction, relative to the folder."""
    return f"{CHECKS_NAME}/{episode}/{stem}.png"


def check_images(folder: Path) -> list[str]:
    """Names of all images of `check_image_name` in a folder of codes, sorted."""
    root = folder / CHECKS_NAME
    if not can_list(root) or not root.is_dir():
        return []
    return sorted(check_image_name(path.parent.name, path.stem) for path in root.glob("*/*.png"))


def write_check_image(folder: Path, name: str, png: bytes) -> FileEntry:
    """Writes an image of `check_image_name` atomically."""
    write_bytes(folder / name, png)
    return FileEntry(name, len(png), hashlib.sha256(png).hexdigest())


def parse_codes(value: Any, count: int = CODES_PER_IMAGE, size: int = CODEBOOK_SIZE) -> Array:
    """Codes of an image, uint16 [K], from a flat list or a list of one-element lists."""
    rows: list[Any] = value if isinstance(value, list) else []
    if len(rows) != count:
        raise ValueError(f"expected a list of {counted(count, 'code')}, found {len(rows)}")
    codes: list[int] = []
    for row in rows:
        code = row[0] if isinstance(row, list) and len(row) == 1 else row
        if type(code) is not int:
            raise ValueError(f"{str(code)[:40]!r} is not an integer")
        if not 0 <= code < size:
            raise ValueError(f"the code {code} is not in 0 to {size - 1}")
        codes.append(code)
    return np.array(codes, np.uint16)


@dataclass(frozen=True)
class CodesFolder:
    """Folder of codes, read lazily."""

    path: Path
    layout: CodesLayout
    manifest: CodesManifest  # the manifest; the published values if the folder has none
    has_manifest: bool  # True if the folder has a manifest

    @classmethod
    def find(cls, path: Path) -> "CodesFolder | None":
        """The codes in a folder; None if there are none."""
        if path.name in (JSON_NAME, PACKED_NAME) or MANIFEST.is_in(path):
            manifest = MANIFEST.read(path)
            if manifest is not None:
                return cls(path, manifest.layout, manifest, has_manifest=True)
        layout = _layout_of(path)
        if layout is None:
            return None
        return cls(path, layout, CodesManifest(layout=layout), has_manifest=False)

    @classmethod
    def open(cls, path: Path) -> "CodesFolder":
        """The codes in a folder; raises DataError if there are none or they are incomplete."""
        codes = cls.find(path)
        if codes is None:
            raise DataError.at(
                path,
                "no codes here",
                hint=f"give a folder such as A/{PACKED_NAME} or A/{JSON_NAME}",
                code="data.missing",
            )
        if codes.is_unfinished:
            raise DataError.at(
                path,
                "the command that writes these codes is running, or was interrupted",
                hint="wait for it, or run it again to resume",
                code="data.incomplete",
            )
        return codes

    @property
    def is_unfinished(self) -> bool:
        """True if a run that writes these codes has started and not finished."""
        return not self.has_manifest and contents_record(self.path) is not None

    def path_of(self, episode: str) -> Path:
        """Path of the codes of an episode: a file (packed) or a folder (json)."""
        if self.layout == "packed":
            return self.path / f"{episode}{PACKED_SUFFIX}"
        return self.path / episode

    def state(self, episode: str) -> InputState:
        """Current state of the codes of an episode: their digest, equal for both layouts."""
        digest = self.manifest.episode_digests.get(episode)
        return InputState(digest, digest) if digest else input_state([self.path_of(episode)])

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
        """Codes of the images with these stems, or of all images of the episode."""
        names = None if stems is None else sorted(set(stems))
        if self.layout == "packed":
            codes = self._read_packed(episode)
        else:
            codes = self._read_files(episode, names)
        if self.manifest.episode_digests:
            self._check_digest(codes)
        if names is None:
            return codes
        self._check_all_present(episode, [stem for stem in names if stem not in codes.row_of])
        rows = codes.codes[[codes.row_of[stem] for stem in names]]
        return EpisodeCodes(episode, tuple(names), rows)

    def _read_files(self, episode: str, stems: Sequence[str] | None) -> EpisodeCodes:
        """Codes of these images or, to compare them with the manifest, of all images."""
        stored = self.stems(episode)
        if not stored:
            raise self._missing_error(episode, "any image")
        names: Sequence[str] = stored
        if stems is not None:
            self._check_all_present(episode, sorted({*stems}.difference(stored)))
            if not self.manifest.episode_digests:
                names = stems
        read = partial(self.read_image, episode)
        if is_remote(self.path):
            rows = list(in_parallel(read, names, _READ_AT_ONCE))
        else:
            rows = [read(name) for name in names]
        return EpisodeCodes(episode, tuple(names), np.stack(rows))

    def read_image(self, episode: str, stem: str) -> Array:
        """Codes of an image in the layout `json`, uint16 [K]; not compared with the manifest."""
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
            arrays = read_arrays(read_file(path), ("codes", "stems", "tokenizer_digest"))
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
        """Codes of an archive as uint16 [N, K]."""
        expected = (len(stems), self.manifest.codes_per_picture)
        is_sorted = sorted(set(stems)) == list(stems)
        if codes.shape != expected or codes.dtype.kind not in "iu" or not is_sorted:
            actual = f"{codes.dtype} {list(codes.shape)} of {counted(len(stems), 'image')}"
            reason = f"codes are {actual}, not {list(expected)}, sorted"
            raise self._broken_error(path, episode, "", reason)
        for stem in stems:
            if "/" in stem or not is_file_name(f"{stem}{JSON_SUFFIX}"):
                reason = f"{stem[:100]!r} is not the name of an image"
                raise self._broken_error(path, episode, "", reason)
        wrong = np.flatnonzero(((codes < 0) | (codes >= self.manifest.codebook_size)).any(axis=1))
        if len(wrong):
            reason = f"a code outside 0 to {self.manifest.codebook_size - 1}"
            raise self._broken_error(path, episode, stems[int(wrong[0])], reason)
        return codes.astype(np.uint16)

    def _check_tokenizer(self, path: Path, digest: str) -> None:
        if self.has_manifest and digest != self.manifest.tokenizer_digest:
            raise DataError.at(
                path,
                f"has codes of tokenizer {digest[:12] or 'unknown'}, but "
                f"{MANIFEST_NAME} names {self.manifest.tokenizer_digest[:12] or 'unknown'}",
                hint="codes of different tokenizers cannot be mixed: encode the images again",
                code="data.mismatch",
                finding="other_tokenizer",
            )

    def _check_digest(self, codes: EpisodeCodes) -> None:
        digest = self.manifest.episode_digests.get(codes.episode)
        if digest == codes.digest:
            return
        state = "differ from the codes" if digest else "are not among the codes"
        raise DataError.at(
            self.path_of(codes.episode),
            f"its codes {state} that {MANIFEST_NAME} lists",
            hint=_HINT,
            code="data.wrong_digest",
            episode=codes.episode,
        )

    def _check_all_present(self, episode: str, stems: Sequence[str]) -> None:
        if stems:
            more = f" and {len(stems) - 1} more images" if len(stems) > 1 else ""
            raise self._missing_error(episode, f"{stems[0]}{more}", stems)

    def _missing_error(self, episode: str, label: str, stems: Sequence[str] = ()) -> DataError:
        path = self.path_of(episode)
        return DataError.at(
            path,
            f"no codes of {label}",
            hint=_HINT,
            code="data.missing",
            episode=episode,
            pictures=list(stems),
        )

    def _broken_error(self, path: Path, episode: str, stem: str, reason: str) -> DataError:
        prefix = f"{stem}: " if stem and path.stem != stem else ""
        return DataError.at(
            path,
            f"{prefix}{reason}",
            hint=_HINT,
            code="data.broken",
            episode=episode,
            picture=stem,
        )


def _layout_of(path: Path) -> CodesLayout | None:
    """Layout by the files: published folders have no manifest, unfinished ones not yet."""
    layouts: dict[str, tuple[CodesLayout, str]] = {
        PACKED_NAME: ("packed", f"*{PACKED_SUFFIX}"),
        JSON_NAME: ("json", f"*/*{JSON_SUFFIX}"),
    }
    if path.name not in layouts:
        return None
    layout, pattern = layouts[path.name]
    if any(path.glob(pattern)) or contents_record(path):
        return layout
    return None


def recognize(location: Path) -> str | None:
    """`codes` at a location of codes, else None."""
    return "codes" if is_codes(location) else None


def is_codes(location: Path) -> bool:
    try:
        return CodesFolder.find(location) is not None
    except DataError:
        return True  # its manifest is broken


COLLAPSED = "data.collapsed_codes"
# Episodes that are read, evenly spaced: enough to see a collapse, cheap for any folder.
_MAX_READ = 8
# A robot that stands still has equal codes too, but not in most images of several episodes.
_MAX_EQUAL = 0.9
_MIN_IMAGES = 8


@dataclass(frozen=True)
class CodesUsage:
    """Use of the codebook in some episodes."""

    images: int = 0  # number of images that were read
    codes_in_use: int = 0  # number of different codes
    entropy: float = 0.0  # entropy of the frequencies of codes, in bits
    equal_images: float = 0.0  # share of the images that have the most frequent codes

    @property
    def problem(self) -> str:
        """Text on a collapsed tokenizer; empty if the codes differ from image to image."""
        if self.images < _MIN_IMAGES or self.equal_images <= _MAX_EQUAL:
            return ""
        return (
            f"{self.equal_images:.0%} of {self.images} images have the same codes: the tokenizer "
            "has collapsed, or the images are equal; look at them with `vlatool inspect --html`, "
            "and train the tokenizer again (`vlatool tokenizer eval` measures it)"
        )

    def facts(self) -> dict[str, Any]:
        """The numbers by name, rounded."""
        return {
            "images_read": self.images,
            "codes_in_use": self.codes_in_use,
            "code_entropy": round(self.entropy, 3),
            "equal_images": round(self.equal_images, 4),
        }


def usage_of(folder: CodesFolder) -> CodesUsage:
    """Use of the codebook in at most 8 episodes; those that cannot be read are left out."""
    names = folder.episodes()
    rows = list[Any]()
    for index in spread(len(names), _MAX_READ):
        with suppress(DataError):  # reported by verify
            rows.append(folder.read(names[index]).codes)
    if not rows:
        return CodesUsage()
    codes = np.concatenate(rows)
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    most = int(np.unique(codes, axis=0, return_counts=True)[1].max())
    entropy = float(-(shares * np.log2(shares)).sum())
    return CodesUsage(len(codes), len(counts), entropy, most / len(codes))


def warn_of_collapse(folder: CodesFolder, reporter: Reporter) -> CodesUsage:
    """Use of the codebook; a warning if the tokenizer has collapsed."""
    usage = usage_of(folder)
    if usage.problem:
        reporter.warn(COLLAPSED, f"{folder.path}: {usage.problem}")
    return usage
