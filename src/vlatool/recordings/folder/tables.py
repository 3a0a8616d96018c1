"""Tables of plain files: CSV, JSON, JSON lines, npy, npz, parquet and Zarr, as columns.

Shapes: F rows.
"""

import base64
import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.findings import FindingCodes, error, warning
from vlatool.media.frames import ParquetImages
from vlatool.media.npz import NpzArchive, NpzFrames
from vlatool.recordings.base import unused_id
from vlatool.recordings.inventory import TIME, is_encoded
from vlatool.storage.byte_ranges import ByteRange, read_byte_range, read_file
from vlatool.storage.documents import DocumentError, parse_json, read_document
from vlatool.storage.uri import as_native_file, is_remote

_EXCLUDE = "leave the episode out with --exclude"
_PICKLED = "holds pickled objects, which can run code"
_PICKLE_START = b"\x80"  # of a file that is a pickle alone
_RECORD = "write the episodes with vlatool.record, which needs no pickle: docs/formats/folder.md"

FOLDER = FindingCodes(
    "folder",
    unreadable=error(
        "A file is damaged, or its content does not fit its ending.",
        f"copy the file again, or {_EXCLUDE}",
    ),
    bad_table=error("A table has no clear rows and columns.", f"correct the file, or {_EXCLUDE}"),
    too_large=error(
        "A file is too large to be read at once.", "split it, or store the table as parquet"
    ),
    missing_file=error(
        "An episode lacks a file that most others have.",
        f"copy the file again, or {_EXCLUDE}",
    ),
    missing_frames=error(
        "The numbers of image files have gaps, so images and rows cannot be paired by number.",
        f"copy the images again, or {_EXCLUDE}",
    ),
    missing_thing=error(
        "A mapping names something that the episode does not store.",
        "change the mapping; `vlatool inspect SOURCE --propose mapping.yaml` lists what is there",
    ),
    not_numeric=error(
        "A field has no numbers, or a camera has no images.", "name another part in the mapping"
    ),
    length_mismatch=error(
        "The parts of an episode have different numbers of rows, and no times to pair them by.",
        "leave the part out with a mapping (vlatool inspect SOURCE --propose mapping.yaml), or "
        f"{_EXCLUDE}",
    ),
    empty_episode=error("An episode has no frames.", _EXCLUDE),
    pickle=error("A file holds pickled objects, which can run code.", _RECORD),
    cut_row=warning("The last row of a table is cut off; it is left out."),
    times_backwards=warning("Timestamps do not ascend, so rows are paired by number."),
    paired_by_time=warning("Parts have different rates, so rows are paired by their timestamps."),
    other_rate=warning(
        "A file states another frame rate than its timestamps show; the timestamps count.",
        "add --fps if the stated rate is right",
    ),
    stray_files=warning("Some files belong to no episode."),
)

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".npy", ".npz", ".parquet", ".zarr")
_TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")  # that gzip may have packed
_LARGEST_TEXT = 2**30  # bytes of a CSV file
_LARGEST_JSON = 2**28
_LONGEST_ROW = 2**24
_BASE64_HEAD = 256  # characters, with the start of a data URL, that show what they are
_HEAD = 2**16
_END = 2  # bytes: a line break of UTF-16
_MOST_DEPTH = 8
_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?\s*|\s*[+-]?(nan|inf)\s*", re.I)
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+(e[+-]?\d+)?\s*", re.I)
_FIRST_LINES = 12
_STEPS = re.compile(r"data|steps|frames|rows|trajectory|observations|samples", re.I)
_VALUE = re.compile(r"\s*(na|n/a|none|null|true|false)\s*", re.I)
_NUMBERED = re.compile(r"(?P<base>.*?[^\d_.\[])[_.]?\[?(?P<number>\d+)\]?")
# Such as `q0_target`: the number of a joint before what is stored of it.
_INNER = re.compile(r"(?P<start>.*?[^\W\d_])[_.]?(?P<number>\d+)(?P<end>[_.][^\W\d]+)")
_LETTERED = re.compile(
    r"(?P<base>.+)[._](?P<axis>x|y|z|w|q[xyzw]|r[xyz]|roll|pitch|yaw|v[xyz]|w[xyz])", re.I
)
_DOTTED = re.compile(r"(?P<base>.+)\.(?P<axis>[^.]+)")


