"""Byte ranges of files, so that only the needed part of a large remote file is downloaded."""

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from vlatool.storage import reader
from vlatool.storage.background import in_parallel
from vlatool.storage.remote_path import RemotePath

_MAX_CONCURRENT = 8


def open_file(path: Path) -> io.BufferedReader:
    """Opens a file of unknown origin for reading, local or remote."""
    if isinstance(path, RemotePath):
        return reader.open_reader(path.address)
    return open(path, "rb", opener=_open_regular)


def read_file(path: Path) -> bytes:
    """Content of a file of unknown origin; raises as `open_file`."""
    if isinstance(path, RemotePath):
        return path.read_bytes()
    with open_file(path) as file:
        return file.read()


def _open_regular(name: str, flags: int) -> int:
    file = os.open(name, flags | os.O_NONBLOCK)  # else a pipe without a writer blocks
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` raises for a folder
        return file
    os.close(file)
    raise FileNotFoundError(errno.ENOENT, "a pipe or a device, no file", name)


class ByteRange(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int


def read_byte_range(byte_range: ByteRange) -> bytes:
    """Reads a byte range, shorter at the end of the file; one request if the file is remote."""
    path, start, stop = byte_range
    if isinstance(path, RemotePath):
        return reader.read_range(path.address, start, stop)
    with open_file(path) as file:
        file.seek(start)
        return file.read(stop - start)


def read_byte_ranges(
    ranges: Iterable[ByteRange], max_concurrent: int = _MAX_CONCURRENT
) -> Iterator[bytes]:
    """Yields the bytes of each range in order; remote ranges are read concurrently."""
    remaining = iter(ranges)
    first = next(remaining, None)
    if first is None:
        return
    every = chain([first], remaining)
    if isinstance(first.path, RemotePath):
        yield from in_parallel(read_byte_range, every, max_concurrent)
    else:
        yield from map(read_byte_range, every)


def open_byte_range(byte_range: ByteRange) -> IO[bytes]:
    """Opens a file at the start of a range; bytes after the range are not prefetched."""
    path, start, stop = byte_range
    if isinstance(path, RemotePath):
        return reader.open_range(path.address, start, stop)
    file = open_file(path)
    file.seek(start)
    return file


def open_tail(path: Path) -> IO[bytes]:
    """Opens a file to read its end first, such as an archive with its directory at the end."""
    if isinstance(path, RemotePath):
        return reader.open_reader(path.address, from_end=True)
    return open_file(path)
