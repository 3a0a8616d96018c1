"""Readers of rosbags for db3 and ROS 1, and the records of ROS 1 bags without an index."""

import bz2
import re
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from vlatool.errors import installed
from vlatool.media import limits

MESSAGE = 2
CONNECTION = 7
KINDS = {"none": 2, "bz2": 3, "lz4": 4}  # compression to the kind of a segment
_CHUNK = 5
_MAGIC = b"#ROSBAG V2.0\n"
_MOST_OF_HEAD = 2**16  # bytes
_OPEN = 2**62  # end of a chunk whose length a recorder has not written yet
_LENGTH = struct.Struct("<I")
_COMPUTED = re.compile(r"\bVIRTUAL\b|\bGENERATED\b|\bAS\s*\(", re.I)


def open_reader(local: Path) -> Any:
    """An open reader of a file; None for a ROS 1 bag without an index that can be used."""
    if local.suffix == ".db3":
        _check_tables(local)
        reader = installed("rosbags.rosbag2").Reader(local)
        reader.open()
        return reader
    library = installed("rosbags.rosbag1.reader")
    reader = library.Reader(local)
    try:
        reader.open()
    except (library.ReaderError, AssertionError, LookupError, ValueError):
        return None
    kinds = {library.decompressors[name]: kind for name, kind in KINDS.items()}
    for place, chunk in reader.chunks.items():
        most = max(chunk.datasize, limits.most_bytes())
        bounded = partial(inflated, kind=kinds[chunk.decompressor], limit=most)
        reader.chunks[place] = chunk._replace(decompressor=bounded)
    return reader


def _check_tables(local: Path) -> None:
    """Raises ValueError for a database that computes its messages: they might never end."""
    with closing(sqlite3.connect(f"{local.absolute().as_uri()}?mode=ro", uri=True)) as database:
        for kind, name, sql in database.execute("SELECT type, name, sql FROM sqlite_master"):
            is_computed = kind == "table" and _COMPUTED.search(sql or "")
            if kind in ("view", "trigger") or is_computed:
                raise ValueError(f"{name} is no plain table")


def chunks(local: Path) -> Iterator[tuple[int, int, int]]:
    """(start, stop, kind) of the content of each chunk of a ROS 1 bag; the last may be cut off."""
    library = installed("rosbags.rosbag1.reader")
    with local.open("rb") as file:
        stop = len(_MAGIC)
        if file.read(stop) != _MAGIC:
            return
        while stop < _OPEN:
            file.seek(stop)
            head = BytesIO(file.read(_MOST_OF_HEAD))
            try:
                header = library.Header.read(head)
                length = library.read_uint32(head)
                is_chunk = header.get_uint8("op") == _CHUNK
                kind = KINDS[header.get_string("compression")] if is_chunk else 0
            except (library.ReaderError, LookupError, ValueError):
                return
            start = stop + head.tell()
            stop = start + length
            if is_chunk:
                stop = stop if length else _OPEN
                yield start, stop, kind


def inflated(data: bytes, kind: int, limit: int) -> bytes:
    """Content of a chunk, or the first bytes of one that is cut off.

    Raises ValueError for more than `limit` bytes.
    """
    content = data
    if kind == KINDS["bz2"]:
        content = bz2.BZ2Decompressor().decompress(data, limit + 1)
    elif kind == KINDS["lz4"]:
        content = installed("lz4.frame").LZ4FrameDecompressor().decompress(data, limit + 1)
    if len(content) > limit:
        raise ValueError(f"inflates to more than {limit:,} bytes; see {limits.MEMORY_VARIABLE}")
    return content


def records(data: bytes) -> Iterator[tuple[Any, int, bytes]]:
    """(header, start, content) of the records of a chunk, up to one that is cut off."""
    library = installed("rosbags.rosbag1.reader")
    stream = BytesIO(data)
    while True:
        try:
            header = library.Header.read(stream)
            length = library.read_uint32(stream)
            start = stream.tell()
            yield header, start, library.read_bytes(stream, length)
        except (library.ReaderError, ValueError):
            return


def connection(header: Any, content: bytes) -> tuple[str, str, bytes]:
    """Topic, type and definition of the messages of a connection."""
    library = installed("rosbags.rosbag1.reader")
    fields = library.Header.read(BytesIO(_LENGTH.pack(len(content)) + content))
    kind = library.normalize_msgtype(fields.get_string("type"))
    topic = library.normalize(header.get_string("topic"))
    return topic, kind, fields.get_string("message_definition").encode()
