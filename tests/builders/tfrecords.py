"""Writes TFRecords."""

import struct
from collections.abc import Mapping

import numpy as np

from vlatool.media.tfrecord import Value, masked_crc, varint


def example(features: Mapping[str, Value]) -> bytes:
    """A `tf.train.Example`; arrays of floats are float lists, others int64 lists."""
    entries = b""
    for name, value in sorted(features.items()):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            part = _field(2, _field(1, value.astype("<f4").tobytes()))
        elif isinstance(value, np.ndarray):
            numbers = [varint(number) for number in value.reshape(-1).tolist()]
            part = _field(3, _field(1, b"".join(numbers)))
        else:
            rows = [_field(1, row) for row in value]
            part = _field(1, b"".join(rows))
        entries += _field(1, _field(1, name.encode()) + _field(2, part))
    return _field(1, entries)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    header = length + struct.pack("<I", masked_crc(length))
    return header + data + struct.pack("<I", masked_crc(data))


def _field(number: int, data: bytes | memoryview) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data
