"""Folder of samples, as lines or packed: manifest, and access to samples by number.

    data/EPISODE.jsonl, data/EPISODE.index.npz     lines, and their byte ranges
    packed/EPISODE.npz                             or packed, rendered on request
    fast/                                          the action tokenizer, for the model
    manifest.json                                  files, options and totals

Published folders have lines alone: a file per episode, or files of many.

Source: formats/samples 1, 4, 5.
"""

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from vlatool.datasets.jsonl.layout import DATA_NAME
from vlatool.datasets.samples.episode import (
    PUBLISHED_SIZES,
    EpisodeSamples,
    SampleSizes,
    TokenSample,
    parse_sample,
)
from vlatool.errors import DataError, UsageError
from vlatool.jobs.ownership import contents_record
from vlatool.media.lines import (
    LINES_SUFFIX,
    first_line,
    line_ranges,
    lines_index_path,
    read_lines,
)
from vlatool.media.tar import INDEX_SUFFIX, read_index
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.manifest import Count, ManifestType, RelativePath
from vlatool.storage.uri import can_list, location

T = TypeVar("T")

MANIFEST_NAME = "manifest.json"
PACKED_NAME = "packed"
FAST_NAME = "fast"
OWNED_FILES = (
    f"{DATA_NAME}/*{LINES_SUFFIX}",
    f"{DATA_NAME}/*{INDEX_SUFFIX}",
    f"{PACKED_NAME}/*.npz",
    f"{FAST_NAME}/*",
    MANIFEST_NAME,
)
PACKED_FILES = (f"{PACKED_NAME}/*.npz",)
# Value of `exported` in the record of `vlatool export`.
EXPORTED = "samples"
_COMMAND = "build-dataset"

_CACHED_FILES = 128
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
    _TYPE.write(folder, document)


def images_prefix(tree: Path, folder: Path, *, is_absolute: bool) -> str:
    """Prefix of image paths in the lines of a folder; `tree`: folder that image paths are relative
    to; `is_absolute`: return the absolute location of `tree`.
    """
    if is_absolute:
        return f"{tree.absolute()}/"
    tree_parts = tree.resolve().parts
    folder_parts = folder.resolve().parts
    if tree_parts[0] != folder_parts[0]:
        raise UsageError(
            f"{folder}: has no relative path to the images in {tree}",
            hint="add --absolute, or put both on the same storage",
            code="usage.unsupported",
        )
    shared = 0
    for tree_part, folder_part in zip(tree_parts, folder_parts, strict=False):
        if tree_part != folder_part:
            break
        shared += 1
    steps = [".."] * (len(folder_parts) - shared) + list(tree_parts[shared:])
    return "".join(f"{part}/" for part in steps)


def is_inside(path: Path, folder: Path) -> bool:
    """True if a location is the folder or inside it, on any storage."""
    path_parts = path.resolve().parts
    folder_parts = folder.resolve().parts
    return path_parts[: len(folder_parts)] == folder_parts


@dataclass(frozen=True)
class _ImageEntry:
    prefix: str


@dataclass(frozen=True)
class _Codes:
    codes_per_picture: Count = 0
    codebook_size: Count = 0


@dataclass(frozen=True)
class _Fast:
    vocab_size: Count = 0


@dataclass(frozen=True)
class _Content:
    """Values of the manifest that reading depends on; sizes of 0 are unknown."""

    files: tuple[tuple[RelativePath, Count], ...]
    pictures: _ImageEntry
    codes: _Codes | None = None
    fast: _Fast | None = None


_TYPE = ManifestType(
    MANIFEST_NAME,
    "vlatool.samples",
    1,
    _Content,
    hint=_HINT,
    optional=("codes", "fast"),
    code="data.broken",
)


