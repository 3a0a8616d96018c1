"""Remote objects as files: ranged requests, with prefetching while reading is sequential."""

import io
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
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

SMALLEST_RANGE = 256 * 1024  # enough for zip directories and tar headers
LARGEST_RANGE = 8 * 1024 * 1024
_FIRST_RANGE = 1024 * 1024
_CHUNK_SIZE = 256 * 1024
_PROGRESS = 64 * 1024  # an interrupted body with this many new bytes counts as no failure
_PARALLEL = 4
_RESTARTS = 2  # of reading an object that changes meanwhile
_MAX_RANGES = 3  # cached ranges of a file with random access: its directory, its head, its middle


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
    count: int = 0  # number of bytes so far

    def run(self) -> bytes:
        """Returns the bytes of the range, fewer at the end of the object."""
        blocks: list[bytes] = []
        self.sink = blocks.append
        self.fill()
        return b"".join(blocks)

    def fill(self) -> None:
        """Downloads the bytes of the range that are not there, fewer at the end of the object."""
        while self.info is None or self.count < self.stop - self.start:
            try:
                call(self.address, self._receive)
            except ConditionFailed:
                raise changed_error(self.address) from None

    def _receive(self, remote: Remote) -> None:
        first = self.start + self.count
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
        if body.start != self.start + self.count:
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
        before = self.count
        while (missing := self.stop - self.start - self.count) > 0:
            try:
                block = body.read(min(_CHUNK_SIZE, missing))
            except Exception:
                if self.count - before < _PROGRESS:
                    raise
                return
            if not block:
                break
            self.sink(block)
            self.count += len(block)
        if self.count == before < self.stop - self.start:
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
    assert first.info is not None
    return head + _read_range(address, first.info, len(head), first.info.size)


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
    assert first.info is not None
    rest = _read_range(address, first.info, first.stop, min(stop, first.info.size))
    return head + rest


def open_reader(address: Address, *, from_end: bool = False) -> io.BufferedReader:
    """Opens the current version of an object as a seekable file.

    The first range is read immediately, so that a missing object raises here, as for any file.
    Memory: up to three ranges of at most 8 MiB each.
    """
    first = RangeDownload(address, -SMALLEST_RANGE if from_end else 0, SMALLEST_RANGE)
    data = first.run()
    assert first.info is not None
    return _buffered(_RangedFile(address, first.info, _Range(first.start, data)))


def open_range(address: Address, start: int, stop: int) -> io.BufferedReader:
    """Opens an object at `start`, for sequential reading up to `stop`, where the file ends."""
    first = RangeDownload(address, start, min(stop, start + _FIRST_RANGE))
    data = first.run()
    assert first.info is not None
    file = _RangedFile(address, first.info, _Range(start, data), stop)
    file.seek(start)
    return _buffered(file)


def _buffered(file: "_RangedFile") -> io.BufferedReader:
    return io.BufferedReader(file, 64 * 1024)


@dataclass(frozen=True)
class _Range:
    start: int
    data: bytes

    @property
    def stop(self) -> int:
        return self.start + len(self.data)


@dataclass(frozen=True)
class _Prefetch:
    """Range that is being downloaded."""

    start: int
    stop: int
    data: "Future[bytes]"


class RemoteReader(io.RawIOBase):
    """Unbuffered file over the first `size` bytes of one version of an object: its position."""

    def __init__(self, address: Address, info: ObjectInfo, size: int) -> None:
        self.name = str(address)
        self._address = address
        self._info = info
        self._size = size
        self._position = 0

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


class _RangedFile(RemoteReader):
    def __init__(
        self, address: Address, info: ObjectInfo, first: _Range, stop: int | None = None
    ) -> None:
        super().__init__(address, info, info.size if stop is None else min(stop, info.size))
        self._window = max(SMALLEST_RANGE, len(first.data))
        self._ranges = [first]
        self._prefetch: _Prefetch | None = None

    def readinto(self, buffer: Any, /) -> int:
        """Copies bytes of one range to the buffer; returns their number, 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not view:
            return 0
        source = self._range(len(view))
        offset = self._position - source.start
        count = min(len(view), source.stop - self._position)
        view[:count] = memoryview(source.data)[offset : offset + count]
        self._position += count
        return count

    def readall(self) -> bytes:
        """Reads the rest of the object, in parallel ranges."""
        start = self._position
        self._position = max(self._position, self._size)
        if start < (cached := self._ranges[-1]).stop and start >= cached.start:
            rest = _read_range(self._address, self._info, cached.stop, self._size)
            return cached.data[start - cached.start :] + rest
        return _read_range(self._address, self._info, start, self._size)

    def close(self) -> None:
        self._ranges = []
        self._prefetch = None
        super().close()

    def _range(self, size: int) -> _Range:
        """Range with the current position, which is before the end of the object."""
        for cached in self._ranges:
            if cached.start <= self._position < cached.stop:
                return cached
        prefetch = self._prefetch
        self._prefetch = None
        if prefetch is not None and prefetch.start <= self._position < prefetch.stop:
            result = _Range(prefetch.start, prefetch.data.result())
            self._ranges = [result]
            self._start_prefetch(result.stop)
        elif self._ranges[-1].stop == self._position:
            self._window = min(2 * self._window, LARGEST_RANGE)
            result = self._fetch(self._position, max(self._window, size))
            self._ranges = [result]
            self._start_prefetch(result.stop)
        else:
            self._window = SMALLEST_RANGE
            # After a position near the end, mostly an earlier one is read.
            start = max(0, min(self._position, self._size - SMALLEST_RANGE))
            result = self._fetch(start, max(SMALLEST_RANGE, size))
            self._ranges = [*self._ranges[1 - _MAX_RANGES :], result]
        return result

    def _fetch(self, start: int, length: int) -> _Range:
        stop = min(self._size, start + min(length, LARGEST_RANGE))
        return _Range(start, RangeDownload(self._address, start, stop, self._info).run())

    def _start_prefetch(self, start: int) -> None:
        self._window = min(2 * self._window, LARGEST_RANGE)
        stop = min(self._size, start + self._window)
        if start < stop:
            transfer = RangeDownload(self._address, start, stop, self._info)
            self._prefetch = _Prefetch(start, stop, in_background(transfer.run))
