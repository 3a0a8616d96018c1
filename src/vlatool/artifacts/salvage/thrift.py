"""Structs of the compact protocol of Thrift. Source: thrift-compact-protocol, section Struct."""

import struct
from dataclasses import dataclass
from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
I32, I64 = 5, 6
_MAX_DEPTH, _LONGEST = 16, 2**24

Struct = dict[int, tuple[int, Any]]  # from the number of a field to its type and value


@dataclass
class ThriftList:
    """A list, or a map as its keys and values in turn."""

    kinds: tuple[int, ...]  # types of the items: one, or those of key and value
    values: list[Any]


class StructReader:
    """StructReader at a position of some bytes; raises ValueError where they are no struct."""

    def __init__(self, data: memoryview, position: int = 0) -> None:
        self._data, self.position = data, position

    def struct(self, depth: int = 0) -> Struct:
        fields: Struct = {}
        number = 0
        while head := self._byte():
            kind, delta = head & 15, head >> 4
            number = number + delta if delta else self._signed()
            is_flag = kind in (_TRUE, _FALSE)
            fields[number] = (kind, kind == _TRUE if is_flag else self._value(kind, depth + 1))
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in (4, I32, I64):
            return self._signed()
        if kind == _DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind == _STRUCT:
            return self.struct(depth)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            kinds: tuple[int, ...] = (head & 15,)
        elif kind == _MAP:
            count = 2 * self._unsigned()
            pair = self._byte() if count else 0
            kinds = (pair >> 4, pair & 15)
        else:
            raise ValueError(f"type {kind}")
        if count > _LONGEST:
            raise ValueError(f"a list of {count:,}")
        return ThriftList(
            kinds, [self._value(kinds[i % len(kinds)], depth + 1) for i in range(count)]
        )

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        data = bytes(self._data[self.position : self.position + count])
        if len(data) < count:
            raise ValueError("the data end")
        self.position += count
        return data

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)


def encoded(fields: Struct) -> bytes:
    """Bytes of a struct."""
    parts: list[bytes] = []
    for number, (kind, value) in sorted(fields.items()):
        if kind in (_TRUE, _FALSE):
            parts += [bytes([_TRUE if value else _FALSE]), _number(number)]
        else:
            parts += [bytes([kind]), _number(number), _encoded(kind, value)]
    return b"".join(parts) + b"\0"


def _encoded(kind: int, value: Any) -> bytes:
    match kind:
        case 1 | 2 | 3:
            data = bytes([value])
        case 4 | 5 | 6:
            data = _number(value)
        case 7:
            data = struct.pack("<d", value)
        case 8:
            data = _varint(len(value)) + value
        case 12:
            data = encoded(value)
        case _:
            kinds, values = value.kinds, value.values
            items = [_encoded(kinds[i % len(kinds)], item) for i, item in enumerate(values)]
            head = bytes([0xF0 | kinds[0]]) + _varint(len(values))
            if kind == _MAP:
                pair = bytes([kinds[0] << 4 | kinds[1]]) if values else b""
                head = _varint(len(values) // 2) + pair
            data = head + b"".join(items)
    return data


def _number(value: int) -> bytes:
    return _varint(value << 1 ^ value >> 63)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
