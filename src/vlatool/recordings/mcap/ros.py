"""Readers of rosbags for db3 and ROS 1."""

import bz2
import re
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.errors import installed
from vlatool.media import limits

_COMPUTED = re.compile(r"\bVIRTUAL\b|\bGENERATED\b|\bAS\s*\(", re.I)


def open_reader(local: Path) -> Any:
    """An open reader of a file."""
    if local.suffix == ".db3":
        _check_tables(local)
        reader = installed("rosbags.rosbag2").Reader(local)
        reader.open()
        return reader
    library = installed("rosbags.rosbag1.reader")
    reader = library.Reader(local)
    try:
        reader.open()
    except (library.ReaderError, AssertionError, LookupError) as error:
        raise ValueError(f"its index is missing or damaged: {error or type(error)}") from error
    names = {function: name for name, function in library.decompressors.items()}
    for place, chunk in reader.chunks.items():
        most = max(chunk.datasize, limits.most_bytes())
        bounded = partial(_inflated, compression=names[chunk.decompressor], limit=most)
        reader.chunks[place] = chunk._replace(decompressor=bounded)
    return reader


def _check_tables(local: Path) -> None:
    """Raises ValueError for a database that computes its messages: they might never end."""
    with closing(sqlite3.connect(f"{local.absolute().as_uri()}?mode=ro", uri=True)) as database:
        for kind, name, sql in database.execute("SELECT type, name, sql FROM sqlite_master"):
            is_computed = kind == "table" and _COMPUTED.search(sql or "")
            if kind in ("view", "trigger") or is_computed:
                raise ValueError(f"{name} is no plain table")


def _inflated(data: bytes, compression: str, limit: int) -> bytes:
    """Content of a chunk; raises ValueError for more than `limit` bytes."""
    content = data
    if compression == "bz2":
        content = bz2.BZ2Decompressor().decompress(data, limit + 1)
    elif compression == "lz4":
        content = installed("lz4.frame").LZ4FrameDecompressor().decompress(data, limit + 1)
    if len(content) > limit:
        raise ValueError(f"inflates to more than {limit:,} bytes; see {limits.MEMORY_VARIABLE}")
    return content
