"""Byte ranges of files, so that only the needed part of a large remote file is downloaded."""

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlatool.storage import reader
from vlatool.storage.background import in_parallel
from vlatool.storage.remote_path import RemotePath

_MAX_CONCURRENT = 8
_SKIP_SIZE = 1 << 20


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


def open_forward(path: Path) -> IO[bytes]:
    """Opens a file that is read from start to end with some parts skipped.

    Skipped parts of a remote file are read too, because a few large requests cost less than many
    small ones.
    """
    file = open_file(path)
    return (
        io.BufferedReader(_ForwardFile(file), _SKIP_SIZE) if isinstance(path, RemotePath) else file
    )


class _ForwardFile(io.RawIOBase):
    """File that seeks forward by reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Reads bytes into the buffer; fewer at the end of the file."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a position; a forward move reads the bytes between."""
        if whence == io.SEEK_CUR:
            offset = self._file.tell() + offset
            whence = io.SEEK_SET
        if whence == io.SEEK_END or offset < self._file.tell():
            return self._file.seek(offset, whence)
        while (missing := offset - self._file.tell()) and self._file.read(min(missing, _SKIP_SIZE)):
            pass
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
