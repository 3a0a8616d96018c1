"""Parts of files, so that of a large remote file only what is needed is fetched."""

import errno
import io
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlatool.storage import reader
from vlatool.storage.background import in_parallel
from vlatool.storage.remote_path import RemotePath

_AT_ONCE = 8
_PASSED_OVER = 1 << 20


class ByteRange(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int


def read_byte_range(byte_range: ByteRange) -> bytes:
    """The bytes of a part, fewer where the file ends; one request where it is remote.

    Raises:
        FileNotFoundError: There is no such file, but nothing, or a pipe or device without an end.
    """
    path, start, stop = byte_range
    if isinstance(path, RemotePath):
        return reader.read_range(path.address, start, stop)
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder fails by itself
        raise FileNotFoundError(errno.ENOENT, "a pipe or a device, no file", str(path))
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def read_byte_ranges(
    ranges: Iterable[ByteRange], max_concurrent: int = _AT_ONCE
) -> Iterator[bytes]:
    """The bytes of each part in order; `at_once` remote ones are on their way at a time."""
    wanted = iter(ranges)
    first = next(wanted, None)
    if first is None:
        return
    every = chain([first], wanted)
    if isinstance(first.path, RemotePath):
        yield from in_parallel(read_byte_range, every, max_concurrent)
    else:
        yield from map(read_byte_range, every)


def open_byte_range(byte_range: ByteRange) -> IO[bytes]:
    """A file positioned at the start of a part; what is behind the part is not read ahead."""
    path, start, stop = byte_range
    if isinstance(path, RemotePath):
        return reader.open_range(path.address, start, stop)
    file = path.open("rb")
    file.seek(start)
    return file


def open_tail(path: Path) -> IO[bytes]:
    """A file of which the end is wanted first, as of archives with their directory there."""
    if isinstance(path, RemotePath):
        return reader.open_reader(path.address, from_end=True)
    return path.open("rb")


def open_forward(path: Path) -> IO[bytes]:
    """A file that is read from its start to its end, some of it passed over.

    Of a remote one what is passed over is read as well, because a few large ranges cost less than
    many small ones.
    """
    file = path.open("rb")
    return (
        io.BufferedReader(_ForwardFile(file), _PASSED_OVER)
        if isinstance(path, RemotePath)
        else file
    )


class _ForwardFile(io.RawIOBase):
    """A file that seeks forward by reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fills the buffer; less at the end."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves; forward by reading."""
        if whence == io.SEEK_CUR:
            offset, whence = self._file.tell() + offset, io.SEEK_SET
        if whence == io.SEEK_END or offset < self._file.tell():
            return self._file.seek(offset, whence)
        while (missing := offset - self._file.tell()) and self._file.read(
            min(missing, _PASSED_OVER)
        ):
            pass
        return self._file.tell()

    def close(self) -> None:
        """Closes the file below."""
        self._file.close()
        super().close()
