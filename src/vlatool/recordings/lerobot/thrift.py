"""Structs of the compact protocol of Thrift, as far as parquet uses it.

Source: thrift-compact-protocol, section Struct.
"""

from typing import Any

from vlatool.media.tfrecord import varint

I64 = 6
STRUCT = 12
_FLAGS = (1, 2)
_INTEGERS = (4, 5, I64)
_DOUBLE = 7
_BINARY = 8
_LIST = 9
_MAX_DEPTH = 16
_LONGEST = 2**24

# From the number of a field to its type and value; a list has the type of its items and these.
Struct = dict[int, tuple[int, Any]]


class StructReader:
    """Reader at a position of some bytes; raises ValueError where they are no struct."""

    def __init__(self, data: memoryview, position: int = 0) -> None:
        self._data = data
        self.position = position

    def struct(self, depth: int = 0) -> Struct:
        fields: Struct = {}
        number = 0
        while head := self._bytes(1)[0]:
            kind = head & 15
            delta = head >> 4
            number = number + delta if delta else self._value(I64, depth)
            fields[number] = kind, None if kind in _FLAGS else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            value = self._unsigned()
            return value >> 1 ^ -(value & 1)
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind <= _DOUBLE:  # a flag or a byte of a list
            return self._bytes(8 if kind == _DOUBLE else 1)
        if kind not in (_LIST, STRUCT) or depth > _MAX_DEPTH:
            raise ValueError(f"type {kind}, depth {depth}")
        if kind == STRUCT:
            return self.struct(depth)
        head = self._bytes(1)[0]
        count = head >> 4 if head >> 4 < 15 else self._unsigned()
        if count > _LONGEST:
            raise ValueError(f"a list of {count:,}")
        return head & 15, [self._value(head & 15, depth + 1) for _ in range(count)]

    def _bytes(self, count: int) -> bytes:
        data = bytes(self._data[self.position : self.position + count])
        if len(data) < count:
            raise ValueError("the data end")
        self.position += count
        return data

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._bytes(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits")


def encoded(fields: Struct) -> bytes:
    parts: list[bytes] = []
    for number, (kind, value) in sorted(fields.items()):
        content = b"" if kind in _FLAGS else _encoded(kind, value)
        parts += [bytes([kind]), _encoded(I64, number), content]
    return b"".join(parts) + b"\0"


def _encoded(kind: int, value: Any) -> bytes:
    if kind in _INTEGERS:
        return varint(value << 1 ^ value >> 63)
    if kind == STRUCT:
        return encoded(value)
    if kind == _LIST:
        item, values = value
        head = bytes([0xF0 | item]) + varint(len(values))
        return head + b"".join(_encoded(item, part) for part in values)
    return varint(len(value)) + value if kind == _BINARY else value
