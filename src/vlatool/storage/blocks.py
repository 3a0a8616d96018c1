"""Remote objects as files with random access, over blocks that a process reads once."""

import io
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

from vlatool.storage.background import in_background
from vlatool.storage.reader import RangeDownload, RemoteFile
from vlatool.storage.remote import Address, ObjectInfo, call

_BLOCK_SIZE = 2 * 1024 * 1024
_MOST_BLOCKS = 48  # of a process, all files together


def open_blocks(address: Address) -> io.BufferedReader:
    """Opens the current version of an object as a seekable file.

    Files of one object share their blocks, so that reading one part after the other, each with a
    file of its own, requests no byte twice. Memory: up to 96 MiB in a process.
    """
    info = call(address, lambda remote: remote.head(address.key))
    return io.BufferedReader(_BlockFile(address, info), 64 * 1024)


@lru_cache(maxsize=_MOST_BLOCKS)
def _block(address: Address, info: ObjectInfo, number: int) -> bytes:
    start = number * _BLOCK_SIZE
    return RangeDownload(address, start, min(info.size, start + _BLOCK_SIZE), info).run()


class _BlockFile(RemoteFile):
    """File that reads blocks."""

    def __init__(self, address: Address, info: ObjectInfo) -> None:
        super().__init__(address, info, info.size)
        self._last = -2
        self._following: tuple[int, Future[bytes]] | None = None

    def readinto(self, buffer: Any, /) -> int:
        """Copies bytes of one block to the buffer; returns their number, 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not view:
            return 0
        number, offset = divmod(self._position, _BLOCK_SIZE)
        data = memoryview(self._read(number))[offset : offset + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, number: int) -> bytes:
        """A block; while reading is sequential, the next one is requested meanwhile."""
        following, read = self._following, partial(_block, self._address, self._info)
        data = (
            following[1].result()
            if following is not None and following[0] == number
            else read(number)
        )
        if number == self._last + 1 and (number + 1) * _BLOCK_SIZE < self._size:
            self._following = (number + 1, in_background(partial(read, number + 1)))
        self._last = number
        return data
