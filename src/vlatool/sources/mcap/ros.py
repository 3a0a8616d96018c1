"""Readers of rosbags: db3, and ROS 1 bags, whose index is made where it is missing."""

import bz2
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from vlatool.errors import installed
from vlatool.findings import Finding
from vlatool.sources.mcap.rules import MCAP

_MAGIC = b"#ROSBAG V2.0\n"
_MESSAGE, _CHUNK, _CONNECTION = 2, 5, 7  # kinds of records
_LARGEST = 2**28  # bytes of a chunk
_LARGEST_HEADER = 2**20


def open_reader(path: Path, local: Path, findings: list[Finding]) -> Any:
    """An open reader of a file; `findings` gets that its index was made, and what is cut off."""
    if local.suffix == ".db3":
        reader = installed("rosbags.rosbag2").Reader(local)
        reader.open()
        return reader
    library = installed("rosbags.rosbag1.reader")
    reader = library.Reader(local)
    try:
        reader.open()
    except (library.ReaderError, AssertionError, LookupError, ValueError) as error:
        status = local.stat()
        index = _index(local, status.st_size, status.st_mtime_ns)
        if not index.messages:
            hint = "check that it is a bag of ROS 1, or exclude it with --exclude"
            raise MCAP.error("unreadable", path, error, "no message is whole", hint=hint) from error
        reader.bio = local.open("rb")
        reader.connections = list(index.connections.values())
        reader.indexes, reader.chunks = dict(index.times), dict(index.chunks)
        reason = f"has no index that can be used; it is read from start to end: {error}"
        findings.append(MCAP.at("bad_index", path, reason))
        for reason in index.damages:
            findings.append(MCAP.at("cut_off", path, reason))
    return reader


@dataclass
class _Index:
    """Index of a ROS 1 bag in the form of the reader of rosbags."""

    connections: dict[int, Any] = field(default_factory=dict[int, Any])
    times: dict[int, list[Any]] = field(default_factory=dict[int, list[Any]])
    chunks: dict[int, Any] = field(default_factory=dict[int, Any])
    messages: int = 0
    damages: list[str] = field(default_factory=list[str])


@lru_cache(maxsize=8)
def _index(path: Path, size: int, changed: int) -> _Index:
    """The index of a file, by reading it up to the first record that is cut off."""
    library = installed("rosbags.rosbag1.reader")
    index = _Index()
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return index
        end = file.tell()
        while end < size:
            try:
                header, length = _record_head(library, file)
                is_chunk = header.get_uint8("op") == _CHUNK
                compression = header.get_string("compression") if is_chunk else ""
            except (library.ReaderError, ValueError):
                break
            start = file.tell()
            stop = start + length
            if is_chunk and not length:  # a recorder writes it when the chunk is complete
                stop = size
            if is_chunk:
                data = file.read(min(stop - start, _LARGEST))
                index.chunks[end] = library.Chunk(len(data), start, partial(_inflated, compression))
                whole = _add_chunk(library, index, end, compression, data)
                stop = stop if length else start + whole
            if stop > size:
                break
            end = stop
            file.seek(end)
    if end < size:
        index.damages.append(f"ends at byte {end} of {size}, read up to message {index.messages}")
    for number, times in index.times.items():
        times.sort()
        index.connections[number] = index.connections[number]._replace(msgcount=len(times))
    return index


def _record_head(library: Any, file: IO[bytes]) -> tuple[Any, int]:
    """Header of a record, and the number of bytes behind it."""
    start = file.tell()
    if library.read_uint32(file) > _LARGEST_HEADER:
        raise library.ReaderError("a header is too long")
    file.seek(start)
    return library.Header.read(file), library.read_uint32(file)


def _inflated(compression: str, data: bytes) -> bytes:
    """Content of a chunk, or the first bytes of one that is cut off."""
    if compression == "none":
        return data
    if compression == "bz2":
        return bz2.BZ2Decompressor().decompress(data, _LARGEST)
    if compression == "lz4":
        return installed("lz4.frame").LZ4FrameDecompressor().decompress(data, _LARGEST)
    raise ValueError(f"unknown compression {compression!r}")


def _add_chunk(library: Any, index: _Index, position: int, compression: str, data: bytes) -> int:
    """Adds the connections and messages of a chunk; returns the number of bytes that are whole."""
    try:
        content = _inflated(compression, data)
    except (ValueError, OSError, EOFError, RuntimeError) as error:
        index.damages.append(f"byte {position}: a chunk is left out: {error}")
        return 0
    stream = BytesIO(content)
    parser = library.Reader(Path())  # of connections
    parser.bio = stream
    whole = 0
    while whole < len(content):
        try:
            header, length = _record_head(library, stream)
            library.read_bytes(stream, length)
            after = stream.tell()
            kind = header.get_uint8("op")
            number = header.get_uint32("conn") if kind in (_MESSAGE, _CONNECTION) else -1
            if kind == _CONNECTION:
                stream.seek(whole)
                index.connections.setdefault(number, parser.read_connection())
                index.times.setdefault(number, [])
                stream.seek(after)
            elif kind == _MESSAGE and number in index.times:
                time = library.IndexData(header.get_time("time"), position, whole)
                index.times[number].append(time)
                index.messages += 1
        except (library.ReaderError, ValueError, LookupError):
            break
        whole = after
    return whole
