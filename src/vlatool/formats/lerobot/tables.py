"""Rows of parquet files that hold one episode, or many, as checked arrays."""

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlatool.episode import Array, RowSegment
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.formats.lerobot.findings import LEROBOT
from vlatool.formats.lerobot.layout import EPISODE_INDEX, FRAME_INDEX
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.uri import as_native_file

# First line of a Git LFS pointer, the text file that replaces content kept in Git LFS.
# Source: formats/lerobot 5
_LFS_HEADER = b"version https://git-lfs"
# Limits of one episode: hours at 100 frames per second, and bytes of its values in memory.
MOST_ROWS = 2**21
_LARGEST_EPISODE = 2**30
_LARGEST_GROUP = 2**31

Spans = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class _Footer:
    """Footer of a file."""

    metadata: pq.FileMetaData  # its content
    stops: tuple[int, ...]  # number of the row after each row group
    # columns of text, which are read as dictionaries: each distinct one is stored once
    texts: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """Version of a file; equal for equal content."""

    path: Path
    size: int
    changed: int

    def open(self, footer: _Footer) -> pq.ParquetFile:
        return pq.ParquetFile(
            as_native_file(self.path), metadata=footer.metadata, read_dictionary=footer.texts
        )


def _file(path: Path) -> _File:
    status = path.stat()
    return _File(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # a footer of many row groups takes longer to read than an episode
def _footer(file: _File) -> _Footer:
    try:
        metadata = pq.read_metadata(as_native_file(file.path))
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        schema = metadata.schema.to_arrow_schema()
        _ = schema.names, [_paths(group) for group in groups]
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a name of a column is damaged: {error}") from error
    types = pa.types
    repeated = [name for name, number in Counter(schema.names).items() if number > 1]
    if repeated:
        raise pa.ArrowInvalid(f"it has several columns named {repeated[0]!r}")
    texts = [
        field.name
        for field in schema
        if types.is_string(field.type) or types.is_large_string(field.type)
    ]
    return _Footer(metadata, tuple(accumulate(group.num_rows for group in groups)), tuple(texts))


def _paths(group: pq.RowGroupMetaData) -> list[str]:
    return [group.column(number).path_in_schema for number in range(group.num_columns)]


def table_columns(path: Path) -> tuple[str, ...]:
    return tuple(_footer(_file(path)).metadata.schema.to_arrow_schema().names)


def check_is_data_file(path: Path, label: str) -> None:
    """Raises an error if `path` is missing or a Git LFS pointer; `label`: owner of the file in the
    message, such as `episode 3`.
    """
    try:
        head = read_byte_range(ByteRange(path, 0, len(_LFS_HEADER)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise LEROBOT.error("missing_file", path, label, "is missing") from None
    if head == _LFS_HEADER:
        problem = f"is a Git LFS pointer ({path.stat().st_size} bytes), not data"
        raise LEROBOT.error("lfs_pointer", path, label, problem)


def read_segment(segment: RowSegment, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a segment in the order of the file, fewer if the file ends before.

    `columns`: columns to read, in the order of the file; None: all.

    Row groups that a segment shares with others are decoded once for segments that follow each
    other.
    """
    file = _file(segment.path)
    footer = _footer(file)
    names = footer.metadata.schema.to_arrow_schema().names
    selected = tuple(names if columns is None else [name for name in names if name in columns])
    total = footer.metadata.num_rows
    first = min(segment.first, total)
    stop = total if segment.count is None else min(total, first + segment.count)
    rows = stop - first
    if rows > MOST_ROWS:
        raise pa.ArrowInvalid(f"it has {rows:,} rows; the limit is {MOST_ROWS:,}")
    if (first, stop) == (0, total):
        groups = range(len(footer.stops))
        _check_size(footer.metadata, groups, selected, _LARGEST_EPISODE)
        with file.open(footer) as opened:
            return _checked(opened.read(columns=list(selected)))
    begin = bisect.bisect_right(footer.stops, first)
    parts: list[pa.Table] = []
    while first < stop:
        start = footer.stops[begin - 1] if begin else 0
        part = _row_group(file, begin, selected)
        parts.append(part.slice(first - start, stop - first))
        first = min(stop, footer.stops[begin])
        begin = begin + 1
    return pa.concat_tables(parts) if parts else _row_group(file, 0, selected).slice(0, 0)


@lru_cache(maxsize=2)  # an episode is read in two selections of columns at most
def _row_group(file: _File, group: int, columns: tuple[str, ...]) -> pa.Table:
    footer = _footer(file)
    _check_size(footer.metadata, [group], columns, _LARGEST_GROUP)
    with file.open(footer) as opened:
        return _checked(opened.read_row_group(group, columns=list(columns)))


def _checked(table: pa.Table) -> pa.Table:
    """The table; raises ArrowInvalid if it holds texts or offsets that cannot be."""
    table.validate(full=True)
    return table


def _check_size(
    metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], limit: int
) -> None:
    """Raises ArrowInvalid if the columns are too large for memory; reads metadata only."""
    prefixes = tuple(f"{name}." for name in columns)
    size = 0
    for group in map(metadata.row_group, groups):
        for chunk in map(group.column, range(group.num_columns)):
            if f"{chunk.path_in_schema}.".startswith(prefixes):
                size += max(chunk.total_uncompressed_size, 8 * chunk.num_values)
    if size > limit:
        raise pa.ArrowInvalid(f"its values take {size:,} bytes; the limit is {limit:,}")


def episode_spans(path: Path) -> Spans | None:
    """Map from episode to (first row, number of rows) of each run of its rows in a file.

    None if the file has no column of episode numbers. Rows without a number are left out. Raises
    as `read_segment`.
    """
    return _episode_spans(_file(path))


@lru_cache(maxsize=256)  # a search reads many files
def _episode_spans(file: _File) -> Spans | None:
    footer = _footer(file)
    schema = footer.metadata.schema.to_arrow_schema()
    position = schema.get_field_index(EPISODE_INDEX)
    if position < 0 or not pa.types.is_integer(schema.field(position).type):
        return None
    spans: dict[int, list[tuple[int, int]]] = {}
    last = None
    for group in range(len(footer.stops)):
        start = footer.stops[group - 1] if group else 0
        for number, first, count in _runs(file, footer, group):
            if number is not None and number == last:
                before = spans[number].pop()
                spans[number].append((before[0], before[1] + count))
            elif number is not None:
                spans.setdefault(number, []).append((start + first, count))
            last = number
    return spans


def _runs(file: _File, footer: _Footer, group: int) -> Sequence[tuple[int | None, int, int]]:
    """(episode, first row in the group, number of rows) of equal numbers in a row group."""
    metadata = footer.metadata.row_group(group)
    if (only := _only_number(metadata)) is not None:
        return [(only, 0, metadata.num_rows)]
    numbers = _row_group(file, group, (EPISODE_INDEX,)).column(0)
    values = numbers.cast(pa.int64()).fill_null(-1).to_numpy()
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    counts = np.diff(starts, append=len(values))
    return [
        (None if values[first] < 0 else int(values[first]), int(first), int(count))
        for first, count in zip(starts, counts, strict=True)
    ]


def _only_number(group: pq.RowGroupMetaData) -> int | None:
    """The episode of all rows of a row group, if its statistics have it."""
    for chunk in map(group.column, range(group.num_columns)):
        stats = chunk.statistics if chunk.path_in_schema == EPISODE_INDEX else None
        if stats is not None and stats.has_min_max and stats.null_count == 0:
            return int(stats.min) if stats.min == stats.max and stats.min >= 0 else None
    return None


@dataclass(frozen=True)
class Rows:
    """Requested columns of one episode, in frame order."""

    segment: RowSegment  # their place in a parquet file
    episode: str  # name of the episode in errors, such as `episode 3`
    table: pa.Table  # the columns
    order: Array  # place of each frame among the rows of the segment, int [F]
    columns: tuple[str, ...]  # all columns of the file, read or not

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def path(self) -> Path:
        return self.segment.path

    def require(self, name: str) -> None:
        """Raises DataError unless the file has the column `name`."""
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise self.error(name, f"is missing; available: {known}", "missing_column")

    def values(self, name: str) -> list[Any]:
        return self.table.column(name).to_pylist()

    def first(self, name: str) -> Any:
        return self.table.column(name)[0].as_py()

    def numbers(self, name: str) -> list[Any]:
        """Values of a scalar numeric column; None for null, NaN and infinity."""
        dtype = self.table.schema.field(name).type
        if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            raise self.error(name, f"holds {dtype}, expected numbers", "not_numeric")
        values = self.values(name)
        return [None if value is None or not np.isfinite(value) else value for value in values]

    def labels(self, name: str) -> list[Any]:
        """Values of a column of integers or texts."""
        dtype = self.table.schema.field(name).type
        if pa.types.is_dictionary(dtype):  # each distinct text is stored once
            chunks = self.table.column(name).chunks
            texts = [(chunk.dictionary.to_pylist(), chunk.indices.to_pylist()) for chunk in chunks]
            return [
                None if index is None else values_of[index]
                for values_of, rows in texts
                for index in rows
            ]
        if not pa.types.is_integer(dtype):
            problem = f"holds {dtype}, expected integers or texts"
            raise self.error(name, problem, "not_numeric")
        return self.values(name)

    def vectors(self, name: str, width: int | None) -> Array:
        """Numeric column as [F, C] in its stored dtype; booleans become float32. C is `width`, the
        declared width; None: the width of the first row.
        """
        self.require(name)
        return self._matrix(name, self.table.column(name).combine_chunks(), width)

    def _matrix(self, name: str, column: Any, width: int | None) -> Array:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if not _is_list(column.type):
            array = self._numbers(name, column)[:, None]
            self._check_widths(name, np.ones(len(array), np.int64), width)
            return array
        if _is_list(column.type.value_type):
            raise self.error(name, "has 2 dimensions, expected 1", "not_a_vector")
        self._check_no_nulls(name, column)
        widths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
        width = self._check_widths(name, widths, width)
        return self._numbers(name, column.flatten(), width).reshape(len(column), width)

    def _check_widths(self, name: str, widths: Array, declared: int | None) -> int:
        expected = int(widths[0]) if declared is None else declared
        wrong = widths != expected
        if wrong.any():
            row = int(wrong.argmax())
            raise self.error(
                name,
                f"has {counted(int(widths[row]), 'value')} at row {row}, expected {expected}",
                "ragged_rows",
                row,
            )
        return expected

    def _numbers(self, name: str, values: Any, width: int = 1) -> Array:
        """Flat values as a numeric array; `width` values belong to one row."""
        dtype = values.type
        if pa.types.is_boolean(dtype):
            values = values.cast(pa.uint8()).cast(pa.float32())
        elif not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            raise self.error(name, f"holds {dtype}, expected numbers", "not_numeric")
        self._check_no_nulls(name, values, width)
        return values.to_numpy(zero_copy_only=False)

    def _check_no_nulls(self, name: str, values: Any, width: int = 1) -> None:
        if values.null_count:
            row = pc.index(values.is_null(), True).as_py() // max(width, 1)
            raise self.error(name, f"has no value at row {row}", "missing_value", row)

    def error(self, field: str, problem: str, code: str, row: int | None = None) -> DataError:
        """Error of a column, with a code of the findings."""
        reason = f"{field} {problem}"
        return LEROBOT.error(code, self.path, self.episode, reason, field=field, row=row)


def read_rows(segment: RowSegment, episode: str, requested: Sequence[str]) -> Rows:
    """The `requested` columns that exist, sorted by `frame_index` if the file has it."""
    path = segment.path
    check_is_data_file(path, episode)
    try:
        table = read_segment(segment, [*requested, FRAME_INDEX])
        total = _footer(_file(path)).metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise damaged_error(path, episode, str(error)) from error
    if not total:
        raise damaged_error(path, episode, "the file has no rows")
    num_rows = min(total - segment.first, total if segment.count is None else segment.count)
    if segment.count is not None and num_rows < segment.count:
        stop = segment.first + segment.count
        problem = f"its rows are {segment.first} to {stop} of {total}"
        raise LEROBOT.error("rows_outside", path, episode, problem, row=segment.first)
    if not num_rows:
        raise LEROBOT.error("rows_outside", path, episode, "the list of episodes gives it no rows")
    order = frame_order(table)
    if order is None:
        order = np.arange(num_rows)
    elif not np.array_equal(order, np.arange(num_rows)):
        table = table.take(pa.array(order))
    return Rows(segment, episode, table, order, table_columns(path))


def column_names(path: Path) -> tuple[str, ...] | None:
    """Columns of a parquet file; None if it cannot be read, which `read_rows` reports."""
    try:
        return table_columns(path)
    except (pa.ArrowException, OSError):
        return None


def timestamp_problem(timestamps: Sequence[Any], fps: float) -> str:
    """Deviation of timestamps from `row / fps`, as a message; empty if there is none."""
    times = np.array([np.nan if t is None else t for t in timestamps], np.float64)
    if not np.isfinite(times).all():
        return "timestamps have missing values"
    falls = np.flatnonzero(np.diff(times) <= 0)
    if len(falls):
        row = int(falls[0]) + 1
        return f"timestamp goes from {times[row - 1]:.2f} to {times[row]:.2f} at row {row}"
    if abs(times[0]) > 0.5 / fps:
        return f"timestamps start at {times[0]:.3f} s"
    late = np.flatnonzero(np.abs(times - np.arange(len(times)) / fps) > 0.5 / fps)
    if len(late):
        row = int(late[0])
        return f"row {row} is at {times[row]:.3f} s, not at {row / fps:.3f} s"
    return ""


def frame_order(table: pa.Table) -> Array | None:
    """Rows in the order of `frame_index`, int [F]; None without such a column of integers."""
    if FRAME_INDEX not in table.column_names:
        return None
    column = table.column(FRAME_INDEX)
    if column.null_count or not pa.types.is_integer(column.type):
        return None
    return np.argsort(column.to_numpy(), kind="stable")


def is_annotations(dtype: pa.DataType) -> bool:
    """True for lists of structs, and for empty lists, whose type was inferred."""
    inner = dtype.value_type if _is_list(dtype) else pa.int64()
    return pa.types.is_struct(inner) or pa.types.is_null(inner)


def _is_list(dtype: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)


def damaged_error(path: Path, episode: str, reason: str) -> DataError:
    return LEROBOT.error("bad_parquet", path, episode, f"cannot be read as parquet: {reason}")
