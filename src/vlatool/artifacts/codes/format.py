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
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vlatool.artifacts.npz_bytes import write_arrays
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry, folder_entry
from vlatool.storage.atomic import write_bytes, write_json
from vlatool.storage.bulk_folder import bulk_folder
from vlatool.storage.documents import DocumentError, read_json

CodesLayout = Literal["json", "packed"]
LAYOUTS: tuple[CodesLayout, ...] = get_args(CodesLayout)

JSON_NAME, PACKED_NAME, MANIFEST_NAME = "TiToken", "tokens", "manifest.json"
CHECKS_NAME = "checks"  # images side by side with their reconstructions
CODES_PER_IMAGE, CODEBOOK_SIZE = 32, 4096
# Patterns of all files of each layout.
OWNED_FILES: Mapping[CodesLayout, tuple[str, ...]] = {
    "json": ("*/*.json", MANIFEST_NAME),
    "packed": ("*.npz", MANIFEST_NAME),
}

PACKED_SUFFIX, JSON_SUFFIX = ".npz", ".json"

FORMAT, VERSION = "vlatool.codes", 1


@dataclass(frozen=True)
class CodesManifest:
    """Manifest of a folder of codes; published folders have none.

    Attributes:
        codes_per_picture: Number of codes per image.
        codebook_size: Size of the codebook; codes are below it.
        tokenizer: Name of the visual tokenizer; may be empty.
        tokenizer_digest: Digest of its weights; may be empty.
        precision: Precision of the computation, such as `fp32`; may be empty.
        layout: Layout of the codes.
        episodes: Number of episodes with codes.
        pictures: Number of images with codes.
        digest: Digest of all codes and stems, equal for both layouts.
        agreement: Share of codes equal to those of fp32, measured on a sample; 1 for fp32 itself.
    """

    codes_per_picture: int = CODES_PER_IMAGE
    codebook_size: int = CODEBOOK_SIZE
    tokenizer: str = ""
    tokenizer_digest: str = ""
    precision: str = ""
    layout: CodesLayout = "json"
    episodes: int = 0
    pictures: int = 0
    digest: str = ""
    agreement: float = 1.0

    def save(self, folder: Path) -> None:
        """Writes the manifest atomically; it marks the folder as complete."""
        write_json(folder / MANIFEST_NAME, {"format": FORMAT, "version": VERSION, **asdict(self)})

    def encoding_info(self) -> dict[str, Any]:
        """Values that all codes of one tokenizer share."""
        return {key: getattr(self, key) for key in _ENCODING_KEYS}

    def identity(self) -> dict[str, Any]:
        """Values that codes must share to be mixed; the name counts only without a digest."""
        info = self.encoding_info()
        return {key: info[key] for key in info if key != "tokenizer" or not self.tokenizer_digest}


_ENCODING_KEYS = (
    "codes_per_picture",
    "codebook_size",
    "tokenizer",
    "tokenizer_digest",
    "precision",
)