class EncodedColumn:
    """Encoded images in the rows of a table: base64 texts, or cells of a parquet file."""

    dtype = np.dtype(object)
    ndim = 1

    def __init__(
        self, read: Callable[[int], bytes], rows: range, close: Callable[[], None]
    ) -> None:
        """`read`: returns the bytes of a row of the table; `close`: frees what reading holds."""
        self.read = read
        self.rows = rows
        self.close = close
        self.shape = (len(rows),)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> bytes:
        return self.read(self.rows[row])


@dataclass(frozen=True)
class StoredTable:
    """Columns of a file.

    Attributes:
        columns: Name to numbers or pixels [F, ...], texts (unicode) [F], or encoded images [F];
            large ones are read when they are indexed.
        names: Column to the names of its numbers, if it is made of several.
        left_out: Name to the reason, for columns that are neither.
        facts: Values of a JSON file that are no rows, by their keys joined with dots.
        doubt: What is wrong with its last row; empty: nothing.
    """

    columns: Mapping[str, Array]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    doubt: str = ""


def plain(path: Path) -> Path:
    """The path without the ending of gzip."""
    if path.suffix.lower() == ".gz":
        return path.with_suffix("")
    return path


def is_table(path: Path) -> bool:
    """True for files of the formats of tables, by their names."""
    if path.suffix.lower() == ".gz":
        return plain(path).suffix.lower() in _TEXT_SUFFIXES
    return path.suffix.lower() in SUFFIXES


