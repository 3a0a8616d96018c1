"""TFRecord files of `tf.train.Example`, without TensorFlow. Source: formats/rlds 2."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from vlatool.episode import Array
from vlatool.storage.byte_ranges import ByteRange, open_file, read_byte_range

_HEADER = struct.Struct("<QI")
_FOOTER = 4  # bytes of the checksum behind a record
_LARGEST_RECORD = 2**30
_SUMMED_AT_ONCE = 2**20  # bytes

# Lists of bytes, float32 or int64.
Value = Sequence[bytes] | Sequence[memoryview] | Array


class TfRecordError(ValueError):
    """Bytes that are no record, or no example."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code  # `unreadable`, `checksum` or `too_large`


def record_spans(path: Path) -> Iterator[ByteRange]:
    """Span of the content of each record; only headers are read, their checksums compared."""
    with open_file(path) as file:
        size = file.seek(0, 2)
        start = 0
        while start < size:
            file.seek(start)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise TfRecordError(f"is truncated at byte {start}", "unreadable")
            length, checksum = _HEADER.unpack(header)
            if masked_crc(header[:8]) != checksum:
                raise TfRecordError(f"byte {start}: wrong checksum of a length", "checksum")
            first = start + _HEADER.size
            if length > _LARGEST_RECORD:
                raise TfRecordError(f"byte {start}: a record of {length:,} bytes", "too_large")
            if first + length + _FOOTER > size:
                raise TfRecordError(f"is truncated in the record at byte {start}", "unreadable")
            yield ByteRange(path, first, first + length)
            start = first + length + _FOOTER


def read_record(span: ByteRange) -> memoryview:
    """The content of a record, after a comparison with its checksum."""
    data = read_byte_range(ByteRange(span.path, span.start, span.stop + _FOOTER))
    content = memoryview(data)[: span.stop - span.start]
    (checksum,) = struct.unpack("<I", data[-_FOOTER:])
    if masked_crc(content) != checksum:
        raise TfRecordError(f"record at byte {span.start}: wrong checksum", "checksum")
    return content


def masked_crc(data: Any) -> int:
    """Masked CRC-32C."""
    crc = 0
    for start in range(0, len(data), _SUMMED_AT_ONCE):  # the library takes bytes only
        crc = google_crc32c.extend(crc, bytes(data[start : start + _SUMMED_AT_ONCE]))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of the fields of a protobuf message; numbers of other kinds are left out."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise TfRecordError(f"a field of kind {kind}")
        if position + length > len(data):
            raise TfRecordError("a field is longer than its message")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise TfRecordError("a number is truncated")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise TfRecordError("a number of more than 64 bits")


def parse_example(data: memoryview) -> dict[str, list[memoryview] | Array]:
    """Map from feature to its list: bytes, float32 or int64."""
    features: dict[str, list[memoryview] | Array] = {}
    for number, message in _fields(data):
        if number != 1 or isinstance(message, int):
            continue
        for _, entry in _fields(message):
            if isinstance(entry, int):
                raise TfRecordError("a feature is a number")
            parts = dict(_fields(entry))
            name = parts.get(1)
            feature = parts.get(2, memoryview(b""))
            if not isinstance(name, memoryview) or not isinstance(feature, memoryview):
                raise TfRecordError("a feature has no name")
            features[bytes(name).decode(errors="replace")] = _list_of(feature)
    return features


def _list_of(feature: memoryview) -> list[memoryview] | Array:
    for kind, message in _fields(feature):
        if isinstance(message, int):
            raise TfRecordError("a list is a number")
        values = [value for _, value in _fields(message)]
        chunks = [value for value in values if isinstance(value, memoryview)]
        if kind == 1:
            return chunks
        if kind == 2:
            return np.frombuffer(b"".join(chunks), "<f4")
        single = [value for value in values if isinstance(value, int)]
        return np.concatenate([np.array(single, np.uint64).view(np.int64), *map(_varints, chunks)])
    return []


def _varints(data: memoryview) -> Array:
    """Packed integers as int64."""
    values = np.frombuffer(data, np.uint8)
    if len(values) and values[-1] >= 128:
        raise TfRecordError("a number is truncated")
    is_last = values < 128
    first = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1]) if len(values) else []
    offset = np.arange(len(values)) - np.repeat(first, np.diff([*first, len(values)]))
    if len(values) and offset.max() > 9:
        raise TfRecordError("a number of more than 64 bits")
    parts = (values & 127).astype(np.uint64) << (7 * offset).astype(np.uint64)
    sums = np.add.reduceat(parts, np.asarray(first, np.intp)) if len(values) else parts
    return sums.view(np.int64)


def example(features: Mapping[str, Value]) -> bytes:
    """A `tf.train.Example`; arrays of floats are float lists, others int64 lists."""
    entries = b""
    for name, value in sorted(features.items()):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            part = _field(2, _field(1, value.astype("<f4").tobytes()))
        elif isinstance(value, np.ndarray):
            part = _field(3, _field(1, b"".join(map(varint, value.reshape(-1).tolist()))))
        else:
            part = _field(1, b"".join(_field(1, row) for row in value))
        entries += _field(1, _field(1, name.encode()) + _field(2, part))
    return _field(1, entries)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


def _field(number: int, data: bytes | memoryview) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A number of up to 64 bits as a varint; a negative one as its two's complement."""
    value = int(value) & (2**64 - 1)
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
