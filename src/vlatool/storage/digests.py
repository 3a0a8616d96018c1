"""Digests of downloaded content: ours, and the comparison with the one of the server."""

import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.background import in_background
from vlatool.storage.reader import RangeDownload, RemoteReader
from vlatool.storage.remote import Address, ObjectInfo

_BLOCK_SIZE = 2 * 1024 * 1024
_MOST_BLOCKS = 48  # of a process, all files together


def open_blocks(address: Address, info: ObjectInfo) -> io.BufferedReader:
    """Opens a version of an object as a seekable file.

    Files of one object share their blocks, so that reading one part after the other, each with a
    file of its own, requests no byte twice. Memory: up to 96 MiB in a process.
    """
    return io.BufferedReader(_BlockFile(address, info), 64 * 1024)


@lru_cache(maxsize=_MOST_BLOCKS)
def _block(address: Address, info: ObjectInfo, number: int) -> bytes:
    start = number * _BLOCK_SIZE
    return RangeDownload(address, start, min(info.size, start + _BLOCK_SIZE), info).run()


class _BlockFile(RemoteReader):
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
        following = self._following
        read = partial(_block, self._address, self._info)
        data = (
            following[1].result()
            if following is not None and following[0] == number
            else read(number)
        )
        if number == self._last + 1 and (number + 1) * _BLOCK_SIZE < self._size:
            self._following = (number + 1, in_background(partial(read, number + 1)))
        self._last = number
        return data


def verified_sha256(
    where: object, digest: str, size: int, blocks: Iterable[bytes | bytearray]
) -> str:
    """Returns the hexadecimal SHA-256 of content, after comparing it with the server's digest.

    `size`: number of bytes of the content; `blocks`: the content, read once.
    """
    kind, _, expected = digest.partition(":")
    ours = hashlib.sha256()
    other = None
    if kind == "md5":
        other = hashlib.md5(usedforsecurity=False)
    elif kind == "git-sha1":
        other = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for block in blocks:
        ours.update(block)
        if other is not None:
            other.update(block)
    compared = ours if kind == "sha256" else other
    if compared is not None and compared.hexdigest() != expected:
        raise DataError.at(
            where,
            f"the content does not have the {kind} digest of the server",
            hint="run the same command again; if it fails again, the object or a proxy is damaged",
            code="data.wrong_digest",
        )
    return ours.hexdigest()


def has_git_digest(digest: str, size: int, blocks: Iterable[bytes | bytearray]) -> bool:
    """True if content has a digest of a hub: `sha256:` for large files, `git-sha1:` for others."""
    kind, _, expected = digest.partition(":")
    if kind == "sha256":
        ours = hashlib.sha256()
    else:
        ours = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for block in blocks:
        ours.update(block)
    return ours.hexdigest() == expected