def read_table(path: Path) -> StoredTable:
    """The columns of a file, which is read once in a process.

    Columns of numbers such as `q0 .. q6`, `q[0] ..` and `pose.x pose.y ..` become one.

    Raises:
        DataError: The file is damaged, too large, or holds pickled objects.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise FOLDER.error("unreadable", path, f"cannot be read: {error}") from error
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # an episode is surveyed, then read, and has few tables
def _read(path: Path, size: int, changed: int) -> StoredTable:
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".parquet": _read_parquet,
        ".zarr": _read_zarr,
    }
    suffix = plain(path).suffix.lower()
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson") and size > _LARGEST_TEXT:
        raise FOLDER.error("too_large", path, f"{size:,} bytes; the limit is {_LARGEST_TEXT:,}")
    try:
        return readers[suffix](path)
    except (OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        raise FOLDER.error("unreadable", path, f"cannot be read: {error}") from error


def _content(path: Path) -> bytes:
    """Bytes of a text file, unpacked; ValueError if they are too many."""
    data = read_file(path)
    if path.suffix.lower() != ".gz":
        return data
    with gzip.open(io.BytesIO(data)) as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise ValueError(f"it unpacks to more than {_LARGEST_TEXT:,} bytes")
    return content


# Text


@dataclass(frozen=True)
class _Form:
    """How a CSV file is written."""

    encoding: str
    delimiter: str
    columns: list[str]
    skipped: int  # lines before the first row: the header, comments, empty ones
    has_decimal_commas: bool


def _read_csv(path: Path) -> StoredTable:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    source: Any = as_native_file(path)
    head = read_byte_range(ByteRange(path, 0, _HEAD))
    end = _last_bytes(path)
    if path.suffix.lower() == ".gz":
        content = _content(path)
        source = io.BytesIO(content)
        head = content[:_HEAD]
        end = content[-_END:]
    form = _form_of(path, head)
    broken: list[Any] = []

    def keep(row: Any) -> str:
        broken.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            source,
            arrow_csv.ReadOptions(
                use_threads=False,  # else broken rows have no number
                block_size=_LONGEST_ROW,
                skip_rows=form.skipped,
                column_names=form.columns,
                encoding=form.encoding,
            ),
            arrow_csv.ParseOptions(delimiter=form.delimiter, invalid_row_handler=keep),
            arrow_csv.ConvertOptions(decimal_point="," if form.has_decimal_commas else "."),
        )
    except pa.ArrowException as error:
        reason = str(error)
        if "straddling" in reason:
            reason = f"a row is longer than {_LONGEST_ROW:,} bytes"
        raise FOLDER.error("bad_table", path, reason[:300]) from error
    doubt = ""
    if broken:
        first = broken[0]
        is_last = len(broken) == 1 and first.number == table.num_rows + 2
        if not is_last or first.actual_columns > first.expected_columns:
            line = first.number + form.skipped - 1 if first.number else 0
            place = f"line {line}: " if line else ""
            reason = f"{place}{first.actual_columns} cells, the header has {first.expected_columns}"
            raise FOLDER.error("bad_table", path, reason)
        doubt = "its last row is cut off and left out"
    elif end.strip(b"\0")[-1:] not in b"\r\n":
        doubt = "it does not end with a line break: its last row may be cut off"
    columns = {name: _of_arrow(table[name]) for name in table.column_names}
    return replace(_table(columns), doubt=doubt)


def _last_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    return read_byte_range(ByteRange(path, max(size - _END, 0), size))


def _form_of(path: Path, head: bytes) -> _Form:
    """Encoding, delimiter and header of a CSV file, from its first lines."""
    encoding = _encoding(head)
    numbers: list[int] = []
    lines: list[str] = []
    text = head.decode(encoding, errors="replace")
    for number, line in enumerate(text.splitlines()[:_FIRST_LINES]):
        if line.strip():
            numbers.append(number)
            lines.append(line)
    if not lines:
        raise FOLDER.error("bad_table", path, "is empty")
    delimiter = _delimiter(lines)
    rows = [_cells(line, delimiter) for line in lines]
    # Comments have another number of cells; a header may begin with # too, as numpy writes it.
    comments = 0
    while len(rows) > 1 and lines[comments].startswith("#") and len(rows[0]) != len(rows[1]):
        comments += 1
        rows.pop(0)
    header_lines = 0
    if not _has_number(rows[0]) or (len(rows) > 1 and _is_header(rows[0], rows[1])):
        header_lines = 1
        if len(rows) > 2 and _is_header(rows[1], rows[2]) and not _has_number(rows[1]):
            reason = "a line of texts, such as units, is below the header: remove it"
            raise FOLDER.error("bad_table", path, reason)
    if (not header_lines or len(rows[0]) == 1) and any(map(_has_numbers, rows[-1])):
        reason = "its cells are divided by spaces or |: write it with commas"
        raise FOLDER.error("bad_table", path, reason)
    names = [f"c{number}" for number in range(len(rows[0]))]
    if header_lines:
        used: dict[str, int] = {}
        for number, cell in enumerate(rows[0]):
            names[number] = unused_id(cell.strip() or names[number], used)
    skipped = numbers[-1] + 1
    if header_lines < len(rows):
        skipped = numbers[comments + header_lines]
    has_commas = False
    for row in rows[header_lines:]:
        has_commas = has_commas or any(_DECIMAL_COMMA.fullmatch(cell) for cell in row)
    return _Form(encoding, delimiter, names, skipped, has_commas and delimiter != ",")


def _is_header(cells: Sequence[str], below: Sequence[str]) -> bool:
    """True if a cell is a word where the row below has a number, or for the numbers of pandas."""
    for cell, value in zip(cells, below, strict=False):
        is_word = cell.strip() and not _NUMBER.fullmatch(cell) and not _VALUE.fullmatch(cell)
        if is_word and _NUMBER.fullmatch(value):
            return True
    # A table of pandas without names has the header 0, 1, 2, ..., behind an empty cell or not.
    counts = list(cells)
    if counts and not counts[0].strip():
        counts.pop(0)
    from_0 = [str(number) for number in range(len(counts))]
    from_1 = [str(number) for number in range(1, len(counts) + 1)]
    return len(counts) > 1 and counts in (from_0, from_1)


def _has_number(cells: Sequence[str]) -> bool:
    return any(_NUMBER.fullmatch(cell) for cell in cells)


def _has_numbers(cell: str) -> bool:
    """True for several numbers in a cell, which another character divides."""
    parts = cell.replace("|", " ").split()
    return len(parts) > 1 and all(_NUMBER.fullmatch(part) for part in parts)


def _encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:  # the last character may be cut
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"


def decoded(data: bytes) -> str:
    """Text of a file in any usual encoding."""
    return data.decode(_encoding(data), errors="replace").strip()


def _delimiter(lines: Sequence[str]) -> str:
    """The character that divides the last of some lines, and the one before, into as many cells."""
    for delimiter in ("\t", ";", ","):
        counts = {len(_cells(line, delimiter)) for line in lines[-2:]}
        if len(counts) == 1 and max(counts) > 1:
            return delimiter
    return ";" if ";" in lines[0] else ","


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line.removeprefix("#")], delimiter=delimiter), [])


def _read_json(path: Path) -> StoredTable:
    try:
        is_packed = path.suffix.lower() == ".gz"
        text = _content(path) if is_packed else read_document(path, max_bytes=_LARGEST_JSON)
        document = parse_json(text)
    except DocumentError as error:
        raise FOLDER.error("bad_table", path, error.reason) from error
    rows, rest = _rows_of_document(document)
    facts = flattened(rest)
    if rows is not None:
        table = _of_records(rows)
        left_out = dict(table.left_out)
        for key, value in list(facts.items()):
            if isinstance(value, list) and value and isinstance(value[0], dict):
                left_out[key] = f"a list of {len(value)} records"
                del facts[key]
        return replace(table, left_out=left_out, facts=facts)
    lengths = {key: len(value) for key, value in facts.items() if isinstance(value, list)}
    several = [length for length in lengths.values() if length > 1]
    count = max(several, key=several.count, default=0)
    columns: dict[str, list[Any]] = {}
    for key, length in lengths.items():
        if length > 1 and abs(length - count) <= 1:
            columns[key] = facts.pop(key)
    return replace(_of_lists(columns), facts=facts)


def _rows_of_document(document: Any) -> tuple[list[Any] | None, Any]:
    """The longest list of records in a document, and the document without it."""
    if isinstance(document, dict) and len(document) > 1 and all(map(str.isdecimal, document)):
        document = [document[key] for key in sorted(document, key=int)]  # rows by their number
    if isinstance(document, list):
        is_records = len(document) > 0 and all(isinstance(row, dict) for row in document)
        return (document, {}) if is_records else (None, {"": document})
    if not isinstance(document, dict):
        return None, {"": document}
    found = ""
    for key, value in document.items():
        is_records = isinstance(value, list) and len(value) > 1 and isinstance(value[0], dict)
        if not is_records or _STEPS.fullmatch(found):
            continue
        if not found or _STEPS.fullmatch(key) or len(value) > len(document[found]):
            found = key
    if not found:
        for key, value in document.items():
            rows, rest = _rows_of_document(value) if isinstance(value, dict) else (None, None)
            if rows is not None:
                return rows, {**document, key: rest}
    if not found or not all(isinstance(row, dict) for row in document[found]):
        return None, document
    return document[found], {key: value for key, value in document.items() if key != found}


def flattened(document: Any) -> dict[str, Any]:
    """Values of a document by their keys, joined with dots."""
    flat: dict[str, Any] = {}
    if document != {}:
        _flatten(document, "", flat)
    return flat


def _flatten(value: Any, at: str, flat: dict[str, Any], depth: int = 0) -> None:
    """Adds the values below a value, by their keys joined with dots."""
    if isinstance(value, dict) and value and depth < _MOST_DEPTH:
        for key, below in value.items():
            _flatten(below, f"{at}.{key}" if at else str(key), flat, depth + 1)
    else:
        flat[at] = value


def _read_json_lines(path: Path) -> StoredTable:
    rows: list[Any] = []
    lines = _content(path).decode("utf-8-sig").rstrip("\r\n").split("\n")
    doubt = ""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line))
        except DocumentError as error:
            if number == len(lines) and rows:
                doubt = "its last row is cut off and left out"
                break
            raise FOLDER.error("bad_table", path, f"line {number}: {error.reason}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise FOLDER.error("bad_table", path, 'its lines are not of the form {"NAME": VALUE}')
    return replace(_of_records(rows), doubt=doubt)


def _of_records(rows: Sequence[Mapping[str, Any]]) -> StoredTable:
    """Columns of records; keys of records within them are joined with dots."""
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        for name, value in flattened(row).items():
            column = columns.setdefault(name, [])
            column += [None] * (number - len(column))
            column.append(value)
    for column in columns.values():
        column += [None] * (len(rows) - len(column))
    return _of_lists(columns)


def _of_lists(columns: Mapping[str, list[Any]]) -> StoredTable:
    arrays: dict[str, Array] = {}
    left_out: dict[str, str] = {}
    for name, values in columns.items():
        try:
            arrays[name] = _of_list(values)
        except ValueError as error:
            left_out[name] = str(error)
    return _table(arrays, left_out)


def _of_list(values: list[Any]) -> Array:
    """An array of a column of JSON; ValueError says why there is none."""
    if all(value is None or value in ([], "", {}) for value in values):
        raise ValueError("it is empty")
    if all(isinstance(value, str) or value is None for value in values):
        return _of_texts([value or "" for value in values])
    if any(isinstance(value, str | dict) for value in values):
        raise ValueError("its values have several types")
    missing = sum(value is None for value in values)
    if missing and any(isinstance(value, list) for value in values):
        raise ValueError(f"{missing} of {len(values)} rows have no value")
    try:
        array = np.array([np.nan if value is None else value for value in values])
    except ValueError:
        raise ValueError("its rows have different widths") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"values of {array.dtype}")
    return array


def _of_texts(texts: list[str]) -> Any:
    """Texts, or the images that they are in base64."""
    first = next(filter(None, texts), "")
    start = _without_scheme(first[:_BASE64_HEAD])
    if not is_encoded(_from_base64(start[: len(start) // 4 * 4])):
        return np.array(texts, np.str_)
    return EncodedColumn(lambda row: _from_base64(texts[row]), range(len(texts)), lambda: None)


def _without_scheme(text: str) -> str:
    """The base64 of a data URL, or the text itself."""
    return text.partition(";base64,")[2] if text.startswith("data:") else text


def _from_base64(text: str) -> bytes:
    """Content of base64, or of a data URL with it; empty if it is neither."""
    try:
        return base64.b64decode(_without_scheme(text), validate=True)
    except ValueError:
        return b""


# Arrays


def _read_npy(path: Path) -> StoredTable:
    try:
        if is_remote(path):
            array = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        start = read_byte_range(ByteRange(path, 0, len(_PICKLE_START)))
        if start == _PICKLE_START or re.search("Python objects|Object arrays", str(error)):
            raise FOLDER.error("pickle", path, _PICKLED) from None
        raise
    if array.dtype.names:
        reason = f"a table with the columns {', '.join(array.dtype.names)}"
        return StoredTable({}, left_out={"": reason})
    if not array.ndim:
        return StoredTable({}, facts={"": array.item()})
    return _table({"": array})


class StreamedRows:
    """Images uint8 [F, H, W, 3] in an archive, inflated one by one as they are indexed."""

    dtype = np.dtype(np.uint8)

    def __init__(self, frames: NpzFrames, shape: tuple[int, ...], rows: range) -> None:
        """`shape`: of one image; `rows`: of the archive."""
        self._frames = frames
        self._rows = rows
        self.shape = (len(rows), *shape)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return StreamedRows(self._frames, self.shape[1:], self._rows[row])
        return self._frames.read([self._rows[row]])[0]


def _read_npz(path: Path) -> StoredTable:
    """Arrays of an archive; color images stay in the file until they are read."""
    archive = NpzArchive(path)
    columns: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for name in archive.names:
        header = archive.header(name)
        if header.dtype.hasobject:
            raise FOLDER.error("pickle", path, f"{name} {_PICKLED}", field=name)
        if header.dtype == np.uint8 and len(header.shape) == 4 and header.shape[3] == 3:
            columns[name] = StreamedRows(
                archive.frames(name), header.shape[1:], range(header.shape[0])
            )
        elif header.shape:
            columns[name] = archive.read(name)
        else:
            facts[name] = archive.read(name).item()
    return replace(_table(columns), facts=facts)


def _read_parquet(path: Path) -> StoredTable:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(as_native_file(path)) as file:
            rows = range(file.metadata.num_rows)
            schema = file.schema_arrow
            images = [name for name in schema.names if _has_bytes(schema.field(name).type)]
            table = file.read([name for name in schema.names if name not in images])
        table.validate(full=True)
        names = schema.names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise FOLDER.error("unreadable", path, f"cannot be read: {error}") from error
    columns: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in names:
        if name in images:
            cells = ParquetImages(path, name, path.parent, rows)
            columns[name] = EncodedColumn(cells.encoded, rows, cells.close)
            continue
        values = table[name]
        if pa.types.is_primitive(values.type) or pa.types.is_string(values.type):
            columns[name] = _of_arrow(values)
            continue
        try:
            columns[name] = _of_list(values.to_pylist())
        except ValueError as error:
            left_out[name] = str(error)
    return _table(columns, left_out)


def _has_bytes(kind: Any) -> bool:
    """True for a column of binary values, or of the structs `{bytes, path}` of `datasets`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _of_arrow(column: Any) -> Array:
    """Numbers, or texts, of a column of Arrow; times become seconds, what is missing NaN or ''."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("ns"), safe=False).cast(pa.int64()).to_numpy() / 1e9
    if pa.types.is_duration(kind):
        return column.cast(pa.duration("ns"), safe=False).cast(pa.int64()).to_numpy() / 1e9
    if pa.types.is_boolean(kind) and column.null_count:
        column = column.cast(pa.int8())
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy()
    return _of_texts([value if isinstance(value, str) else "" for value in column.to_pylist()])


def _read_zarr(path: Path) -> StoredTable:
    """Arrays of a store, which are read when they are used."""
    from vlatool.recordings.zarr.reader import open_arrays

    attributes, arrays, broken = open_arrays(path)
    columns: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, array in arrays.items():
        if array.shape:
            columns[name] = array
        else:
            left_out[name] = "no rows"
    for name, reason in broken.items():
        left_out[name] = reason.message
    return StoredTable(columns, left_out=left_out, facts=attributes)


# Columns


def _table(columns: Mapping[str, Array], left_out: Mapping[str, str] | None = None) -> StoredTable:
    """Makes a table of some columns; columns of one vector are joined."""
    parsed = {name: _numbers_of_texts(values) for name, values in columns.items()}
    axes: dict[str, dict[str, str]] = {}  # name of a possible vector to its columns and their axes
    for name, values in parsed.items():
        is_time = TIME.fullmatch(name.rpartition(".")[2])
        if is_time or values.ndim != 1 or values.dtype.kind not in "fiub":
            continue
        match = _LETTERED.fullmatch(name) or _NUMBERED.fullmatch(name) or _DOTTED.fullmatch(name)
        if match is not None:
            axis = match.groupdict().get("axis") or match["number"]
            axes.setdefault(match["base"], {})[name] = axis
        elif match := _INNER.fullmatch(name):
            axes.setdefault(match["start"] + match["end"], {})[name] = match["number"]
    vector_of: dict[str, str] = {}
    for vector, axis_of in axes.items():
        if len(axis_of) > 1 and vector not in parsed and _is_vector([*axis_of.values()]):
            vector_of |= dict.fromkeys(axis_of, vector)
    joined: dict[str, Array] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name, values in parsed.items():
        vector = vector_of.get(name)
        if vector is None:
            joined[name] = values
        elif vector not in joined:
            axis_of = axes[vector]
            joined[vector] = np.stack([parsed[column] for column in axis_of], axis=1)
            is_numbered = next(iter(axis_of.values())).isdecimal()
            names[vector] = tuple(axis_of if is_numbered else axis_of.values())
    return StoredTable(joined, names, left_out or {})


def _is_vector(axes: Sequence[str]) -> bool:
    """True for names of axes, or numbers that follow each other."""
    if not all(axis.isdecimal() for axis in axes):
        return not any(axis.isdecimal() for axis in axes)
    numbers = [int(axis) for axis in axes]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] <= 1


def _numbers_of_texts(values: Array) -> Array:
    """Vectors that pandas has written as texts, such as `[0.1 0.2]`; else the values."""
    if values.dtype.kind != "U" or values.ndim != 1 or not len(values):
        return values
    first = values[0].strip()
    if not (first.startswith("[") and first.endswith("]")):
        return values
    rows: list[list[float]] = []
    for text in values.tolist():
        try:
            rows.append([float(part) for part in text.strip(" []").replace(",", " ").split()])
        except ValueError:
            return values
    widths = {len(row) for row in rows}
    return np.array(rows) if len(widths) == 1 and widths != {0} else values
