"""Reading of parquet files that hold the rows of one episode, or of many."""

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.artifacts.lerobot.format import EPISODE_INDEX
from vlatool.episode import RowSegment
from vlatool.storage.uri import as_native_file

# Limits of one episode: hours at 100 frames per second, and bytes of its values in memory.
MOST_ROWS = 2**21
_LARGEST_EPISODE = 2**30
_LARGEST_GROUP = 2**31

Spans = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class _Footer:
    """Footer of a file.

    Attributes:
        metadata: Its content.
        stops: Number of the row after each row group.
        texts: Columns of text, which are read as dictionaries: each distinct one is stored once.
    """

    metadata: pq.FileMetaData
    stops: tuple[int, ...]
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
    metadata = pq.read_metadata(as_native_file(file.path))
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    types, schema = pa.types, metadata.schema.to_arrow_schema()
    repeated = [name for name, number in Counter(schema.names).items() if number > 1]
    if repeated:
        raise pa.ArrowInvalid(f"it has several columns named {repeated[0]!r}")
    texts = [
        field.name
        for field in schema
        if types.is_string(field.type) or types.is_large_string(field.type)
    ]
    return _Footer(metadata, tuple(accumulate(group.num_rows for group in groups)), tuple(texts))


def table_columns(path: Path) -> tuple[str, ...]:
    """Names of the columns of a file.

    Raises:
        OSError: The file cannot be opened.
        pa.ArrowException: It is no parquet file.
    """
    return tuple(_footer(_file(path)).metadata.schema.to_arrow_schema().names)


def table_length(path: Path) -> int:
    """Number of rows of a file; raises as `table_columns`."""
    return _footer(_file(path)).metadata.num_rows


def read_segment(segment: RowSegment, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a segment in the order of the file, fewer if the file ends before.

    Row groups that a segment shares with others are decoded once for segments that follow each
    other.

    Args:
        segment: The rows.
        columns: Columns to read, in the order of the file; None: all.

    Raises:
        OSError: The file cannot be opened.
        pa.ArrowException: It is no parquet file, or the rows are too large for memory.
    """
    file = _file(segment.path)
    footer = _footer(file)
    names = footer.metadata.schema.to_arrow_schema().names
    selected = tuple(names if columns is None else [name for name in names if name in columns])
    total = footer.metadata.num_rows
    first = min(segment.first, total)
    stop = total if segment.count is None else min(total, first + segment.count)
    _check_count(stop - first)
    if (first, stop) == (0, total):
        groups = range(len(footer.stops))
        _check_size(footer.metadata, groups, selected, _LARGEST_EPISODE)
        with file.open(footer) as opened:
            return opened.read(columns=list(selected))
    begin = bisect.bisect_right(footer.stops, first)
    parts: list[pa.Table] = []
    while first < stop:
        start = footer.stops[begin - 1] if begin else 0
        part = _row_group(file, begin, selected)
        parts.append(part.slice(first - start, stop - first))
        first, begin = min(stop, footer.stops[begin]), begin + 1
    return pa.concat_tables(parts) if parts else _row_group(file, 0, selected).slice(0, 0)


@lru_cache(maxsize=2)  # an episode is read in two selections of columns at most
def _row_group(file: _File, group: int, columns: tuple[str, ...]) -> pa.Table:
    footer = _footer(file)
    _check_size(footer.metadata, [group], columns, _LARGEST_GROUP)
    with file.open(footer) as opened:
        return opened.read_row_group(group, columns=list(columns))


def _check_count(rows: int) -> None:
    if rows > MOST_ROWS:
        raise pa.ArrowInvalid(f"it has {rows:,} rows; the limit is {MOST_ROWS:,}")


def _check_size(
    metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], limit: int
) -> None:
    """Raises ArrowInvalid if the columns are too large for memory; reads metadata only."""
    prefixes, size = tuple(f"{name}." for name in columns), 0  # lists have name.list.element
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


@lru_cache(maxsize=16)
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