@dataclass(frozen=True)
class SamplesFolder:
    """Folder of samples, read lazily."""

    path: Path
    document: Mapping[str, Any]  # the manifest; made from all lines if the folder has none
    # (path relative to the folder, number of samples) of each file, in order
    files: tuple[tuple[str, int], ...]
    prefix: str  # prefix of image paths
    has_manifest: bool = True  # True if the folder has a manifest
    _recent: OrderedDict[str, Any] = field(
        default_factory=OrderedDict[str, Any], compare=False, repr=False
    )

    @classmethod
    def open(cls, path: Path) -> "SamplesFolder":
        """The samples in a folder; without a manifest all lines are read."""
        document = _TYPE.document(path)
        if document is None and is_published(path):
            document = _scanned(path)
            return cls(path, document, tuple(document["files"]), "", has_manifest=False)
        if document is None:
            record = contents_record(path)
            if record is not None and record.command == _COMMAND:
                raise record.no_manifest_error(path)
            raise DataError.at(
                path,
                "no samples here",
                hint="give the --output folder of `vlatool build-dataset`",
                code="data.no_samples",
            )
        content = _TYPE.parse(path, document)
        return cls(path, document, content.files, content.pictures.prefix)

    @cached_property
    def sizes(self) -> SampleSizes:
        """Sizes of the numbers, from the manifest; the published ones without."""
        if not self.has_manifest:
            return PUBLISHED_SIZES
        content = _TYPE.parse(self.path, self.document)
        codes = content.codes or _Codes()
        fast = content.fast or _Fast()
        return SampleSizes(
            codes.codes_per_picture or PUBLISHED_SIZES.codes_per_image,
            codes.codebook_size or PUBLISHED_SIZES.codebook_size,
            fast.vocab_size or PUBLISHED_SIZES.action_ids,
        )

    @property
    def is_packed(self) -> bool:
        """True if lines are rendered on request."""
        return self.document.get("layout") == "packed"

    @cached_property
    def images_root(self) -> Path:
        """Folder that image paths are relative to, resolved from the current location."""
        if "://" in self.prefix or self.prefix.startswith("/"):
            return location(self.prefix)
        return self.path.absolute().joinpath(*self.prefix.split("/")).resolve()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def sample(self, number: int) -> TokenSample:
        """Sample by its number; raises DataError if it cannot be read."""
        name, at = self.locate(number)
        if self.is_packed:
            return self.episode(name).sample(at, self.prefix)
        try:
            return parse_sample(self._line(name, at), self.sizes)
        except ValueError as error:
            raise _samples_error(self.path / f"{name}:{at + 1}", str(error)) from None

    def line(self, number: int) -> bytes:
        """Line by its number, with its newline; raises DataError if it cannot be read."""
        name, at = self.locate(number)
        if self.is_packed:
            return self.episode(name).line(at, self.prefix)
        return self._line(name, at) + b"\n"

    def locate(self, number: int) -> tuple[str, int]:
        """File of a sample, relative to the folder, and its index in the file."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        at = bisect_right(self._ends, number)
        name, count = self.files[at]
        return name, number - (self._ends[at] - count)

    def episode(self, name: str) -> EpisodeSamples:
        """Packed samples of a file; raises DataError if it cannot be read."""
        return self._cached(name, partial(read_packed, sizes=self.sizes))

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

    def _line(self, name: str, at: int) -> bytes:
        path = self.path / name
        ranges = self._cached(name, _line_ranges)
        if at >= len(ranges):
            raise _samples_error(path, f"has {len(ranges)} lines, {MANIFEST_NAME} lists more")
        offset, length = ranges[at]
        line = read_byte_range(ByteRange(path, offset, offset + length))
        if len(line) != length or not line.endswith(b"\n"):
            raise _samples_error(path, f"line {at + 1} does not match the index")
        return line[:-1]


def read_packed(path: Path, sizes: SampleSizes) -> EpisodeSamples:
    """Packed samples of a file; raises DataError if it cannot be read."""
    try:
        content = read_byte_range(ByteRange(path, 0, _MAX_PACKED_BYTES + 1))
        if len(content) > _MAX_PACKED_BYTES:
            raise ValueError(f"over {_MAX_PACKED_BYTES} bytes long")
        return EpisodeSamples.parse(content, sizes)
    except (ValueError, OSError) as error:
        raise _samples_error(path, str(error)) from None


def _line_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of each line, from the index or else from the lines themselves."""
    index = read_index(lines_index_path(path))
    try:
        if index is not None and index.shard_bytes == path.stat().st_size:
            return index.ranges()
        return line_ranges(path)
    except (ValueError, OSError) as error:
        raise _samples_error(path, str(error)) from None


def recognize(location: Path) -> str | None:
    return "samples" if is_samples(location) else None


def is_samples(location: Path) -> bool:
    """True if a folder holds samples, or is the output of a started run of them."""
    if _TYPE.is_in(location):
        return True
    record = contents_record(location)
    if record is None:
        return is_published(location)
    return record.command == _COMMAND or record.options.get("exported") == EXPORTED


def is_published(location: Path) -> bool:
    """True for lines that another program wrote: the first is a sample."""
    if contents_record(location) is not None or (location / MANIFEST_NAME).exists():
        return False
    try:
        first = first_line(_lines_files(location))
        return first is not None and bool(parse_sample(first))
    except (ValueError, OSError):
        return False


def _lines_files(folder: Path) -> Sequence[Path]:
    """Files of lines, sorted by name."""
    data = folder / DATA_NAME
    if not can_list(data) or not data.is_dir():
        return []
    return sorted(data.glob(f"*{LINES_SUFFIX}"))


def _scanned(folder: Path) -> Mapping[str, Any]:
    """Contents of a folder without a manifest, with the keys of one."""
    files: list[tuple[str, int]] = []
    kinds = Counter[str]()
    tasks = Counter[str]()
    id_counts: dict[str, Counter[int]] = {}
    shape: dict[str, int] = {}
    for path in _lines_files(folder):
        number = 0
        try:
            for line in read_lines(path):
                talk = parse_sample(line).conversation
                number += 1
                kinds[talk.kind] += 1
                tasks[talk.task] += 1
                id_counts.setdefault(talk.kind, Counter())[len(talk.action_ids)] += 1
                shape = shape or {"pictures": talk.images, "future": len(talk.codes)}
        except (ValueError, OSError) as error:
            raise _samples_error(path, f"line {number + 1}: {error}") from None
        files.append((f"{DATA_NAME}/{path.name}", number))
    # Each window has a line of each kind, or of one.
    lengths = max(id_counts.values(), key=Counter.total, default=Counter[int]())
    total = lengths.total()
    mean = sum(length * count for length, count in lengths.items()) / max(total, 1)
    counts = {str(length): count for length, count in sorted(lengths.items())}
    return {
        "layout": "jsonl",
        "episodes": len(files),
        "samples": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "shape": shape,
        "action_ids": {
            "min": min(lengths, default=0),
            "mean": round(mean, 3),
            "max": max(lengths, default=0),
            "counts": counts,
        },
        "tasks": dict(tasks),
        "files": files,
    }


_samples_error = partial(DataError.at, hint=_HINT, code="data.broken")
