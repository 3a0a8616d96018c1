"""A folder of built samples, as lines or packed: its manifest, and a sample by its number.

    data/EPISODE.jsonl, data/EPISODE.index.npz     lines, and where each is
    packed/EPISODE.npz                             or the same, rendered when asked for
    manifest.json                                  what they are

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

from vlatool.artifacts.episode_samples import EpisodeSamples
from vlatool.artifacts.lines import LINES_SUFFIX, lines_index_path, read_lines
from vlatool.artifacts.samples_jsonl import TokenSample, parse_sample
from vlatool.artifacts.shard import INDEX_SUFFIX, read_index
from vlatool.artifacts.windows import DATA_NAME
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
# What the record of `vlatool export` says that it exports.
EXPORTED = "samples"

FORMAT, VERSION = "vlatool.samples", 1
_CACHED_FILES = 16
_MAX_PACKED_BYTES = 2**28
_HINT = "copy the folder again, or build it again"


def packed_name(episode: str) -> str:
    """Where the packed samples of an episode are, relative to the folder."""
    return f"{PACKED_NAME}/{episode}.npz"


def lines_shard_name(number: int) -> str:
    """Where lines of several episodes are, relative to the folder."""
    return f"{DATA_NAME}/samples_{number:06d}{LINES_SUFFIX}"


def write_manifest(folder: Path, document: Mapping[str, Any]) -> None:
    """Writes what the samples are; it is what marks the folder as whole."""
    write_json(folder / MANIFEST_NAME, {"format": FORMAT, "version": VERSION, **document})


def images_prefix(tree: Path, folder: Path, *, is_absolute: bool) -> str:
    """What stands before the path of a picture in the lines of a folder.

    Args:
        tree: What pictures are relative to.
        folder: Where the samples will be.
        is_absolute: Whether the whole location is written.

    Raises:
        UsageError: There is no way from the one to the other.
    """
    if is_absolute:
        return f"{tree.absolute()}/"
    there, here = tree.resolve().parts, folder.resolve().parts
    if there[0] != here[0]:
        raise UsageError(
            f"{folder}: cannot have paths relative to it of pictures in {tree}",
            hint="add --absolute, or put both into one place",
            code="usage.no_relative_path",
        )
    pairs = zip(there, here, strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    way = [".."] * (len(here) - shared) + list(there[shared:])
    return "".join(f"{part}/" for part in way)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a location is a folder or in it, wherever both are."""
    here, there = path.resolve().parts, folder.resolve().parts
    return here[: len(there)] == there


@dataclass(frozen=True)
class SamplesFolder:
    """Samples that are built; everything is read when it is asked for.

    Attributes:
        path: The folder.
        document: The manifest.
        files: Each file, relative to the folder, with its number of samples, in order.
        prefix: What stands before the path of each picture.
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
            DataError: There is no manifest of samples, or it is broken.
        """
        document = _read_manifest(path)
        if document is None:
            raise DataError(
                f"{path}: no built samples here",
                hint="give the --output folder of `vlatool build-dataset`",
                code="data.no_samples",
                details={"path": str(path)},
            )
        try:
            if document["version"] != VERSION:
                version = document["version"]
                raise ValueError(f"version {version!r}; this vlatool knows {VERSION}")
            files = tuple(_file(row) for row in document["files"])
            prefix = str(document["pictures"]["prefix"])
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise _samples_error(path / MANIFEST_NAME, reason) from None
        return cls(path, document, files, prefix)

    @property
    def is_packed(self) -> bool:
        """Whether lines are rendered when they are asked for."""
        return self.document.get("layout") == "packed"

    @property
    def images_root(self) -> Path:
        """The folder that pictures lie in, from wherever the samples are now."""
        if self._is_prefix_absolute:
            return location(self.prefix)
        return self.path.absolute().joinpath(*self.prefix.split("/")).resolve()

    @property
    def _is_prefix_absolute(self) -> bool:
        return "://" in self.prefix or self.prefix.startswith("/")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def sample(self, number: int) -> TokenSample:
        """A sample by its number; DataError where it cannot be read."""
        name, at = self._locate(number)
        if self.is_packed:
            return self.episode(name).sample(at, self.prefix)
        try:
            return parse_sample(self._line(name, at))
        except ValueError as error:
            raise _samples_error(self.path / name, f"line {at + 1}: {error}") from None

    def line(self, number: int) -> bytes:
        """A line by its number, with its newline; DataError where it cannot be read."""
        name, at = self._locate(number)
        if self.is_packed:
            return self.episode(name).line(at, self.prefix)
        return self._line(name, at) + b"\n"

    def episode(self, name: str) -> EpisodeSamples:
        """The packed samples in a file; DataError where it cannot be read."""
        return self._cached(name, read_packed)

    def _cached(self, name: str, read: Callable[[Path], T]) -> T:
        """What is read of a file; that of the last few is kept."""
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
            raise _samples_error(path, f"line {at + 1} is not where its index says")
        return line[:-1]


def read_packed(path: Path) -> EpisodeSamples:
    """The packed samples in a file; DataError where it cannot be read."""
    try:
        content = read_byte_range(ByteRange(path, 0, _MAX_PACKED_BYTES + 1))
        if len(content) > _MAX_PACKED_BYTES:
            raise ValueError(f"over {_MAX_PACKED_BYTES} bytes long")
        return EpisodeSamples.parse(content)
    except (ValueError, OSError) as error:
        raise _samples_error(path, str(error)) from None


def _line_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of each line; from the lines themselves where there is no index."""
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
    """Whether built samples are here, or a run that writes some has begun."""
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
        raise ValueError(f"{str(row)[:100]} is no file with a number of samples")
    return name, count


def _samples_error(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: {reason}", hint=_HINT, code="data.broken_samples", details={"path": str(path)}
    )
