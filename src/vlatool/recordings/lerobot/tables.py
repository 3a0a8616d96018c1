"""Rows of parquet files that hold one episode, or many, as checked arrays.

Footers and row groups are kept for the segments that follow each other in a file. Sizes are checked
before values are read. Legend of shapes: F frames, C dimensions.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlatool.episode import Array, RowSegment
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.layout import EPISODE_INDEX, FRAME_INDEX
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


def _file(path: Path) -> _File:
    status = path.stat()
    return _File(path, status.st_size, status.st_mtime_ns)


def _open(file: _File, footer: _Footer) -> pq.ParquetFile:
    return pq.ParquetFile(
        as_native_file(file.path), metadata=footer.metadata, read_dictionary=footer.texts
    )


@lru_cache(maxsize=16)  # a footer of many row groups takes longer to read than an episode
def _footer(file: _File) -> _Footer:
    stops: list[int] = []
    rows = 0
    try:
        metadata = pq.read_metadata(as_native_file(file.path))
        schema = metadata.schema.to_arrow_schema()
        _ = schema.names  # decodes them
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            rows += group.num_rows
            stops.append(rows)
            for column in range(group.num_columns):
                _ = group.column(column).path_in_schema  # decoded, too
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a name of a column is damaged: {error}") from error
    texts: list[str] = []
    for position, field in enumerate(schema):
        if schema.get_field_index(field.name) != position:
            raise pa.ArrowInvalid(f"it has several columns named {field.name!r}")
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            texts.append(field.name)
    return _Footer(metadata, tuple(stops), tuple(texts))


def table_columns(path: Path) -> tuple[str, ...]:
    return tuple(_footer(_file(path)).metadata.schema.to_arrow_schema().names)


def check_is_data_file(path: Path, label: str) -> None:
    """Raises an error if `path` is missing or a Git LFS pointer.

    `label` says in the message whose file it is, such as `episode 3`.
    """
    try:
        head = read_byte_range(ByteRange(path, 0, len(_LFS_HEADER)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise LEROBOT.error("missing_file", path, label, "is missing") from None
    if head == _LFS_HEADER:
        problem = f"is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself"
        raise LEROBOT.error("lfs_pointer", path, label, problem)


def read_segment(segment: RowSegment, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a segment in the order of the file, fewer if the file ends before.

    `columns`: columns to read, in the order of the file; None: all.

    Row groups that a segment shares with others are decoded once for segments that follow each
    other.
    """
    file = _file(segment.path)
    footer = _footer(file)
    selected = tuple(footer.metadata.schema.to_arrow_schema().names)
    if columns is not None:
        selected = tuple(name for name in selected if name in columns)
    total = footer.metadata.num_rows
    first = min(segment.first, total)
    stop = total
    if segment.count is not None:
        stop = min(total, first + segment.count)
    rows = stop - first
    if rows > MOST_ROWS:
        raise pa.ArrowInvalid(f"it has {rows:,} rows; the limit is {MOST_ROWS:,}")
    if rows == total:
        _check_size(footer.metadata, range(len(footer.stops)), selected, _LARGEST_EPISODE)
        with _open(file, footer) as opened:
            table = opened.read(columns=list(selected))
        table.validate(full=True)  # ArrowInvalid for texts or offsets that cannot be
        return table
    group = bisect.bisect_right(footer.stops, first)
    parts: list[pa.Table] = []
    while first < stop:
        start = footer.stops[group - 1] if group else 0
        part = _row_group(file, group, selected)
        parts.append(part.slice(first - start, stop - first))
        first = min(stop, footer.stops[group])
        group = group + 1
    if not parts:
        return _row_group(file, 0, selected).slice(0, 0)
    return pa.concat_tables(parts)


@lru_cache(maxsize=2)  # an episode is read in two selections of columns at most
def _row_group(file: _File, group: int, columns: tuple[str, ...]) -> pa.Table:
    footer = _footer(file)
    _check_size(footer.metadata, [group], columns, _LARGEST_GROUP)
    with _open(file, footer) as opened:
        table = opened.read_row_group(group, columns=list(columns))
    table.validate(full=True)
    return table


def _check_size(
    metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], limit: int
) -> None:
    """Raises ArrowInvalid if the columns are too large for memory; reads metadata only."""
    prefixes = tuple(f"{name}." for name in columns)
    size = 0
    for number in groups:
        group = metadata.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
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
    start = 0
    for group, stop in enumerate(footer.stops):
        for number, first, count in _runs(file, footer, group):
            if number is not None and number == last:  # it began in the row group before
                before, rows = spans[number].pop()
                spans[number].append((before, rows + count))
            elif number is not None:
                spans.setdefault(number, []).append((start + first, count))
            last = number
        start = stop
    return spans


