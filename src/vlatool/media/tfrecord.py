"""TFRecord files of `tf.train.Example`, without TensorFlow. Source: formats/rlds 2."""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np

from vlatool.episode import Array
from vlatool.media import limits
from vlatool.storage.byte_ranges import ByteRange, open_file, read_byte_range

_HEADER = struct.Struct("<QI")
_FOOTER = 4  # bytes of the checksum behind a record
_LARGEST_RECORD = 2**30
_SUMMED_AT_ONCE = 2**20  # bytes
_FIRST_BLOCK = 2**12
_MOST_PARTS = 2**20  # of an example: texts, images, lists and names

# Lists of bytes, float32 or int64.
Value = Sequence[bytes] | Sequence[memoryview] | Array


class TfRecordError(ValueError):
    """Bytes that are no record, or no example."""

    def __init__(self, reason: str, code: str = "unreadable", start: int = 0) -> None:
        super().__init__(reason)
        self.code = code  # `unreadable`, `checksum` or `too_large`
        self.start = start  # byte of the header of a damaged record


def record_spans(path: Path, start: int = 0) -> Iterator[ByteRange]:
    """Span of the content of each record; only headers are read, their checksums compared.

    Raises TfRecordError at the first that is damaged; `next_record` finds the one after it.
    """
    with _opened(path) as file:
        size = file.seek(0, 2)
        while start < size:
            file.seek(start)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise TfRecordError(f"is truncated at byte {start}", start=start)
            length, checksum = _HEADER.unpack(header)
            if masked_crc(header[:8]) != checksum:
                reason = f"byte {start}: wrong checksum of a length"
                raise TfRecordError(reason, "checksum", start)
            first = start + _HEADER.size
            if length > _LARGEST_RECORD:
                reason = f"byte {start}: a record of {length:,} bytes"
                raise TfRecordError(reason, "too_large", start)
            if first + length + _FOOTER > size:
                raise TfRecordError(f"is truncated in the record at byte {start}", start=start)
            yield ByteRange(path, first, first + length)
            start = first + length + _FOOTER


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_file(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise TfRecordError(f"cannot be read: {error.strerror}") from error


def next_record(path: Path, start: int) -> int | None:
    """Byte of the first whole header from a byte on, by its checksum; None if there is none."""
    with _opened(path) as file:
        size = file.seek(0, 2)
        block = _FIRST_BLOCK
        while start + _HEADER.size <= size:
            file.seek(start)
            data = np.frombuffer(file.read(block + _HEADER.size - 1), np.uint8)
            count = len(data) - _HEADER.size + 1
            crcs = np.full(count, 2**32 - 1, np.uint32)
            for place in range(8):
                crcs = _crc_table()[(crcs ^ data[place : place + count]) & 255] ^ (crcs >> 8)
            crcs = ~crcs
            masked = (crcs >> 15 | crcs << 17) + np.uint32(0xA282EAD8)
            stored = np.zeros(count, np.uint32)
            for place in range(4):
                part = data[8 + place : 8 + place + count].astype(np.uint32)
                stored |= part << np.uint32(8 * place)
            for hit in np.flatnonzero(masked == stored).tolist():
                length = int.from_bytes(data[hit : hit + 8].tobytes(), "little")
                if start + hit + _HEADER.size + length + _FOOTER <= size:
                    return start + hit
            start += count
            block = min(2 * block, _SUMMED_AT_ONCE)
    return None


@lru_cache(maxsize=1)
def _crc_table() -> Array:
    """CRC-32C of each byte, with the polynomial reversed."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = values >> 1 ^ np.uint32(0x82F63B78) * (values & 1)
    return values


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


class _Parser:
    """Reader of protobuf messages, with a bound of their parts: each is an object of Python."""

    def __init__(self) -> None:
        self._left = _MOST_PARTS

    def fields(self, data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """(number, value) of the fields of a message; numbers of other kinds are left out."""
        position = 0
        while position < len(data):
            self._left -= 1
            if self._left < 0:
                reason = f"an example of more than {_MOST_PARTS:,} parts"
                raise TfRecordError(reason, "too_large")
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

    def list_of(self, feature: memoryview) -> list[memoryview] | Array:
        """The list of a feature."""
        for kind, message in self.fields(feature):
            if isinstance(message, int):
                raise TfRecordError("a list is a number")
            parts: list[Any] = []
            for _, part in self.fields(message):
                if not isinstance(part, int):
                    parts.append(part)
                elif kind != 1:
                    parts.append(varint(part))
            if kind == 1:
                return parts
            content = parts[0] if len(parts) == 1 else b"".join(parts)
            if kind != 2:
                return _varints(content)
            if len(content) % 4:
                raise TfRecordError(f"a list of floats has {len(content)} bytes")
            return np.frombuffer(content, "<f4")
        return []


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
    parser = _Parser()
    features: dict[str, list[memoryview] | Array] = {}
    for number, message in parser.fields(data):
        if number != 1 or isinstance(message, int):
            continue
        for _, entry in parser.fields(message):
            if isinstance(entry, int):
                raise TfRecordError("a feature is a number")
            name: memoryview | int | None = None
            feature: memoryview | int = memoryview(b"")
            for key, value in parser.fields(entry):
                if key == 1:
                    name = value
                elif key == 2:
                    feature = value
            if not isinstance(name, memoryview) or not isinstance(feature, memoryview):
                raise TfRecordError("a feature has no name")
            features[bytes(name).decode(errors="replace")] = parser.list_of(feature)
    return features


def _varints(data: memoryview | bytes) -> Array:
    """Packed integers as int64."""
    values = np.frombuffer(data, np.uint8)
    if len(values) and values[-1] >= 128:
        raise TfRecordError("a number is truncated")
    count = int(np.count_nonzero(values < 128))
    if 8 * count > max(limits.most_bytes(), 2 * len(values)):
        reason = f"a list of {8 * count:,} bytes; {limits.MEMORY_VARIABLE} raises the limit"
        raise TfRecordError(reason, "too_large")
    numbers = np.empty(count, np.int64)
    start = 0
    done = 0
    while start < len(values):  # in blocks: a byte takes ten times its memory meanwhile
        stop = min(start + _SUMMED_AT_ONCE, len(values))
        while values[stop - 1] >= 128:
            stop += 1
        block = _varints_of(values[start:stop])
        numbers[done : done + len(block)] = block
        start = stop
        done += len(block)
    return numbers


def _varints_of(values: Array) -> Array:
    is_last = values < 128
    first = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    offset = np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
    if offset.max() > 9:
        raise TfRecordError("a number of more than 64 bits")
    parts = (values & 127).astype(np.uint64) << (7 * offset).astype(np.uint64)
    return np.add.reduceat(parts, np.asarray(first, np.intp)).view(np.int64)


def varint(value: int) -> bytes:
    """A number of up to 64 bits as a varint; a negative one as its two's complement."""
    value = int(value) & (2**64 - 1)
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
