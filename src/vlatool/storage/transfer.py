"""Downloads of objects to local files, in parallel byte ranges, resumed after any interruption.

An object of up to one chunk is read into memory and written at once. A larger one is a file of its
full size in a partial folder, with a log of the chunks that it holds; it gets its name when it is
complete and its digest is known.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vlatool.errors import DataError, StorageError
from vlatool.storage.atomic import write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.digests import verified_sha256
from vlatool.storage.partial_file import Cancelled, PartialFile, remove_partial
from vlatool.storage.reader import LARGEST_RANGE, RangeDownload, changed_error
from vlatool.storage.remote import Address, Body, ConditionFailed, ObjectInfo, Remote, call

CHUNK = LARGEST_RANGE  # of the format of partial files
_RESTARTS = 2  # of an object that changes, or whose digest is wrong
_READ_SIZE = 256 * 1024
_LONGEST_SLEEP_S = 1.0  # while the rate is limited, so that a cancelled download ends soon


@dataclass
class TransferPool:
    """Requests and bytes per second that all downloads of a command share; used by many threads.

    Attributes:
        streams: Requests at the same time.
        bytes_per_s: Limit of the rate; None for no limit.
        on_bytes: Called with the number of new bytes, under a lock.
        on_note: Called with a note on a download.
    """

    streams: int
    bytes_per_s: float | None = None
    on_bytes: Callable[[int], None] = lambda count: None
    on_note: Callable[[str], None] = lambda message: None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _started: float = 0.0
    _received: int = 0

    def __post_init__(self) -> None:
        self._slots = threading.BoundedSemaphore(self.streams)

    def cancel(self) -> None:
        """Ends all downloads at their next bytes."""
        self._cancelled.set()

    @contextmanager
    def stream(self) -> Generator[None]:
        """Waits for one of the streams and holds it."""
        with self._slots:
            self._check()
            yield

    def count(self, size: int) -> None:
        """Counts new bytes; waits while they are more than the limit of the rate allows.

        Raises:
            Cancelled: The command ends.
        """
        with self._lock:
            self.on_bytes(size)
            now = time.monotonic()
            self._started = self._started or now
            self._received += size
            until = self._started + self._received / (self.bytes_per_s or float("inf"))
        while True:
            self._check()
            wait = until - time.monotonic()
            if wait <= 0:
                return
            time.sleep(min(wait, _LONGEST_SLEEP_S))

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled


@dataclass(frozen=True)
class Downloaded:
    """File that was downloaded.

    Attributes:
        size: Size in bytes.
        sha256: Hexadecimal digest of the content.
        is_synced: True if the content was synced to the disk.
    """

    size: int
    sha256: str
    is_synced: bool


def download(
    address: Address, info: ObjectInfo, target: Path, partial_file: Path, pool: TransferPool
) -> Downloaded:
    """Downloads an object to a local file, from where an earlier attempt was interrupted.

    A finished download of more than one chunk leaves `PARTIAL.log`, with which the same call
    returns at once; `remove_partial` removes it when the caller has recorded the file.

    Args:
        address: The object.
        info: Its size and version, as it was listed.
        target: Path of the file.
        partial_file: Path of the bytes so far, on the same disk.
        pool: Streams and limits.

    Raises:
        FileNotFoundError: The object does not exist any more.
        DataError: The digest of the content is not that of the server.
        StorageError: The storage does not respond, the object changes again and again, or the file
            cannot be written.
    """
    for attempt in range(_RESTARTS + 1):
        try:
            if info.size <= CHUNK:
                return _download_small(address, info, target, pool)
            return _LargeDownload(address, info, target, partial_file, pool).run()
        except (StorageError, DataError) as error:
            if error.code not in ("storage.changed", "data.wrong_digest") or attempt == _RESTARTS:
                raise
            remove_partial(partial_file)
            info = call(address, lambda remote: remote.head(address.key))
    raise AssertionError


def _download_small(
    address: Address, info: ObjectInfo, target: Path, pool: TransferPool
) -> Downloaded:
    """Reads an object into memory and writes it. The file is not synced."""
    if info.size == 0:
        write_bytes(target, b"", synced=False)
        return Downloaded(0, hashlib.sha256().hexdigest(), is_synced=False)
    part = RangeDownload(address, 0, CHUNK, on_bytes=pool.count)
    with pool.stream():
        part.fill()
    assert part.info is not None
    if part.info.size > CHUNK:
        raise changed_error(address)
    digest = part.info.digest or info.digest
    sha256 = verified_sha256(address, digest, len(part.received), [part.received])
    write_bytes(target, part.received, synced=False)
    return Downloaded(part.info.size, sha256, is_synced=False)


class _LargeDownload:
    """Download of an object in chunks."""

    def __init__(
        self, address: Address, info: ObjectInfo, target: Path, path: Path, pool: TransferPool
    ) -> None:
        self._address, self._info, self._target, self._pool = address, info, target, pool
        self._partial = PartialFile(path, address, info, CHUNK)

    def run(self) -> Downloaded:
        """Downloads the missing chunks, checks the digest and gives the file its name."""
        finished = self._partial.finished
        if finished and self._target.is_file() and self._target.stat().st_size == self._info.size:
            return Downloaded(self._info.size, finished, is_synced=True)
        with self._partial as file:
            missing = file.missing()
            # The first request shows if the server has ranges, and the digest that it vouches for.
            first = None if file.is_full() else self._fetch_first(file, next(missing))
            if first is not None and first.is_range:
                for _ in in_parallel(partial(self._fetch, file), missing, self._pool.streams):
                    pass
            elif first is not None:
                self._stream(file, first.info)
            digest = (first.info.digest if first and first.info else "") or self._info.digest
            sha256 = file.check(digest)
            file.publish(self._target, sha256)
        return Downloaded(self._info.size, sha256, is_synced=True)

    def _fetch_first(self, file: PartialFile, number: int) -> RangeDownload:
        """Downloads the first missing chunk; only asks for it if the server has no ranges."""
        try:
            return self._fetch(file, number)
        except StorageError as error:
            if error.code != "storage.unsupported" or number == 0:
                raise
            return RangeDownload(self._address, 0, 0, self._info, is_range=False)

    def _fetch(self, file: PartialFile, number: int) -> RangeDownload:
        """Downloads a chunk and writes it."""
        start = number * CHUNK
        stop = min(start + CHUNK, self._info.size)
        part = RangeDownload(self._address, start, stop, self._listed, on_bytes=self._pool.count)
        with self._pool.stream():
            part.fill()
        if part.is_range:
            file.write_chunk(number, part.received)
        return part

    @property
    def _listed(self) -> ObjectInfo | None:
        """Version to read; None if the listing does not name one, as the first chunk checks it."""
        return self._info if self._info.etag else None

    def _stream(self, file: PartialFile, info: ObjectInfo | None) -> None:
        """Downloads the whole object with one request."""
        self._pool.on_note(
            f"{self._address}: the server has no byte ranges; an interrupted download of this file"
            " starts again"
        )
        etag = info.etag if info else ""
        with self._pool.stream():
            call(self._address, partial(self._receive, file, etag))

    def _receive(self, file: PartialFile, etag: str, remote: Remote) -> None:
        body: Body = remote.get(self._address.key, 0, self._info.size, etag)
        try:
            if body.info.size != self._info.size:
                raise ConditionFailed
            for number in range(file.chunks):
                data = bytearray()
                while len(data) < file.size_of(number) and (read := body.read(_READ_SIZE)):
                    data += read
                    self._pool.count(len(read))
                if len(data) != file.size_of(number):
                    raise ConnectionResetError(f"{self._address}: the response ends early")
                file.write_chunk(number, data)
        finally:
            body.close()
