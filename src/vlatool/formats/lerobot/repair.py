"""Parquet files without their footer, which writers store last.

The pages are there; columns, types and compression come from a whole file of the same set, and row
groups from the numbers of values of the pages. Source: parquet-format, section Metadata.
"""

import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.events import counted
from vlatool.formats.lerobot import thrift
from vlatool.formats.lerobot.output import arrow_type
from vlatool.formats.media.repair import NothingWhole, Salvaged
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.documents import read_json

_MAGIC = b"PAR1"
_ERRORS = (pa.ArrowException, OSError, ValueError)
_DICTIONARY = 2
_HEADERS = {0: 5, 3: 8, _DICTIONARY: 7}  # type of a page to the field with its number of values
_ENCODINGS = {0: 2, 3: 4, _DICTIONARY: 2}  # and in that to the field with its encoding
_PLAIN = (0, 2)
_SIZES = {1: 4, 2: 8, 3: 12, 4: 4, 5: 8}  # bytes of a value, by type


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
    """Writes a file with the whole row groups of one without a footer."""
    pages = [*_pages(path)]
    for template in map(_template, chain(map(read_file, others), _declared(path))):
        groups = [*_groups(pages, template.columns)] if template is not None else []
        if template is None or not groups:
            continue
        shutil.copyfile(path, target)
        end = groups[-1][-1][-1].stop
        os.truncate(target, end)
        footer = thrift.encoded(_footer(template, groups))
        with target.open("ab") as file:
            file.write(footer + len(footer).to_bytes(4, "little") + _MAGIC)
        rows = _rows(target)
        if rows is None:
            continue
        lost = path.stat().st_size - end
        return Salvaged(
            f"{counted(rows, 'row')} in {counted(len(groups), 'row group')}",
            ("the footer", *([f"{lost:,} bytes of an unfinished row group"] if lost else ())),
        )
    raise NothingWhole(
        "it has no footer, and no whole file of the same columns beside it has rows to compare with"
        if pages
        else "it has no whole pages"
    )


def _pages(path: Path) -> Iterator[_Page]:
    data = memoryview(read_file(path))
    start = len(_MAGIC)
    while start < len(data) and data[: len(_MAGIC)] == _MAGIC:
        reader = thrift.StructReader(data, start)
        try:
            header = reader.struct()
            kind, unpacked, size = (int(header[field][1]) for field in (1, 2, 3))
            values, encoding = (
                int(header[_HEADERS[kind]][1][field][1]) for field in (1, _ENCODINGS[kind])
            )
        except (ValueError, LookupError, TypeError):
            return
        stop = reader.position + size
        if size < 0 or unpacked < 0 or values < 0 or stop > len(data):
            return
        yield _Page(start, stop, kind == _DICTIONARY, values, unpacked, encoding in _PLAIN)
        start = stop


def _declared(path: Path) -> Iterator[bytes]:
    """A file with one row of the features of the LeRobot set that a file belongs to, if any."""
    root = next((folder for folder in path.parents if (folder / "meta/info.json").is_file()), None)
    if root is None or path.relative_to(root).parts[0] != "data":
        return
    features = read_json(root / "meta/info.json").get("features", {})
    kinds = {name: arrow_type(kind) for name, kind in features.items() if kind["dtype"] != "video"}
    row = {name: _empty(kind) for name, kind in kinds.items() if kind is not None}
    if len(row) < len(kinds):
        return
    pq.write_table(pa.table(row), buffer := io.BytesIO())
    yield buffer.getvalue()


def _empty(kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(1, kind)
    return pa.FixedSizeListArray.from_arrays(pa.nulls(kind.list_size, kind.value_type), type=kind)


def _template(data: bytes) -> _Template | None:
    """Footer of a file; None if it has no rows, or lists of varying length."""
    size = int.from_bytes(data[-8:-4], "little")
    footer = thrift.StructReader(memoryview(data[-8 - size :])).struct()
    for group in _items(footer[4]):
        rows = group[3][1]
        metas = [column[3][1] for column in _items(group[1])]
        if rows and not any(meta[5][1] % rows for meta in metas):
            columns = (_Column(m[5][1] // rows, 11 in m, _SIZES.get(m[1][1], 0)) for m in metas)
            return _Template(footer, group, tuple(columns))
    return None


def _items(field: tuple[int, Any]) -> list[thrift.Struct]:
    return field[1][1]


def _groups(pages: Sequence[_Page], columns: Sequence[_Column]) -> Iterator[list[list[_Page]]]:
    """The pages of each whole row group, by column."""
    start = 0
    while start < len(pages):
        counts = _row_counts(pages[start:], columns[0].values_per_row)
        chunks = next(filter(None, (_chunks(pages, start, rows, columns) for rows in counts)), None)
        if chunks is None:
            return
        yield chunks
        start += sum(map(len, chunks))


def _row_counts(pages: Sequence[_Page], values_per_row: int) -> Iterator[int]:
    """Numbers of rows that the first column can have: one page, two, ..."""
    values = 0
    for number, page in enumerate(pages):
        if page.is_dictionary and number:
            return
        values += 0 if page.is_dictionary else page.values
        if values and not values % values_per_row:
            yield values // values_per_row


def _chunks(
    pages: Sequence[_Page], start: int, rows: int, columns: Sequence[_Column]
) -> list[list[_Page]] | None:
    """The pages of each column of a row group with `rows` rows; None if they do not fit."""
    chunks: list[list[_Page]] = []
    for column in columns:
        total = rows * column.values_per_row
        chunk: list[_Page] = []
        values = 0
        while values < total:
            if start == len(pages) or not column.fits(pages[start], is_first=not chunk):
                return None
            chunk.append(page := pages[start])
            values += 0 if page.is_dictionary else page.values
            start += 1
        if values > total:
            return None
        chunks.append(chunk)
    return chunks


def _footer(template: _Template, groups: Sequence[list[list[_Page]]]) -> thrift.Struct:
    footer = {**template.footer}
    written = [_group(template, chunks) for chunks in groups]
    footer[3] = (thrift.I64, sum(group[3][1] for group in written))
    footer[4] = (footer[4][0], (thrift.STRUCT, written))
    return footer


def _group(template: _Template, chunks: list[list[_Page]]) -> thrift.Struct:
    group = {field: deepcopy(template.group[field]) for field in (1, 2, 3)}
    metas: list[thrift.Struct] = []
    for column, pages in zip(_items(group[1]), chunks, strict=True):
        data = [page for page in pages if not page.is_dictionary]
        values = {
            5: sum(page.values for page in data),
            6: sum(page.unpacked for page in pages),
            7: sum(page.stop - page.start for page in pages),
            9: data[0].start,
            **({11: pages[0].start} if pages[0].is_dictionary else {}),
        }
        meta = {field: column[3][1][field] for field in (1, 2, 3, 4)}
        meta |= {field: (thrift.I64, value) for field, value in values.items()}
        column[2], column[3] = (thrift.I64, 0), (column[3][0], meta)
        for field in set(column) - {2, 3}:
            del column[field]
        metas.append(meta)
    group[2] = (thrift.I64, sum(meta[6][1] for meta in metas))
    group[3] = (thrift.I64, metas[0][5][1] // template.columns[0].values_per_row)
    return group


def _rows(path: Path) -> int | None:
    """Number of rows of a file whose row groups can all be read; None if one cannot."""
    try:
        with pq.ParquetFile(path) as file:
            return sum(
                file.read_row_group(number).num_rows for number in range(file.num_row_groups)
            )
    except _ERRORS:
        return None
