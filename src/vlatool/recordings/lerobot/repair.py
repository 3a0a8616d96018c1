"""Parquet files without their footer, which writers store last.

The pages are there; columns, types and compression come from a whole file of the same set, and row
groups from the numbers of values of the pages. Source: parquet-format, section Metadata.
"""

import io
import os
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.events import counted
from vlatool.recordings.lerobot import thrift
from vlatool.recordings.lerobot.output import arrow_type
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.documents import read_json

_INFO = "meta/info.json"
_MAGIC = b"PAR1"
_ERRORS = (pa.ArrowException, OSError, ValueError)
_DICTIONARY = 2
_HEADERS = {0: 5, 3: 8, _DICTIONARY: 7}  # type of a page to the field with its number of values
_ENCODINGS = {0: 2, 3: 4, _DICTIONARY: 2}  # and in that to the field with its encoding
_PLAIN = (0, 2)
_SIZES = {1: 4, 2: 8, 3: 12, 4: 4, 5: 8}  # bytes of a value, by type


class NothingWhole(ValueError):
    """Nothing in a file can be saved; the text says why."""


class Salvaged(NamedTuple):
    """Content of a healthy copy of a damaged file."""

    content: str  # such as `213 of 400 rows`
    lost: tuple[str, ...] = ()  # parts that are not in the copy, each with its reason


class _Page(NamedTuple):
    start: int
    stop: int
    is_dictionary: bool
    values: int
    unpacked: int  # bytes, not compressed
    is_plain: bool  # values are stored one after another


class _Column(NamedTuple):
    values_per_row: int
    has_dictionary: bool
    size: int  # bytes of a value; 0 if it varies

    def fits(self, page: _Page, *, is_first: bool) -> bool:
        """True if a page can be of the column. Levels of values take less than a byte each."""
        if page.is_dictionary != (self.has_dictionary and is_first):
            return False
        stored = page.values * self.size
        most = 0 if page.is_dictionary else page.values + 64
        return not (self.size and page.is_plain) or stored <= page.unpacked <= stored + most


class _Template(NamedTuple):
    """Footer of a whole file with rows."""

    name: str  # of the file
    footer: thrift.Struct
    group: thrift.Struct
    columns: tuple[_Column, ...]


def is_whole(path: Path) -> bool:
    """True if the file has a footer."""
    try:
        pq.ParquetFile(path).close()
    except _ERRORS:
        return False
    return True


def salvage(path: Path, target: Path, others: Iterable[Path]) -> Salvaged:
    """Writes a file with the whole row groups of one without a footer.

    Raises:
        NothingWhole: No other file has columns that fit, or several with different columns do.
    """
    pages = list(_pages(path))
    if not pages:
        raise NothingWhole("it has no whole pages")
    fitting: _Template | None = None
    fitting_groups: list[list[range]] = []
    fitting_table: _Table | None = None
    for template in _templates(path, others):
        groups = _groups(pages, template.columns)
        table = _written(path, target, template, pages, groups) if groups else None
        if table is None:
            continue
        if fitting is None or fitting_table is None:
            fitting = template
            fitting_groups = groups
            fitting_table = table
        elif table.schema != fitting_table.schema:
            raise NothingWhole(
                f"it has no footer, and its pages fit {fitting.name} as well as {template.name}, "
                "which have different columns: move the wrong one away"
            )
    if fitting is None or fitting_table is None:
        raise NothingWhole(
            "it has no footer, and no whole file with the same columns is beside it to learn them "
            "from"
        )
    _written(path, target, fitting, pages, fitting_groups)
    lost = ["the footer"]
    bytes_lost = path.stat().st_size - pages[fitting_groups[-1][-1].stop - 1].stop
    if bytes_lost:
        lost.append(f"{bytes_lost:,} bytes of an unfinished row group")
    rows = f"{counted(fitting_table.rows, 'row')} in {counted(len(fitting_groups), 'row group')}"
    return Salvaged(f"{rows}, with the columns of {fitting.name}", tuple(lost))


def _pages(path: Path) -> Iterator[_Page]:
    """Pages of a file in order, up to the first that is not whole."""
    data = memoryview(read_file(path))
    if data[: len(_MAGIC)] != _MAGIC:
        return
    start = len(_MAGIC)
    while start < len(data):
        reader = thrift.StructReader(data, start)
        try:
            header = reader.struct()
            kind = int(header[1][1])
            unpacked = int(header[2][1])
            size = int(header[3][1])
            content = header[_HEADERS[kind]][1]
            values = int(content[1][1])
            encoding = int(content[_ENCODINGS[kind]][1])
        except (ValueError, LookupError, TypeError):
            return
        stop = reader.position + size
        if size < 0 or unpacked < 0 or not 0 <= values < 2**31 or stop > len(data):
            return
        yield _Page(start, stop, kind == _DICTIONARY, values, unpacked, encoding in _PLAIN)
        start = stop


def _templates(path: Path, others: Iterable[Path]) -> Iterator[_Template]:
    """Yields the footers of whole files, or else one made from the features in `meta/info.json`."""
    has_others = False
    for other in others:
        with other.open("rb") as file:
            template = _template(other.name, file)
        if template is not None:
            has_others = True
            yield template
    if not has_others:
        declared = _declared(path)
        if declared is not None:
            template = _template(_INFO, declared)
            if template is not None:
                yield template


def _declared(path: Path) -> io.BytesIO | None:
    """A file with one row of the features of the LeRobot set that a file belongs to, if any."""
    root = next((folder for folder in path.parents if (folder / _INFO).is_file()), None)
    if root is None or path.relative_to(root).parts[0] != "data":
        return None
    row: dict[str, pa.Array] = {}
    try:
        for name, feature in read_json(root / _INFO)["features"].items():
            if feature["dtype"] != "video":
                row[name] = _empty(arrow_type(feature))
        buffer = io.BytesIO()
        pq.write_table(pa.table(row), buffer)
    except (*_ERRORS, LookupError, TypeError, AttributeError):
        return None  # a damaged or unknown description describes nothing
    return buffer


