"""Reader of the files that W&B writes offline: records of its own classes in the log of LevelDB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Identifier, number and version of the format.
_HEADER = 7
_BLOCK = 32_768
# Checksum, length and kind of a part of a record.
_PART = struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


def records(folder: Path) -> Iterator[Any]:
    """Records of all runs below a folder `wandb`, in the order of the runs."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("*run-*/run-*.wandb")):
        data, start, record = path.read_bytes(), _HEADER, b""
        assert data.startswith(b":W&B")
        while start + _PART.size <= len(data):
            if (left := _BLOCK - start % _BLOCK) < _PART.size:
                start += left
                continue
            _, length, kind = _PART.unpack_from(data, start)
            start += _PART.size
            record += data[start : start + length]
            start += length
            if kind in (_WHOLE, _LAST):
                yield Record.FromString(record)
                record = b""


def rows(folder: Path) -> list[dict[str, Any]]:
    """Logged rows without the keys of W&B itself."""
    histories = (record.history.item for record in records(folder) if record.HasField("history"))
    return [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in items
            if not "".join(item.nested_key or [item.key]).startswith("_")
        }
        for items in histories
    ]
