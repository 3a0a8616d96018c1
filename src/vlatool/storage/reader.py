"""Remote objects as files: ranged requests, read ahead while reading is sequential."""

import io
from concurrent.futures import Future
from dataclasses import dataclass, field
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

SMALLEST_RANGE = 256 * 1024  # zip directories and tar headers should not cost megabytes
LARGEST_RANGE = 8 * 1024 * 1024
_FIRST_OF_STREAM = 1024 * 1024
_CHUNK_SIZE = 256 * 1024
_PROGRESS = 64 * 1024  # a cut body that brought this much is no failure, only an interruption
_PARALLEL = 4
_VERSIONS = 2  # an object that changes while it is read is read again so often
_KEPT = 3  # recent ranges of a file read here and there: its directory, its head, its middle


@dataclass
class _RangeDownload:
    """One range of one version of an object; after a cut it goes on at the byte reached.

    A negative `start` asks for so many bytes before the end; the first answer says where they are.
    """

    address: Address
    start: int
    stop: int
    info: ObjectInfo | None = None
    received: bytearray = field(default_factory=bytearray)

    def run(self) -> bytes:
        """The bytes of the range, fewer where the object ends."""
        while self.info is None or len(self.received) < self.stop - self.start:
            try:
                call(self.address, self._receive)
            except ConditionFailed:
                raise changed_error(self.address) from None
        return bytes(self.received)

    def _receive(self, remote: Remote) -> None:
        first = self.start + len(self.received)
        etag = self.info.etag if self.info else ""
        try:
            body = remote.get(self.address.key, first, self.stop, etag)
        except RangeNotSatisfiable:
            if self.info is not None:
                raise ConditionFailed from None  # it had these bytes
            self._end_before(self.start)
            return
        try:
            self._adopt(body)
            self._copy(body)
        finally:
            body.close()

    def _end_before(self, position: int) -> None:
        """Nothing is there."""
        self.info, self.start = ObjectInfo(), max(0, position)
        self.stop = self.start

    def _adopt(self, body: Body) -> None:
        """Pins the version that the first answer is about."""
        if self.info is not None and _version(self.info) != _version(body.info):
            raise ConditionFailed
        if self.start < 0:
            self.stop, self.start = body.info.size, max(0, body.info.size + self.start)
        if body.start != self.start + len(self.received):
            raise StorageError(
                f"{self.address}: the server ignores ranges, so its files cannot be read in parts",
                hint="copy the data to a local folder and give its path",
                code="storage.unsupported",
                details={"path": str(self.address)},
            )
        self.info = body.info
        self.stop = min(self.stop, body.info.size)

    def _copy(self, body: Body) -> None:
        before = len(self.received)
        try:
            while (missing := self.stop - self.start - len(self.received)) > 0:
                chunk = body.read(min(_CHUNK_SIZE, missing))
                if not chunk:
                    break
                self.received += chunk
        except Exception:
            if len(self.received) - before < _PROGRESS:
                raise
        if len(self.received) == before < self.stop - self.start:
            raise ConnectionResetError(f"{self.address}: an answer without the bytes it promised")


def _version(info: ObjectInfo) -> tuple[str, int]:
    return info.etag, info.size


def changed_error(where: object) -> StorageError:
    """The error for an object that is not what it was when its reading began."""
    return StorageError(
        f"{where}: changed while it was being read",
        hint="let whoever writes it finish, then run the same command again",
        code="storage.changed",
        details={"path": str(where)},
    )


def read_whole(address: Address) -> bytes:
    """An object's bytes; large ones in parallel ranges, from the start again if it changes."""
    for _ in range(_VERSIONS):
        try:
            return _read_whole(address)
        except StorageError as error:
            if error.code != "storage.changed":
                raise
    return _read_whole(address)


def _read_whole(address: Address) -> bytes:
    first = _RangeDownload(address, 0, LARGEST_RANGE)
    head = first.run()
    assert first.info is not None
    return head + _read_range(address, first.info, len(head), first.info.size)


