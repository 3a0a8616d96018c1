"""Remote objects as files: ranged requests, with prefetching while reading is sequential."""

import io
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from vlatool.errors import StorageError
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.remote import (
    Address,
    Body,
    ConditionFailed,
    ObjectInfo,
    RangeNotSatisfiable,
    Remote,
    call,
)

LARGEST_RANGE = 8 * 1024 * 1024
BLOCK = 2 * 1024 * 1024
_MOST_BLOCKS = 48  # of a process, all files together
_FIRST_RANGE = 256 * 1024  # enough for zip directories and tar headers
_BUFFER = 64 * 1024
_CHUNK_SIZE = 256 * 1024
_PROGRESS = 64 * 1024  # an interrupted body with this many new bytes counts as no failure
_PARALLEL = 4
_RESTARTS = 2  # of reading an object that changes meanwhile


@dataclass
class RangeDownload:
    """Download of a range of one version of an object; resumes at the byte reached."""

    address: Address  # the object
    start: int  # first byte. A negative one counts from the end; the first response sets it
    stop: int  # end of the range; the end of the object if that is less
    # version to read; None for the one of the first response, which sets it
    info: ObjectInfo | None = None
    is_range: bool = True  # False once the server has ignored the range and sent the whole object
    # called with the bytes, in order, as they come; may wait or raise
    sink: Callable[[bytes], object] = lambda block: None
    received: int = 0  # number of bytes so far

    def run(self) -> bytes:
        """Returns the bytes of the range, fewer at the end of the object."""
        blocks: list[bytes] = []
        self.sink = blocks.append
        self.fill()
        return b"".join(blocks)

    def fill(self) -> None:
        """Gives the bytes of the range to the sink."""
        while self.info is None or self.received < self.stop - self.start:
            try:
                call(self.address, self._receive)
            except ConditionFailed:
                raise changed_error(self.address) from None

    @property
    def version(self) -> ObjectInfo:
        """The version that was read."""
        assert self.info is not None
        return self.info

    def _receive(self, remote: Remote) -> None:
        first = self.start + self.received
        etag = self.info.etag if self.info else ""
        try:
            body = remote.get(self.address.key, first, self.stop, etag)
        except RangeNotSatisfiable:
            if self.info is not None:
                raise ConditionFailed from None  # the earlier version had these bytes
            self.info = ObjectInfo()
            self.start = max(0, self.start)
            self.stop = self.start  # the object has no bytes from there on
            return
        try:
            self._adopt(body)
            self._copy(body)
        finally:
            body.close()

    def _adopt(self, body: Body) -> None:
        """Keeps version and size of the first response; checks later responses against them."""
        if self.info is not None and _version(self.info) != _version(body.info):
            raise ConditionFailed
        if self.start < 0:
            self.stop = body.info.size
            self.start = max(0, body.info.size + self.start)
        if body.start != self.start + self.received:
            raise StorageError.at(
                self.address,
                "the server ignores byte ranges, which are required",
                hint="copy the data to a local folder and give its path",
                code="storage.unsupported",
            )
        self.info = body.info
        self.is_range = body.is_range
        self.stop = min(self.stop, body.info.size)

    def _copy(self, body: Body) -> None:
        before = self.received
        while (missing := self.stop - self.start - self.received) > 0:
            try:
                block = body.read(min(_CHUNK_SIZE, missing))
            except Exception:
                if self.received - before < _PROGRESS:
                    raise
                return
            if not block:
                break
            self.sink(block)
            self.received += len(block)
        if self.received == before < self.stop - self.start:
            raise ConnectionResetError(f"{self.address}: response without content")


def _version(info: ObjectInfo) -> tuple[str, int]:
    return info.etag, info.size


def changed_error(where: object) -> StorageError:
    """Error for an object that changed while it was read."""
    return StorageError.at(
        where,
        "changed while it was being read",
        hint="wait until it is written completely, then run the same command again",
        code="storage.changed",
    )


def read_whole(address: Address) -> bytes:
    """Reads an object, large ones in parallel ranges; restarts if the object changes."""
    for _ in range(_RESTARTS):
        try:
            return _read_whole(address)
        except StorageError as error:
            if error.code != "storage.changed":
                raise
    return _read_whole(address)


