"""S3 objects as files: ranged requests, read ahead while reading is sequential."""

import io
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vlatool.errors import DataError, StorageError
from vlatool.storage import s3
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.s3_errors import ConditionFailed, error_code

SMALLEST_RANGE = 256 * 1024  # zip directories and tar headers should not cost megabytes
LARGEST_RANGE = 8 * 1024 * 1024
_FIRST_OF_STREAM = 1024 * 1024
_PIECE = 256 * 1024
_PROGRESS = 64 * 1024  # a cut body that brought this much is no failure, only an interruption
_PARALLEL = 4
_KEPT = 3  # recent ranges of a file read here and there: its directory, its head, its middle


@dataclass
class _Transfer:
    """One range of one version of an object; after a cut it goes on at the byte reached.

    A negative `start` asks for so many bytes before the end; the first answer says where they are.
    """

    address: s3.Address
    start: int
    stop: int
    facts: s3.Facts | None = None
    received: bytearray = field(default_factory=bytearray)

    def run(self) -> bytes:
        """The bytes of the range, fewer where the object ends."""
        while self.facts is None or len(self.received) < self.stop - self.start:
            try:
                s3.call(self.address, self._receive)
            except ConditionFailed:
                raise DataError(
                    f"{self.address}: changed while it was being read",
                    hint="let whoever writes it finish, then run the same command again",
                    code="data.changed",
                    details={"path": str(self.address)},
                ) from None
        return bytes(self.received)

    def _receive(self, client: Any) -> None:
        first = self.start + len(self.received)
        span = str(self.start) if self.start < 0 else f"{first}-{self.stop - 1}"
        request = {**self.address.place, "Range": f"bytes={span}"}
        if self.facts is not None:
            request["IfMatch"] = self.facts.etag
        try:
            answer = client.get_object(**request)
        except Exception as error:
            if error_code(error) != "InvalidRange" or self.facts is not None:
                raise
            self._end_before(self.start)  # only an empty object has no byte 0
            return
        if self.start < 0 and not answer.get("ContentLength"):
            self._end_before(0)  # some servers answer so where others refuse the range
            return
        self._adopt(answer)
        self._copy(answer["Body"])

    def _end_before(self, position: int) -> None:
        """Nothing is there."""
        self.facts, self.start = s3.Facts(), max(0, position)
        self.stop = self.start

    def _adopt(self, answer: Mapping[str, Any]) -> None:
        """Pins the version that the first answer is about."""
        span, _, total = str(answer.get("ContentRange", "")).partition("/")
        if self.start < 0 and total.isdigit():
            self.stop = int(total)
            self.start = max(0, self.stop + self.start)
        if span.partition("-")[0] != f"bytes {self.start + len(self.received)}":
            raise StorageError(
                f"{self.address}: the server ignores ranges, so its files cannot be read in parts",
                hint="copy the data to a local folder and give its path",
                code="storage.unsupported",
                details={"path": str(self.address)},
            )
        size = int(total)
        self.facts = self.facts or s3.facts(answer, size)
        self.stop = min(self.stop, size)

    def _copy(self, body: Any) -> None:
        before = len(self.received)
        try:
            while len(self.received) < self.stop - self.start:
                piece: bytes = body.read(_PIECE)
                if not piece:
                    break
                self.received += piece
        except Exception:
            if len(self.received) - before < _PROGRESS:
                raise
        finally:
            body.close()


def read_whole(address: s3.Address) -> bytes:
    """An object's bytes; large ones in parallel ranges."""
    first = _Transfer(address, 0, LARGEST_RANGE)
    head = first.run()
    assert first.facts is not None
    return head + _read_range(address, first.facts, len(head), first.facts.size)


def _read_range(address: s3.Address, facts: s3.Facts, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop`, several ranges at a time."""
    transfers = (
        _Transfer(address, first, min(stop, first + LARGEST_RANGE), facts)
        for first in range(start, stop, LARGEST_RANGE)
    )
    return b"".join(in_parallel(_Transfer.run, transfers, _PARALLEL))


def read_range(address: s3.Address, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop`, fewer where the object ends; one request below 8 MiB.

    Raises:
        FileNotFoundError: There is no such object.
    """
    first = _Transfer(address, start, min(stop, start + LARGEST_RANGE))
    head = first.run()
    assert first.facts is not None
    rest = _read_range(address, first.facts, first.stop, min(stop, first.facts.size))
    return head + rest


def open_reader(address: s3.Address, *, from_end: bool = False) -> io.BufferedReader:
    """A seekable file over the version that the object has now.

    The first range is read at once, so that an object that is missing is told here, as for any
    file. Memory: up to three ranges, each of at most 8 MiB.

    Args:
        address: The object.
        from_end: Read the last range first, not the first.

    Raises:
        FileNotFoundError: There is no such object.
    """
    first = _Transfer(address, -SMALLEST_RANGE if from_end else 0, SMALLEST_RANGE)
    known = first.run()
    assert first.facts is not None
    return _buffered(_RangedFile(address, first.facts, _Range(first.start, known)))


def open_range(address: s3.Address, start: int, stop: int) -> io.BufferedReader:
    """A file positioned at `start`, to be read onwards to `stop`, where it ends.

    Raises:
        FileNotFoundError: There is no such object.
    """
    first = _Transfer(address, start, min(stop, start + _FIRST_OF_STREAM))
    known = first.run()
    assert first.facts is not None
    file = _RangedFile(address, first.facts, _Range(start, known), stop)
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
class _Ahead:
    """A range on its way."""

    start: int
    stop: int
    data: "Future[bytes]"


class _RangedFile(io.RawIOBase):
    """The bytes of one version of an object; wants a buffer around it."""

    def __init__(
        self, address: s3.Address, facts: s3.Facts, known: _Range, stop: int | None = None
    ) -> None:
        self.name = str(address)
        self._address = address
        self._facts = facts
        self._size = facts.size if stop is None else min(stop, facts.size)
        self._position = 0
        self._window = max(SMALLEST_RANGE, len(known.data))
        self._ranges = [known]
        self._ahead: _Ahead | None = None

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
            rest = _read_range(self._address, self._facts, kept.stop, self._size)
            return kept.data[start - kept.start :] + rest
        return _read_range(self._address, self._facts, start, self._size)

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
        return _Range(start, _Transfer(self._address, start, stop, self._facts).run())

    def _read_ahead(self, start: int) -> None:
        self._window = min(2 * self._window, LARGEST_RANGE)
        stop = min(self._size, start + self._window)
        if start < stop:
            transfer = _Transfer(self._address, start, stop, self._facts)
            self._ahead = _Ahead(start, stop, in_background(transfer.run))