def _read_range(address: Address, info: ObjectInfo, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop`, several ranges at a time."""
    transfers = (
        _RangeDownload(address, first, min(stop, first + LARGEST_RANGE), info)
        for first in range(start, stop, LARGEST_RANGE)
    )
    return b"".join(in_parallel(_RangeDownload.run, transfers, _PARALLEL))


def read_range(address: Address, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop`, fewer where the object ends; one request below 8 MiB.

    Raises:
        FileNotFoundError: There is no such object.
    """
    first = _RangeDownload(address, start, min(stop, start + LARGEST_RANGE))
    head = first.run()
    assert first.info is not None
    rest = _read_range(address, first.info, first.stop, min(stop, first.info.size))
    return head + rest


def open_reader(address: Address, *, from_end: bool = False) -> io.BufferedReader:
    """A seekable file over the version that the object has now.

    The first range is read at once, so that an object that is missing is told here, as for any
    file. Memory: up to three ranges, each of at most 8 MiB.

    Args:
        address: The object.
        from_end: Read the last range first, not the first.

    Raises:
        FileNotFoundError: There is no such object.
    """
    first = _RangeDownload(address, -SMALLEST_RANGE if from_end else 0, SMALLEST_RANGE)
    known = first.run()
    assert first.info is not None
    return _buffered(_RangedFile(address, first.info, _Range(first.start, known)))


def open_range(address: Address, start: int, stop: int) -> io.BufferedReader:
    """A file positioned at `start`, to be read onwards to `stop`, where it ends.

    Raises:
        FileNotFoundError: There is no such object.
    """
    first = _RangeDownload(address, start, min(stop, start + _FIRST_OF_STREAM))
    known = first.run()
    assert first.info is not None
    file = _RangedFile(address, first.info, _Range(start, known), stop)
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
    """A range on its way."""

    start: int
    stop: int
    data: "Future[bytes]"


class _RangedFile(io.RawIOBase):
    """The bytes of one version of an object; wants a buffer around it."""

    def __init__(
        self, address: Address, info: ObjectInfo, known: _Range, stop: int | None = None
    ) -> None:
        self.name = str(address)
        self._address = address
        self._info = info
        self._size = info.size if stop is None else min(stop, info.size)
        self._position = 0
        self._window = max(SMALLEST_RANGE, len(known.data))
        self._ranges = [known]
        self._ahead: _Prefetch | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves without a request."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in origin:
            raise ValueError(f"invalid whence {whence}")
        if origin[whence] + offset < 0:
            raise OSError(22, "negative seek position")
        self._position = origin[whence] + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fills what one range has for the buffer; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not view:
            return 0
        found = self._range(len(view))
        offset = self._position - found.start
        count = min(len(view), found.stop - self._position)
        view[:count] = memoryview(found.data)[offset : offset + count]
        self._position += count
        return count

    def readall(self) -> bytes:
        """The rest of the object, in parallel ranges."""
        start, self._position = self._position, max(self._position, self._size)
        if start < (kept := self._ranges[-1]).stop and start >= kept.start:
            rest = _read_range(self._address, self._info, kept.stop, self._size)
            return kept.data[start - kept.start :] + rest
        return _read_range(self._address, self._info, start, self._size)

    def close(self) -> None:
        """Forgets what was read."""
        self._ranges, self._ahead = [], None
        super().close()

    def _range(self, wanted: int) -> _Range:
        """A range that holds the current position, which lies inside the object."""
        for kept in self._ranges:
            if kept.start <= self._position < kept.stop:
                return kept
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.start <= self._position < ahead.stop:
            found = _Range(ahead.start, ahead.data.result())
            self._ranges = [found]
            self._read_ahead(found.stop)
        elif self._ranges[-1].stop == self._position:
            self._window = min(2 * self._window, LARGEST_RANGE)
            found = self._fetch(self._position, max(self._window, wanted))
            self._ranges = [found]
            self._read_ahead(found.stop)
        else:
            self._window = SMALLEST_RANGE
            # What is asked for near the end is mostly preceded by what is asked for next.
            start = max(0, min(self._position, self._size - SMALLEST_RANGE))
            found = self._fetch(start, max(SMALLEST_RANGE, wanted))
            self._ranges = [*self._ranges[1 - _KEPT :], found]
        return found

    def _fetch(self, start: int, length: int) -> _Range:
        stop = min(self._size, start + min(length, LARGEST_RANGE))
        return _Range(start, _RangeDownload(self._address, start, stop, self._info).run())

    def _read_ahead(self, start: int) -> None:
        self._window = min(2 * self._window, LARGEST_RANGE)
        stop = min(self._size, start + self._window)
        if start < stop:
            transfer = _RangeDownload(self._address, start, stop, self._info)
            self._ahead = _Prefetch(start, stop, in_background(transfer.run))