def _empty(kind: pa.DataType | None) -> pa.Array:
    if kind is None:
        raise ValueError("a type that is not known")
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(1, kind)
    return pa.FixedSizeListArray.from_arrays(pa.nulls(kind.list_size, kind.value_type), type=kind)


def _template(name: str, file: IO[bytes]) -> _Template | None:
    """Reads the footer of a file; None if it has no rows, or lists of varying length."""
    file.seek(-8, os.SEEK_END)
    size = int.from_bytes(file.read(4), "little")
    file.seek(-8 - size, os.SEEK_END)
    footer = thrift.StructReader(memoryview(file.read(size))).struct()
    for group in _items(footer[4]):
        rows = group[3][1]
        metas = [column[3][1] for column in _items(group[1])]
        if not rows or any(meta[5][1] % rows for meta in metas):
            continue
        columns: list[_Column] = []
        for meta in metas:
            has_dictionary = 11 in meta
            columns.append(_Column(meta[5][1] // rows, has_dictionary, _SIZES.get(meta[1][1], 0)))
        return _Template(name, footer, group, tuple(columns))
    return None


def _items(field: tuple[int, Any]) -> list[thrift.Struct]:
    return field[1][1]


def _groups(pages: Sequence[_Page], columns: Sequence[_Column]) -> list[list[range]]:
    """Numbers of the pages of each whole row group, by column.

    Each page is looked at once per kind of column, whatever the number of row groups.
    """
    values_before = [0]
    for page in pages:
        values_before.append(values_before[-1] + (0 if page.is_dictionary else page.values))
    misfits_before: dict[_Column, list[int]] = {}
    for column in set(columns):
        misfits = [0, *(not column.fits(page, is_first=False) for page in pages)]
        misfits_before[column] = [*accumulate(misfits)]

    def chunks_of(start: int, rows: int) -> list[range] | None:
        chunks: list[range] = []
        for column in columns:
            if start == len(pages) or not column.fits(pages[start], is_first=True):
                return None
            values = values_before[start] + rows * column.values_per_row
            stop = bisect_left(values_before, values)
            if stop > len(pages) or values_before[stop] != values:
                return None
            misfits = misfits_before[column]
            if misfits[stop] > misfits[start + 1]:
                return None
            chunks.append(range(start, stop))
            start = stop
        return chunks

    groups: list[list[range]] = []
    start = 0
    while start < len(pages):
        found = None
        # The first column gives the number of rows: one page, two, ...
        for stop in range(start + 1, len(pages) + 1):
            if pages[stop - 1].is_dictionary and stop > start + 1:
                break
            values = values_before[stop] - values_before[start]
            rows, rest = divmod(values, columns[0].values_per_row)
            if rows and not rest:
                found = chunks_of(start, rows)
            if found:
                break
        if not found:
            break
        groups.append(found)
        start = found[-1].stop
    return groups


class _Table(NamedTuple):
    """A written copy of which every row group can be read."""

    rows: int
    schema: pa.Schema


def _written(
    path: Path,
    target: Path,
    template: _Template,
    pages: Sequence[_Page],
    groups: Sequence[Sequence[range]],
) -> _Table | None:
    """Writes the row groups with a footer; None if one cannot be read then."""
    shutil.copyfile(path, target)
    os.truncate(target, pages[groups[-1][-1].stop - 1].stop)
    footer = thrift.encoded(_footer(template, pages, groups))
    with target.open("ab") as file:
        file.write(footer + len(footer).to_bytes(4, "little") + _MAGIC)
    try:
        with pq.ParquetFile(target) as written:
            numbers = range(written.num_row_groups)
            rows = sum(written.read_row_group(number).num_rows for number in numbers)
            return _Table(rows, written.schema_arrow.remove_metadata())
    except _ERRORS:
        return None


def _footer(
    template: _Template, pages: Sequence[_Page], groups: Sequence[Sequence[range]]
) -> thrift.Struct:
    footer = {**template.footer}
    written: list[thrift.Struct] = []
    rows = 0
    for chunks in groups:
        group = _group(template, [pages[chunk.start : chunk.stop] for chunk in chunks])
        written.append(group)
        rows += group[3][1]
    footer[3] = (thrift.I64, rows)
    footer[4] = (footer[4][0], (thrift.STRUCT, written))
    return footer


def _group(template: _Template, chunks: Sequence[Sequence[_Page]]) -> thrift.Struct:
    """A row group with the pages of each column."""
    group = {field: deepcopy(template.group[field]) for field in (1, 2, 3)}
    size = 0
    rows = 0
    for number, (column, pages) in enumerate(zip(_items(group[1]), chunks, strict=True)):
        first_data = pages[1] if pages[0].is_dictionary else pages[0]
        values = {5: 0, 6: 0, 7: 0, 9: first_data.start}
        for page in pages:
            if not page.is_dictionary:
                values[5] += page.values
            values[6] += page.unpacked
            values[7] += page.stop - page.start
        if pages[0].is_dictionary:
            values[11] = pages[0].start
        meta = {field: column[3][1][field] for field in (1, 2, 3, 4)}
        for field, value in values.items():
            meta[field] = (thrift.I64, value)
        column_type = column[3][0]
        column.clear()
        column[2] = (thrift.I64, 0)
        column[3] = (column_type, meta)
        size += values[6]
        if number == 0:
            rows = values[5] // template.columns[0].values_per_row
    group[2] = (thrift.I64, size)
    group[3] = (thrift.I64, rows)
    return group