@dataclass(frozen=True)
class EpisodeCodes:
    """Codes of an episode.

    Attributes:
        episode: Name of the episode and of the folder of its images.
        stems: Names of N images without suffix, sorted.
        codes: uint16 [N, K].
    """

    episode: str
    stems: tuple[str, ...]
    codes: Array

    @classmethod
    def of(cls, episode: str, codes: Mapping[str, Sequence[int] | Array]) -> "EpisodeCodes":
        """Codes of an episode from the codes of each image by its stem."""
        stems = tuple(sorted(codes))
        return cls(episode, stems, np.array([codes[stem] for stem in stems], np.uint16))

    @property
    def digest(self) -> str:
        """SHA-256 of stems and codes, equal for both layouts."""
        lines = (f"{stem} {row.tobytes().hex()}\n" for stem, row in self._rows())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _rows(self) -> Iterable[tuple[str, Array]]:
        return zip(self.stems, self.codes.astype("<u2"), strict=True)

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Map from stem to row of `codes`."""
        return {stem: row for row, stem in enumerate(self.stems)}


def combined_digest(digests: Mapping[str, str]) -> str:
    """Digest of a folder from the digests of its episodes by name."""
    lines = (f"{episode} {digest}\n" for episode, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_codes(
    folder: Path, layout: CodesLayout, codes: EpisodeCodes, tokenizer_digest: str = ""
) -> FileEntry:
    """Writes the codes of one episode atomically; returns the entry of the file or folder.

    Args:
        folder: The folder of codes.
        layout: Layout of the codes.
        codes: The codes of the episode.
        tokenizer_digest: Digest of the tokenizer, stored in packed files.
    """
    if layout == "packed":
        return _write_packed(folder, codes, tokenizer_digest)
    with bulk_folder(folder / codes.episode) as bulk:
        for stem, row in zip(codes.stems, codes.codes.tolist(), strict=True):
            bulk.write(f"{stem}{JSON_SUFFIX}", json.dumps([[code] for code in row]).encode())
    return folder_entry(codes.episode, bulk.files)


def _write_packed(folder: Path, codes: EpisodeCodes, tokenizer_digest: str) -> FileEntry:
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


def check_image_name(episode: str, stem: str) -> str:
    """Path of an image side by side with its reconstruction, relative to the folder."""
    return f"{CHECKS_NAME}/{episode}/{stem}.png"


def write_check_image(folder: Path, name: str, png: bytes) -> FileEntry:
    """Writes an image of `check_image_name` atomically."""
    write_bytes(folder / name, png)
    return FileEntry(name, len(png), hashlib.sha256(png).hexdigest())


def parse_codes(value: Any, count: int = CODES_PER_IMAGE, size: int = CODEBOOK_SIZE) -> Array:
    """Codes of an image, uint16 [K], from a flat list or a list of one-element lists.

    Raises:
        ValueError: The value is not `count` integers from 0 to `size` - 1.
    """
    rows: list[Any] = value if isinstance(value, list) else []
    flat = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]
    if len(flat) != count:
        raise ValueError(f"expected a list of {count} codes, found {len(flat)}")
    for code in flat:
        if type(code) is not int:
            raise ValueError(f"{str(code)[:40]!r} is not an integer")
        if not 0 <= code < size:
            raise ValueError(f"the code {code} is not in 0 to {size - 1}")
    return np.array(flat, np.uint16)


def read_codes_manifest(folder: Path) -> CodesManifest | None:
    """Manifest of a folder of codes; None if there is none.

    Raises:
        DataError: The manifest is broken.
    """
    path = folder / MANIFEST_NAME
    try:
        document: object = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DocumentError as error:
        if folder.name in (JSON_NAME, PACKED_NAME):
            raise _manifest_error(path, error.reason) from None
        return None
    except OSError:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    return _parse_manifest(path, document)


def _parse_manifest(path: Path, document: Mapping[str, Any]) -> CodesManifest:
    if document.get("version") != VERSION:
        reason = f"version {document.get('version')!r}; this vlatool supports {VERSION}"
        raise _manifest_error(path, reason)
    values: dict[str, Any] = {}
    for field in fields(CodesManifest):
        value = document.get(field.name, field.default if field.name == "agreement" else None)
        if type(value) is not type(field.default):
            raise _manifest_error(path, f"{field.name} is {value!r}")
        values[field.name] = value
    manifest = CodesManifest(**values)
    is_possible = manifest.codes_per_picture > 0 and 0 < manifest.codebook_size <= 2**16
    if manifest.layout not in LAYOUTS or not is_possible:
        raise _manifest_error(path, "its values are invalid")
    return manifest


def _manifest_error(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: {reason}",
        hint="copy the folder again, or write it again",
        code="data.broken_manifest",
        details={"path": str(path)},
    )
