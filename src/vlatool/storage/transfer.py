"""Downloads of objects to local files, in parallel byte ranges, resumed after any interruption.

An object of up to one chunk is read into memory and written at once. A larger one is a file of its
full size in a partial folder, with a log of the chunks that it holds; it gets its name when it is
complete and its digest is known.
"""

import hashlib
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

from vlatool.errors import DataError, StorageError, VlatoolError
from vlatool.events import NullProgress, Progress
from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.atomic import as_storage_error, remove_file, sync_folder, write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.crash_points import crash_point
from vlatool.storage.digests import verified_sha256
from vlatool.storage.reader import LARGEST_RANGE, RangeDownload, changed_error
from vlatool.storage.remote import Address, Body, ConditionFailed, ObjectInfo, Remote, call

CHUNK = LARGEST_RANGE  # of the format of partial files
# Chunks in memory: requested or received, up to the one that is being consumed.
RUN_AHEAD = 16
UNREACHABLE = "storage.unreachable"
NOT_REQUESTED = "storage.not_requested"
_RESTARTS = 2  # of an object that changes, or whose digest is wrong
_MAX_OUTAGES = 3  # files in a row, each after all retries
_SHOW_EVERY_S = 0.1
_NAMED = 2
_READ_SIZE = 256 * 1024
_BLOCK = 1 << 20  # of the content that is read again
_LONGEST_SLEEP_S = 1.0  # while the rate is limited, so that a cancelled download ends soon


class Cancelled(BaseException):
    """End of a download because its command ends; no retry and no item error catches it."""


def remove_partial(partial_file: Path) -> None:
    """Removes an unfinished download, or the log that a finished one leaves."""
    remove_file(partial_file)
    remove_file(_log_of(partial_file))


def partial_bytes(partial_file: Path) -> int:
    """Bytes on the disk of an unfinished download."""
    try:
        return partial_file.stat().st_blocks * 512
    except OSError:
        return 0


def _log_of(partial_file: Path) -> Path:
    return partial_file.with_name(f"{partial_file.name}.log")


