"""Folder of samples, as lines or packed: manifest, and access to samples by number.

    data/EPISODE.jsonl, data/EPISODE.index.npz     lines, and their byte ranges
    packed/EPISODE.npz                             or packed, rendered on request
    manifest.json                                  files, options and totals

Source: formats/samples 1, 4, 5.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, TypeVar

from vlatool.artifacts.lines import LINES_SUFFIX, lines_index_path, read_lines
from vlatool.artifacts.samples.episode import EpisodeSamples
from vlatool.artifacts.samples.lines import TokenSample, parse_sample
from vlatool.artifacts.tar import INDEX_SUFFIX, read_index
from vlatool.artifacts.windows.format import DATA_NAME
from vlatool.errors import DataError, UsageError
from vlatool.jobs.record import read_record
from vlatool.storage.atomic import write_json
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.uri import is_file_name, location

T = TypeVar("T")

MANIFEST_NAME, PACKED_NAME = "manifest.json", "packed"
OWNED_FILES = (
    f"{DATA_NAME}/*{LINES_SUFFIX}",
    f"{DATA_NAME}/*{INDEX_SUFFIX}",
    f"{PACKED_NAME}/*.npz",
    MANIFEST_NAME,
)
PACKED_FILES = (f"{PACKED_NAME}/*.npz",)
# Value of `exported` in the record of `vlatool export`.
EXPORTED = "samples"

FORMAT, VERSION = "vlatool.samples", 1
_CACHED_FILES = 16
_MAX_PACKED_BYTES = 2**28
_HINT = "copy the folder again, or build it again"


def packed_name(episode: str) -> str:
    """Path of the packed samples of an episode, relative to the folder."""
    return f"{PACKED_NAME}/{episode}.npz"


def lines_shard_name(number: int) -> str:
    """Path of a file with lines of several episodes, relative to the folder."""
    return f"{DATA_NAME}/samples_{number:06d}{LINES_SUFFIX}"


def write_manifest(folder: Path, document: Mapping[str, Any]) -> None:
    """Writes the manifest, which marks the folder as complete."""
    write_json(folder / MANIFEST_NAME, {"format": FORMAT, "version": VERSION, **document})


def images_prefix(tree: Path, folder: Path, *, is_absolute: bool) -> str:
    """Prefix of image paths in the lines of a folder.

    Args:
        tree: Folder that image paths are relative to.
        folder: Folder of the samples.
        is_absolute: Return the absolute location of `tree`.

    Raises:
        UsageError: There is no relative path from `folder` to `tree`.
    """
    if is_absolute:
        return f"{tree.absolute()}/"
    tree_parts, folder_parts = tree.resolve().parts, folder.resolve().parts
    if tree_parts[0] != folder_parts[0]:
        raise UsageError(
            f"{folder}: has no relative path to the images in {tree}",
            hint="add --absolute, or put both on the same storage",
            code="usage.no_relative_path",
        )
    pairs = zip(tree_parts, folder_parts, strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    steps = [".."] * (len(folder_parts) - shared) + list(tree_parts[shared:])
    return "".join(f"{part}/" for part in steps)


def is_inside(path: Path, folder: Path) -> bool:
    """True if a location is the folder or inside it, on any storage."""
    path_parts, folder_parts = path.resolve().parts, folder.resolve().parts
    return path_parts[: len(folder_parts)] == folder_parts


@dataclass(frozen=True)
class SamplesFolder:
    """Folder of samples, read lazily.

    Attributes:
        path: The folder.
        document: The manifest.
        files: (path relative to the folder, number of samples) of each file, in order.
        prefix: Prefix of image paths.
    """

    path: Path
    document: Mapping[str, Any]
    files: tuple[tuple[str, int], ...]
    prefix: str
    _recent: OrderedDict[str, Any] = field(
        default_factory=OrderedDict[str, Any], compare=False, repr=False
    )

    @classmethod
    def open(cls, path: Path) -> "SamplesFolder":
        """The samples in a folder.

        Raises:
            DataError: The manifest of samples is missing or broken.
        """
        document = _read_manifest(path)
        if document is None:
            raise DataError(
                f"{path}: no samples here",
                hint="give the --output folder of `vlatool build-dataset`",
                code="data.no_samples",
                details={"path": str(path)},
            )
        try:
            if document["version"] != VERSION:
                version = document["version"]
                raise ValueError(f"version {version!r}; this vlatool supports {VERSION}")
            files = tuple(_file(row) for row in document["files"])
            prefix = str(document["pictures"]["prefix"])
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise _samples_error(path / MANIFEST_NAME, reason) from None
        return cls(path, document, files, prefix)

    @property
    def is_packed(self) -> bool:
        """True if lines are rendered on request."""
        return self.document.get("layout") == "packed"

    @property
    def images_root(self) -> Path:
        """Folder that image paths are relative to, resolved from the current location."""
        if self._is_prefix_absolute:
            return location(self.prefix)
        return self.path.absolute().joinpath(*self.prefix.split("/")).resolve()

    @property
    def _is_prefix_absolute(self) -> bool:
        return "://" in self.prefix or self.prefix.startswith("/")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def sample(self, number: int) -> TokenSample:
        """Sample by its number; raises DataError if it cannot be read."""
        name, at = self._locate(number)
        if self.is_packed:
            return self.episode(name).sample(at, self.prefix)
        try:
            return parse_sample(self._line(name, at))
        except ValueError as error:
            raise _samples_error(self.path / name, f"line {at + 1}: {error}") from None

    def line(self, number: int) -> bytes:
        """Line by its number, with its newline; raises DataError if it cannot be read."""
        name, at = self._locate(number)
        if self.is_packed:
            return self.episode(name).line(at, self.prefix)
        return self._line(name, at) + b"\n"

    def episode(self, name: str) -> EpisodeSamples:
        """Packed samples of a file; raises DataError if it cannot be read."""
        return self._cached(name, read_packed)

    def _cached(self, name: str, read: Callable[[Path], T]) -> T:
        """Result of `read` for a file; cached for the last few files."""
        if name not in self._recent:
            self._recent[name] = read(self.path / name)
            if len(self._recent) > _CACHED_FILES:
                self._recent.popitem(last=False)
        return self._recent[name]

    @cached_property
    def _ends(self) -> Sequence[int]:
        return list(accumulate(count for _, count in self.files))

    def _locate(self, number: int) -> tuple[str, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        at = bisect_right(self._ends, number)
        name, count = self.files[at]
        return name, number - (self._ends[at] - count)

    def _line(self, name: str, at: int) -> bytes:
        path = self.path / name
        offset, length = self._cached(name, _line_ranges)[at]
        line = read_byte_range(ByteRange(path, offset, offset + length))
        if len(line) != length or not line.endswith(b"\n"):
            raise _samples_error(path, f"line {at + 1} does not match the index")
        return line[:-1]


def read_packed(path: Path) -> EpisodeSamples:
    """Packed samples of a file; raises DataError if it cannot be read."""
    try:
        content = read_byte_range(ByteRange(path, 0, _MAX_PACKED_BYTES + 1))
        if len(content) > _MAX_PACKED_BYTES:
            raise ValueError(f"over {_MAX_PACKED_BYTES} bytes long")
        return EpisodeSamples.parse(content)
    except (ValueError, OSError) as error:
        raise _samples_error(path, str(error)) from None


def _line_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of each line, from the index or else from the lines themselves."""
    index = read_index(lines_index_path(path))
    try:
        if index is not None and index.shard_bytes == path.stat().st_size:
            return index.ranges()
        lengths = [len(line) + 1 for line in read_lines(path)]
    except (ValueError, OSError) as error:
        raise _samples_error(path, str(error)) from None
    return [
        (end - length, length) for end, length in zip(accumulate(lengths), lengths, strict=True)
    ]


def is_samples(location: Path) -> bool:
    """True if a folder holds samples, or is the output of a started run of them."""
    if _read_manifest(location) is not None:
        return True
    record = read_record(location)
    return record is not None and (
        record.command == "build-dataset" or record.options.get("exported") == EXPORTED
    )


def _read_manifest(folder: Path) -> Mapping[str, Any] | None:
    try:
        document: object = read_json(folder / MANIFEST_NAME)
    except (OSError, DocumentError):
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    return document


def _file(row: Any) -> tuple[str, int]:
    name, count = row
    is_relative = isinstance(name, str) and not name.startswith("/") and ".." not in name.split("/")
    if not is_relative or not is_file_name(name) or type(count) is not int or count < 0:
        raise ValueError(f"{str(row)[:100]} is not a file with its number of samples")
    return name, count


def _samples_error(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: {reason}", hint=_HINT, code="data.broken_samples", details={"path": str(path)}
    )