def _read_whole(address: Address) -> bytes:
    first = RangeDownload(address, 0, LARGEST_RANGE)
    head = first.run()
    return head + _read_range(address, first.version, len(head), first.version.size)


def _read_range(address: Address, info: ObjectInfo, start: int, stop: int) -> bytes:
    """Reads bytes `start` to `stop`, several ranges concurrently."""
    transfers = (
        RangeDownload(address, first, min(stop, first + LARGEST_RANGE), info)
        for first in range(start, stop, LARGEST_RANGE)
    )
    return b"".join(in_parallel(RangeDownload.run, transfers, _PARALLEL))


def read_range(address: Address, start: int, stop: int) -> bytes:
    """Reads bytes `start` to `stop`, fewer at the end of the object; one request below 8 MiB."""
    first = RangeDownload(address, start, min(stop, start + LARGEST_RANGE))
    head = first.run()
    rest = _read_range(address, first.version, first.stop, min(stop, first.version.size))
    return head + rest


def open_reader(address: Address, *, from_end: bool = False) -> io.BufferedReader:
    """Opens the current version of an object as a seekable file.

    The first range is read immediately, so that a missing object raises here, as for any file.
    """
    first = RangeDownload(address, -_FIRST_RANGE if from_end else 0, _FIRST_RANGE)
    data = first.run()
    return io.BufferedReader(BlockFile(address, first.version, (first.start, data)), _BUFFER)


def open_range(address: Address, start: int, stop: int) -> io.BufferedReader:
    """Opens an object at `start`, for sequential reading up to `stop`, where the file ends."""
    first = RangeDownload(address, start, min(stop, start - start % BLOCK + BLOCK))
    data = first.run()
    file = BlockFile(address, first.version, (start, data), stop)
    file.seek(start)
    return io.BufferedReader(file, _BUFFER)


def open_version(address: Address, info: ObjectInfo) -> io.BufferedReader:
    """Opens a version of an object as a seekable file, without a request."""
    return io.BufferedReader(BlockFile(address, info), _BUFFER)


@lru_cache(maxsize=_MOST_BLOCKS)
def _block(address: Address, info: ObjectInfo, start: int, stop: int) -> bytes:
    return RangeDownload(address, start, stop, info).run()


class BlockFile(io.RawIOBase):
    """Unbuffered file over one version of an object, in blocks.

    While reading is sequential, the next block is requested meanwhile. All files of a process share
    their blocks, so that files of one object request no byte twice. Memory: up to 96 MiB.
    """

    def __init__(
        self,
        address: Address,
        info: ObjectInfo,
        first: tuple[int, bytes] = (0, b""),  # bytes that are there, and their position
        stop: int = 2**63,  # end of the file
    ) -> None:
        self.name = str(address)
        self._address = address
        self._info = info
        self._size = min(stop, info.size)
        self._first = first
        self._position = 0
        self._last = -1  # number of the block that was read last
        self._next: Future[bytes] | None = None  # the block after it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a position, without a request."""
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in starts:
            raise ValueError(f"invalid whence {whence}")
        if starts[whence] + offset < 0:
            raise OSError(22, "negative seek position")
        self._position = starts[whence] + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Copies bytes of one block to the buffer; returns their number, 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not view:
            return 0
        start, data = self._first
        if not start <= self._position < start + len(data):
            number = self._position // BLOCK
            start, data = number * BLOCK, self._read(number)
        offset = self._position - start
        part = memoryview(data)[offset : offset + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        """Reads the rest of the file, in parallel ranges."""
        position = self._position
        self._position = max(position, self._size)
        start, data = self._first
        head = data[position - start :] if 0 <= position - start < len(data) else b""
        return head + _read_range(self._address, self._info, position + len(head), self._size)

    def _read(self, number: int) -> bytes:
        is_next = number == self._last + 1
        if is_next and self._next is not None:
            data = self._next.result()
        else:
            data = self._block(number)
        if number != self._last:
            self._next = None
            if is_next and (number + 1) * BLOCK < self._size:
                self._next = in_background(partial(self._block, number + 1))
            self._last = number
        return data

    def _block(self, number: int) -> bytes:
        start = number * BLOCK
        return _block(self._address, self._info, start, min(self._size, start + BLOCK))