class PartialFile:
    """File of the full size of an object, with a log of the chunks that it holds.

    Rows of the log: the object; `chunk` and the CRC-32 of its content, when it is written;
    `sha256`, when the file is complete. A power cut may lose content whose row is in the log, so
    that every chunk is compared with its CRC.
    """

    def __init__(self, path: Path, address: Address, info: ObjectInfo, chunk_bytes: int) -> None:
        self._path = path
        self._size = info.size
        self._chunk_bytes = chunk_bytes
        version = info.etag or info.digest
        self._identity = {"location": str(address), "etag": version, "size": info.size}
        self._log = AppendLog(_log_of(path), sync_s=math.inf)
        self._lock = threading.Lock()
        self._rows = list(read_log(self._log.path))
        # Without a version, what is there may be of another one.
        self.is_of_another = bool(self._rows) and (not version or self._rows[0] != self._identity)
        if self.is_of_another:
            self._rows = []
        self.chunks = -(-info.size // chunk_bytes)

    @property
    def finished(self) -> str:
        """SHA-256 of a complete download; empty if it is not complete."""
        return "" if not self._rows or self._path.exists() else self._rows[-1].get("sha256", "")

    def __enter__(self) -> Self:
        if not self._rows or not self._path.is_file():
            remove_partial(self._path)
            self._rows = []
        with as_storage_error(self._path), crash_point("create", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._data, self._size)
        if not self._rows:
            self._log.append(self._identity)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock, as_storage_error(self._path):
            os.close(self._data)
            self._data = -1
            self._log.close()

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not there, in order."""
        there = {row.get("chunk"): row.get("crc") for row in self._rows}
        missing: list[int] = []
        for number in range(self.chunks):
            crc = 0
            for block in self.blocks(number) if number in there else ():
                crc = zlib.crc32(block, crc)
            if there.get(number) != crc:
                missing.append(number)
        return missing

    def blocks(self, number: int) -> Iterator[bytes]:
        """Yields the content of a chunk."""
        stop = min(self._size, (number + 1) * self._chunk_bytes)
        for position in range(number * self._chunk_bytes, stop, _BLOCK):
            yield os.pread(self._data, min(_BLOCK, stop - position), position)

    def chunk(self, number: int) -> "_Chunk":
        return _Chunk(self, number, number * self._chunk_bytes)

    def write(self, position: int, block: bytes) -> None:
        with self._open():
            view = memoryview(block)
            while view:
                count = os.pwrite(self._data, view, position)
                view = view[count:]
                position += count

    def add(self, number: int, crc: int) -> None:
        """Records a chunk that is written."""
        with self._open():
            self._log.append({"chunk": number, "crc": crc})

    @contextmanager
    def _open(self) -> Generator[None]:
        with self._lock, as_storage_error(self._path):
            if self._data < 0:  # closed by another chunk that failed
                raise Cancelled
            yield

    def publish(self, target: Path, sha256: str) -> None:
        """Gives the file its final name."""
        with as_storage_error(target):
            with crash_point("sync", self._path):
                os.fsync(self._data)
            self._log.append({"sha256": sha256})
            self._log.sync()
            target.parent.mkdir(parents=True, exist_ok=True)
            with crash_point("rename", target):
                self._path.replace(target)
            sync_folder(target.parent)


@dataclass
class _Chunk:
    """Chunk of a partial file, whose blocks are written as they come."""

    file: PartialFile
    number: int
    position: int
    crc: int = 0

    def write(self, block: bytes) -> None:
        self.file.write(self.position, block)
        self.position += len(block)
        self.crc = zlib.crc32(block, self.crc)

    def finish(self) -> bytes:
        """Records the chunk; its content is in the file."""
        self.file.add(self.number, self.crc)
        return b""


class _Memory(list[bytes]):
    """Content in memory."""

    def write(self, block: bytes) -> None:
        self.append(block)

    def finish(self) -> bytes:
        return b"".join(self)


_Sinks = Callable[[int], _Chunk | _Memory]  # from the number of a chunk


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
    _free_at: float = 0.0  # time at which the rate admits the next byte
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
            with self._lock:
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

    def receive(self, part: RangeDownload, sink: _Chunk | _Memory) -> None:
        """Downloads a range by one of the streams."""

        def take(block: bytes) -> None:
            self.count(len(block))
            sink.write(block)

        part.sink = take
        with self.stream():
            part.fill()

    def count(self, size: int) -> None:
        """Counts new bytes; waits while they are more than the limit of the rate allows."""
        with self._lock:
            now = time.monotonic()
            self._outages = 0
            self._show(size, now)
            self.received += size
            # Time without bytes, as in an outage, is not made up for at full speed.
            until = max(self._free_at, now) + size / (self.bytes_per_s or float("inf"))
            self._free_at = until
        while True:
            self._check()
            wait = until - time.monotonic()
            if wait <= 0:
                return
            time.sleep(min(wait, _LONGEST_SLEEP_S))

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
        self._shown_at = now
        self._not_shown = 0

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
            return _download_large(address, info, target, partial_file, pool)
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
    part = RangeDownload(address, 0, CHUNK)
    blocks = _Memory()
    pool.receive(part, blocks)
    there = part.version
    # No bytes (416), or fewer than announced in a body that may be cut: the object is not this.
    is_cut = there.size != info.size and not there.has_known_size
    if is_cut or not 0 < there.size <= CHUNK:
        raise changed_error(address)
    sha256 = verified_sha256(address, there.digest or info.digest, there.size, blocks)
    write_bytes(target, blocks.finish(), synced=False)
    return Downloaded(there.size, sha256, is_synced=False)


def _download_large(
    address: Address, info: ObjectInfo, target: Path, path: Path, pool: TransferPool
) -> Downloaded:
    """Downloads the missing chunks, checks the digest and gives the file its name."""
    file = PartialFile(path, address, info, CHUNK)
    if file.finished and target.is_file() and target.stat().st_size == info.size:
        return Downloaded(info.size, file.finished, is_synced=True)
    if file.is_of_another:
        pool.on_note(f"{address} has changed, or has no version: its download starts again")
    reader = ChunkReader(address, info, CHUNK, pool)
    with file:
        missing = file.missing()
        arrived = reader.contents(missing, file.chunk)
        next(arrived, None)  # its response has the digest that the server vouches for
        waiting = set(missing[1:])

        def blocks() -> Iterator[bytes]:
            for number in range(file.chunks):
                if number in waiting:
                    next(arrived)
                yield from file.blocks(number)

        sha256 = verified_sha256(address, reader.digest or info.digest, info.size, blocks())
        file.publish(target, sha256)
    return Downloaded(info.size, sha256, is_synced=True)


@dataclass
class ChunkReader:
    """Chunks of one version of an object."""

    address: Address  # the object
    info: ObjectInfo  # its size and version
    chunk_bytes: int  # size of a chunk; the last one may be smaller
    pool: TransferPool  # streams and limits
    digest: str = ""  # digest that the first response vouches for

    def read(self, position: int) -> Iterator[bytes]:
        """Yields the object from a position on, in chunks that are fetched ahead in parallel."""
        first, skipped = divmod(position, self.chunk_bytes)
        numbers = range(first, -(-self.info.size // self.chunk_bytes))
        for content in self.contents(numbers, lambda _: _Memory()):
            yield content[skipped:]
            skipped = 0

    def contents(self, numbers: Sequence[int], sink_of: _Sinks) -> Iterator[bytes]:
        """Yields what the sink of each chunk returns in the end, in order.

        A server without byte ranges sends all chunks from the first one on.
        """

        def fetch(number: int) -> bytes:
            sink = sink_of(number)
            self._fetch(number, sink)
            return sink.finish()

        if not numbers:
            return
        sink = sink_of(numbers[0])
        first = None
        try:
            first = self._fetch(numbers[0], sink)
        except StorageError as error:
            if error.code != "storage.unsupported":
                raise
        if first is None or not first.is_range:
            yield from self._whole(set(numbers), sink_of)
            return
        self.digest = first.version.digest
        yield sink.finish()
        yield from in_parallel(fetch, numbers[1:], min(self.pool.streams, RUN_AHEAD))

    def _fetch(self, number: int, sink: _Chunk | _Memory) -> RangeDownload:
        start = number * self.chunk_bytes
        stop = min(start + self.chunk_bytes, self.info.size)
        # Version to read; None if the listing does not name one, as the first chunk checks it.
        version = self.info if self.info.etag else None
        part = RangeDownload(self.address, start, stop, version)
        self.pool.receive(part, sink)
        if part.version.size != self.info.size:
            raise changed_error(self.address)
        return part

    def _whole(self, numbers: Set[int], sink_of: _Sinks) -> Iterator[bytes]:
        """Yields chunks from one response with the whole object, which cannot be continued."""
        self.pool.on_note(
            f"{self.address}: the server has no byte ranges; an interrupted download of this file"
            " starts again"
        )
        size, etag = self.info.size, self.info.etag
        with self.pool.stream():
            try:
                body = call(
                    self.address, lambda remote: remote.get(self.address.key, 0, size, etag)
                )
            except ConditionFailed:
                raise changed_error(self.address) from None
            with closing(body):
                self.digest = body.info.digest
                if body.info.size != size:
                    raise changed_error(self.address)
                for number, start in enumerate(range(0, size, self.chunk_bytes)):
                    count = min(self.chunk_bytes, size - start)
                    read = partial(self._read, body=body, size=count)
                    content = call(self.address, read, retry_timeout_s=0)
                    if number in numbers:
                        sink = sink_of(number)
                        sink.write(content)
                        yield sink.finish()

    def _read(self, _: Remote, body: Body, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            block = body.read(min(size - len(content), _READ_SIZE))
            if not block:
                raise ConnectionResetError(f"{self.address}: the response ends early")
            self.pool.count(len(block))
            content += block
        return bytes(content)
