"""Downloads of objects to local files, in parallel byte ranges, resumed after any interruption.

An object of up to one chunk is read into memory and written at once. A larger one is a file of its
full size in a partial folder, with a log of the chunks that it holds; it gets its name when it is
complete and its digest is known.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vlatool.errors import DataError, StorageError, VlatoolError
from vlatool.events import NullProgress, Progress
from vlatool.storage.atomic import write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.digests import verified_sha256
from vlatool.storage.partial_file import Cancelled, PartialFile, remove_partial
from vlatool.storage.reader import LARGEST_RANGE, RangeDownload, changed_error
from vlatool.storage.remote import Address, Body, ConditionFailed, ObjectInfo, Remote, call

CHUNK = LARGEST_RANGE  # of the format of partial files
_RESTARTS = 2  # of an object that changes, or whose digest is wrong
_MAX_OUTAGES = 3  # files in a row, each after all retries
UNREACHABLE = "storage.unreachable"
NOT_REQUESTED = "storage.not_requested"
_SHOW_EVERY_S = 0.1
_NAMED = 2
_READ_SIZE = 256 * 1024
_LONGEST_SLEEP_S = 1.0  # while the rate is limited, so that a cancelled download ends soon


@dataclass
class TransferPool:
    """Requests and bytes per second that all downloads of a command share; used by many threads."""

    streams: int  # requests at the same time
    bytes_per_s: float | None = None  # limit of the rate; None for no limit
    on_note: Callable[[str], None] = lambda message: None  # called with a note on a download
    # shows the bytes, the number of finished files and those in flight
    bar: Progress = field(default_factory=NullProgress)
    received: int = 0  # bytes so far
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _started: float = 0.0
    _in_flight: dict[str, None] = field(default_factory=dict[str, None])
    _finished: int = 0
    _outages: int = 0  # files that the storage did not respond to, since the last byte
    _shown_at: float = 0.0
    _not_shown: int = 0

    def __post_init__(self) -> None:
        self._slots = threading.BoundedSemaphore(self.streams)

    def cancel(self) -> None:
        """Ends all downloads at their next bytes."""
        self._cancelled.set()

    @contextmanager
    def file(self, name: str) -> Generator[None]:
        """Shows a file as in flight."""
        with self._lock:
            if self._outages >= _MAX_OUTAGES:
                raise not_requested_error(name)
            self._in_flight[name] = None
        try:
            yield
            self._finished += 1
        except StorageError as error:
            with self._lock:
                self._outages += error.code == UNREACHABLE
                is_dead = error.code == UNREACHABLE and self._outages == _MAX_OUTAGES
            if is_dead:
                self.on_note("the storage does not respond: no further files are requested")
            raise
        finally:
            with self._lock:
                del self._in_flight[name]
                self._show(0, time.monotonic())

    @contextmanager
    def stream(self) -> Generator[None]:
        """Waits for one of the streams and holds it."""
        with self._slots:
            self._check()
            yield

    def count(self, size: int) -> None:
        """Counts new bytes; waits while they are more than the limit of the rate allows."""
        with self._lock:
            now = time.monotonic()
            self._outages = 0
            self._show(size, now)
            self._started = self._started or now
            self.received += size
            until = self._started + self.received / (self.bytes_per_s or float("inf"))
        while True:
            self._check()
            wait = until - time.monotonic()
            if wait <= 0:
                return
            time.sleep(min(wait, _LONGEST_SLEEP_S))

    def counted(self, sink: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """Function that counts blocks and passes them on."""

        def take(block: bytes) -> None:
            self.count(len(block))
            sink(block)

        return take

    def _show(self, size: int, now: float) -> None:
        """Advances the bar, at most ten times a second while files are in flight."""
        self._not_shown += size
        if self._in_flight and now - self._shown_at < _SHOW_EVERY_S:
            return
        names = ", ".join(list(self._in_flight)[:_NAMED])
        more = ", ..." if len(self._in_flight) > _NAMED else ""
        in_flight = f"{len(self._in_flight)}: {names}{more}" if names else "0"
        fields = {"in flight": in_flight, "files": self._finished}
        self.bar.advance(self._not_shown, **fields)
        self._shown_at, self._not_shown = now, 0

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled


def is_outage(error: VlatoolError) -> bool:
    """True if the storage did not respond until the end of all retries."""
    failures = error.details.get("failures", ())
    return error.code == UNREACHABLE or any(row["code"] == NOT_REQUESTED for row in failures)


def not_requested_error(name: str) -> StorageError:
    """Error of a file that was not requested, because the storage does not respond."""
    return StorageError.at(
        name,
        "not requested, because the storage does not respond",
        hint="run the same command again for the rest",
        code=NOT_REQUESTED,
    )


@dataclass(frozen=True)
class Downloaded:
    """File that was downloaded."""

    size: int  # size in bytes
    sha256: str  # hexadecimal digest of the content
    is_synced: bool  # True if the content was synced to the disk


def download(
    address: Address, info: ObjectInfo, target: Path, partial_file: Path, pool: TransferPool
) -> Downloaded:
    """Downloads an object to a local file, from where an earlier attempt was interrupted.

    `partial_file`: Path of the bytes so far, on the same disk.

    A finished download of more than one chunk leaves `PARTIAL.log`, with which the same call
    returns at once; `remove_partial` removes it when the caller has recorded the file.
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
            now = call(address, lambda remote: remote.head(address.key))
            info = replace(now, digest=now.digest or info.digest)  # which a file list may name
    raise AssertionError