def _runs(file: _File, footer: _Footer, group: int) -> Sequence[tuple[int | None, int, int]]:
    """(episode, first row in the group, number of rows) of equal numbers in a row group."""
    metadata = footer.metadata.row_group(group)
    only_number = _only_number(metadata)
    if only_number is not None:
        return [(only_number, 0, metadata.num_rows)]
    numbers = _row_group(file, group, (EPISODE_INDEX,)).column(0)
    values = numbers.cast(pa.int64()).fill_null(-1).to_numpy()
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    counts = np.diff(starts, append=len(values))
    runs: list[tuple[int | None, int, int]] = []
    for first, count in zip(starts.tolist(), counts.tolist(), strict=True):
        number = int(values[first])
        runs.append((None if number < 0 else number, first, count))
    return runs


def _only_number(group: pq.RowGroupMetaData) -> int | None:
    """The episode of all rows of a row group, if its statistics have it."""
    for column in range(group.num_columns):
        chunk = group.column(column)
        if chunk.path_in_schema != EPISODE_INDEX:
            continue
        stats = chunk.statistics
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
            raise self.error(name, f"is missing; the columns are {known}", "missing_column")

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
        for row, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                values[row] = None
        return values

    def labels(self, name: str) -> list[Any]:
        """Values of a column of integers or texts."""
        dtype = self.table.schema.field(name).type
        if pa.types.is_integer(dtype):
            return self.values(name)
        if not pa.types.is_dictionary(dtype):
            problem = f"holds {dtype}, expected integers or texts"
            raise self.error(name, problem, "not_numeric")
        labels: list[Any] = []
        for chunk in self.table.column(name).chunks:
            texts = chunk.dictionary.to_pylist()  # each distinct text is in memory once
            for index in chunk.indices.to_pylist():
                labels.append(None if index is None else texts[index])
        return labels

    def vectors(self, name: str, width: int | None) -> Array:
        """Numeric column as [F, C] in its stored dtype; booleans become float32. C is `width`, the
        declared width; None: the width of the first row.
        """
        self.require(name)
        column: Any = self.table.column(name).combine_chunks()
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if not _is_list(column.type):
            array = self._numbers(name, column)[:, None]
            self._check_widths(name, np.ones(len(array), np.int64), width)
            return array
        if _is_list(column.type.value_type):
            raise self.error(name, "has nested lists as rows, not vectors", "not_a_vector")
        self._check_no_nulls(name, column)
        widths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
        width = self._check_widths(name, widths, width)
        return self._numbers(name, column.flatten(), width).reshape(len(column), width)

    def _check_widths(self, name: str, widths: Array, declared: int | None) -> int:
        """Values per row; raises DataError if rows differ in it."""
        expected = int(widths[0]) if declared is None else declared
        wrong = widths != expected
        if wrong.any():
            row = int(wrong.argmax())
            problem = f"has {counted(int(widths[row]), 'value')} at row {row}, not {expected}"
            raise self.error(name, problem, "ragged_rows", row)
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
    num_rows = total - segment.first
    if segment.count is not None:
        if num_rows < segment.count:
            stop = segment.first + segment.count
            problem = f"should have rows {segment.first} to {stop}, but the file has {total}"
            raise LEROBOT.error("rows_outside", path, episode, problem, row=segment.first)
        num_rows = segment.count
    if not num_rows:
        raise LEROBOT.error("rows_outside", path, episode, "has no rows in the list of episodes")
    order = np.arange(num_rows)
    if FRAME_INDEX in table.column_names:
        column = table.column(FRAME_INDEX)
        if pa.types.is_integer(column.type) and not column.null_count:
            order = np.argsort(column.to_numpy(), kind="stable")
    if not np.array_equal(order, np.arange(num_rows)):
        table = table.take(pa.array(order))
    return Rows(segment, episode, table, order, table_columns(path))


def column_names(path: Path) -> tuple[str, ...] | None:
    """Columns of a parquet file; None if it cannot be read, which `read_rows` reports."""
    try:
        return table_columns(path)
    except (pa.ArrowException, OSError):
        return None


def timestamp_problem(timestamps: Sequence[Any], fps: float) -> str:
    """Says how timestamps differ from `row / fps`; empty if they do not."""
    times = np.array(timestamps, np.float64)  # NaN for None
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
        return f"row {row} has the time {times[row]:.3f} s, but {row / fps:.3f} s by the frame rate"
    return ""


def is_annotations(dtype: pa.DataType) -> bool:
    """True for lists of structs, and for empty lists, whose type was inferred."""
    if not _is_list(dtype):
        return False
    return pa.types.is_struct(dtype.value_type) or pa.types.is_null(dtype.value_type)


def _is_list(dtype: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)


def damaged_error(path: Path, episode: str, reason: str) -> DataError:
    return LEROBOT.error("bad_parquet", path, episode, f"cannot be read as parquet: {reason}")