def _download_small(
    address: Address, info: ObjectInfo, target: Path, pool: TransferPool
) -> Downloaded:
    """Reads an object into memory and writes it. The file is not synced."""
    if info.size == 0:
        write_bytes(target, b"", synced=False)
        return Downloaded(0, hashlib.sha256().hexdigest(), is_synced=False)
    blocks: list[bytes] = []
    part = RangeDownload(address, 0, CHUNK, sink=pool.counted(blocks.append))
    with pool.stream():
        part.fill()
    assert part.info is not None
    # No bytes (416), or fewer than announced in a body that may be cut: the object is not this.
    is_cut = part.info.size != info.size and not part.info.has_known_size
    if is_cut or not 0 < part.info.size <= CHUNK:
        raise changed_error(address)
    digest = part.info.digest or info.digest
    sha256 = verified_sha256(address, digest, part.info.size, blocks)
    write_bytes(target, b"".join(blocks), synced=False)
    return Downloaded(part.info.size, sha256, is_synced=False)


def body_blocks(body: Body, size: int, address: Address, pool: TransferPool) -> Iterator[bytes]:
    """The next `size` bytes of a body, as they come; they are counted."""
    while size:
        block = body.read(min(size, _READ_SIZE))
        if not block:
            raise ConnectionResetError(f"{address}: the response ends early")
        pool.count(len(block))
        size -= len(block)
        yield block


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
            first = self._fetch_first(file, missing[0]) if missing else None
            later: Sequence[int] = ()
            if first is not None and first.is_range:
                later = missing[1:]
            elif first is not None:
                self._stream(file, first.info)
            fetched = in_parallel(partial(self._fetch, file), later, self._pool.streams)
            digest = (first.info.digest if first and first.info else "") or self._info.digest
            # Chunks are read again for the digest while those after them are being downloaded.
            content = file.content(fetched, frozenset(later))
            sha256 = verified_sha256(self._address, digest, self._info.size, content)
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
        chunk = file.chunk(number)
        write = self._pool.counted(chunk.write)
        start = file.start_of(number)
        stop = start + file.size_of(number)
        part = RangeDownload(self._address, start, stop, self._listed, sink=write)
        with self._pool.stream():
            part.fill()
        if part.is_range and part.info and part.info.size != self._info.size:
            raise changed_error(self._address)
        if part.is_range:
            chunk.finish()
        return part

    @property
    def _listed(self) -> ObjectInfo | None:
        """Version to read; None if the listing does not name one, as the first chunk checks it."""
        return self._info if self._info.etag else None

    def _stream(self, file: PartialFile, info: ObjectInfo | None) -> None:
        self._pool.on_note(
            f"{self._address}: the server has no byte ranges; an interrupted download of this file"
            " starts again"
        )
        etag = info.etag if info else ""
        with self._pool.stream():
            try:
                call(self._address, partial(self._receive, file, etag))
            except ConditionFailed:
                raise changed_error(self._address) from None

    def _receive(self, file: PartialFile, etag: str, remote: Remote) -> None:
        body: Body = remote.get(self._address.key, 0, self._info.size, etag)
        try:
            if body.info.size != self._info.size:
                raise ConditionFailed
            for number in range(file.chunks):
                chunk = file.chunk(number)
                for block in body_blocks(body, file.size_of(number), self._address, self._pool):
                    chunk.write(block)
                chunk.finish()
        finally:
            body.close()
