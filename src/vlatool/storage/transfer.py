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
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from vlatool.errors import DataError, StorageError, VlatoolError
from vlatool.events import NullProgress, Progress
from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.atomic import as_storage_error, remove_file, sync_folder, write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.crash_points import crash_point
from vlatool.storage.digests import verified_sha256
from vlatool.storage.reader import LARGEST_RANGE, RangeDownload, changed_error
from vlatool.storage.remote import Address, Body, ConditionFailed, ObjectInfo, Remote, call

# Chunks in memory: requested or received, up to the one that is being consumed.
RUN_AHEAD = 16


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
    `synced`, the number of `chunk` rows whose content is on the disk; `sha256`, when the file is
    complete. A power cut may lose content whose row is in the log: chunks after the last `synced`
    are checked.
    """

    def __init__(self, path: Path, address: Address, info: ObjectInfo, chunk_bytes: int) -> None:
        self._path = path
        self._size = info.size
        self._chunk_bytes = chunk_bytes
        version = info.etag or info.digest
        self._identity = {"location": str(address), "etag": version, "size": info.size}
        self._continues = bool(version)  # else what is there may be of another version
        self._lock = threading.Lock()
        self._done: set[int] = set()
        self._num_rows = 0
        self._synced_at = time.monotonic()
        self._is_closed = self._is_syncing = False
        self.chunks = -(-info.size // chunk_bytes)
        self.finished = self._finished()

    def _finished(self) -> str:
        """SHA-256 of a complete download; empty if it is not complete."""
        rows = list(read_log(_log_of(self._path)))
        is_same = self._continues and bool(rows) and rows[0] == self._identity
        return str(rows[-1].get("sha256", "")) if is_same and not self._path.exists() else ""

    def __enter__(self) -> Self:
        with as_storage_error(self._path), crash_point("create", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            is_there = self._continues and self._path.is_file()
            rows = list(read_log(_log_of(self._path))) if is_there else []
            if not rows or rows[0] != self._identity:
                remove_partial(self._path)
                rows = []
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._data, self._size)
            self._log = AppendLog(_log_of(self._path), sync_s=math.inf)
            if not rows:
                self._log.append(self._identity)
            self._done = self._intact(rows)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock, as_storage_error(self._path):
            self._is_closed = True
            os.close(self._data)
            self._log.close()

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not there, in order."""
        return [number for number in range(self.chunks) if number not in self._done]

    def start_of(self, number: int) -> int:
        """Position of a chunk in bytes."""
        return number * self._chunk_bytes

    def size_of(self, number: int) -> int:
        """Size of a chunk in bytes."""
        return min(self._chunk_bytes, self._size - self.start_of(number))

    def chunk(self, number: int) -> "ChunkWriter":
        return ChunkWriter(self, number)

    def write_at(self, position: int, block: bytes) -> None:
        view = memoryview(block)
        with self._lock, as_storage_error(self._path):
            self._check_open()
            while view:
                count = os.pwrite(self._data, view, position)
                view = view[count:]
                position = position + count

    def add_chunk(self, number: int, crc: int) -> None:
        """Records a chunk that is written."""
        with self._lock, as_storage_error(self._path):
            self._check_open()
            self._log.append({"chunk": number, "crc": crc})
            self._done.add(number)
            self._num_rows += 1
            is_due = time.monotonic() - self._synced_at >= _SYNC_S and not self._is_syncing
            self._is_syncing |= is_due
        if is_due:
            self._sync()

    def content(self, fetched: Iterator[object], missing: Collection[int]) -> Iterator[bytes]:
        """The content of the file, in blocks; `fetched`: yields once for each missing chunk, in
        order, when it is written.
        """
        for number in range(self.chunks):
            if number in missing:
                next(fetched)
            yield from self._blocks(number)

    def publish(self, target: Path, sha256: str) -> None:
        """Gives the file its final name."""
        with as_storage_error(target):
            self._sync()
            self._log.append({"sha256": sha256})
            self._log.sync()
            target.parent.mkdir(parents=True, exist_ok=True)
            with crash_point("rename", target):
                self._path.replace(target)
            sync_folder(target.parent)

    def _check_open(self) -> None:
        if self._is_closed:  # by another chunk that failed
            raise Cancelled

    def _sync(self) -> None:
        """Syncs the chunks so far; others are written meanwhile."""
        with self._lock:
            self._check_open()
            data = os.dup(self._data)
            num_rows = self._num_rows
        try:
            with as_storage_error(self._path), crash_point("sync", self._path):
                os.fsync(data)
        finally:
            os.close(data)
        with self._lock, as_storage_error(self._path):
            self._check_open()
            self._log.append({"synced": num_rows})
            self._synced_at = time.monotonic()
            self._is_syncing = False

    def _intact(self, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        """Chunks that the file holds."""
        chunks = [row for row in rows if "chunk" in row]
        self._num_rows = len(chunks)
        num_synced = max((n for row in rows if isinstance(n := row.get("synced"), int)), default=0)
        done: set[int] = set()
        for index, row in enumerate(chunks):
            number = row["chunk"]
            if not isinstance(number, int) or not 0 <= number < self.chunks:
                continue
            if index < num_synced or self._crc(number) == row.get("crc"):
                done.add(number)
            else:
                done.discard(number)
        return done

    def _crc(self, number: int) -> int:
        crc = 0
        for block in self._blocks(number):
            crc = zlib.crc32(block, crc)
        return crc

    def _blocks(self, number: int) -> Iterator[bytes]:
        start = self.start_of(number)
        stop = start + self.size_of(number)
        for position in range(start, stop, _BLOCK):
            yield os.pread(self._data, min(_BLOCK, stop - position), position)


class ChunkWriter:
    """Writer of a chunk, which gets its bytes in order."""

    def __init__(self, file: PartialFile, number: int) -> None:
        self._file = file
        self._number = number
        self._position = file.start_of(number)
        self._crc = 0

    def write(self, block: bytes) -> None:
        self._file.write_at(self._position, block)
        self._crc = zlib.crc32(block, self._crc)
        self._position += len(block)

    def finish(self) -> None:
        """Records the chunk, after its last byte."""
        self._file.add_chunk(self._number, self._crc)


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


class _LargeDownload:
    """Download of an object in chunks."""

    def __init__(
        self, address: Address, info: ObjectInfo, target: Path, path: Path, pool: TransferPool
    ) -> None:
        self._address = address
        self._info = info
        self._target = target
        self._pool = pool
        self._reader = ChunkReader(address, info, CHUNK, pool)
        self._partial = PartialFile(path, address, info, CHUNK)

    def run(self) -> Downloaded:
        """Downloads the missing chunks, checks the digest and gives the file its name."""
        finished = self._partial.finished
        if finished and self._target.is_file() and self._target.stat().st_size == self._info.size:
            return Downloaded(self._info.size, finished, is_synced=True)
        with self._partial as file:
            missing = file.missing()
            digest = self._info.digest
            later: Sequence[int] = ()
            if missing:
                # The first response shows if the server has ranges, and the digest it vouches for.
                chunk = file.chunk(missing[0])
                first = self._reader.fetch_first(missing[0], chunk.write)
                digest = first.info.digest or digest
                if first.is_range:
                    chunk.finish()
                    later = missing[1:]
                else:
                    self._write_whole(file, first.info)
            fetched = in_parallel(partial(self._fetch, file), later, self._pool.streams)
            # Chunks are read again for the digest while those after them are being downloaded.
            content = file.content(fetched, frozenset(later))
            sha256 = verified_sha256(self._address, digest, self._info.size, content)
            file.publish(self._target, sha256)
        return Downloaded(self._info.size, sha256, is_synced=True)

    def _fetch(self, file: PartialFile, number: int) -> None:
        chunk = file.chunk(number)
        if self._reader.fetch(number, chunk.write).is_range:
            chunk.finish()

    def _write_whole(self, file: PartialFile, info: ObjectInfo) -> None:
        for number, content in enumerate(self._reader.read_whole(0, info)):
            chunk = file.chunk(number)
            chunk.write(content)
            chunk.finish()


class Response(NamedTuple):
    """What the response to the request for a chunk shows."""

    info: ObjectInfo  # the version that the server has
    is_range: bool  # False if the server ignored the range and sends the whole object


@dataclass(frozen=True)
class ChunkReader:
    """Chunks of one version of an object."""

    address: Address  # the object
    info: ObjectInfo  # its size and version
    chunk_bytes: int  # size of a chunk; the last one may be smaller
    pool: TransferPool  # streams and limits

    def fetch(self, number: int, sink: Callable[[bytes], object]) -> Response:
        """Downloads a chunk; `sink` is called with its bytes, in order.

        Raises:
            StorageError: `storage.changed` if the object is another version.
        """
        start = number * self.chunk_bytes
        stop = min(start + self.chunk_bytes, self.info.size)
        # Version to read; None if the listing does not name one, as the first chunk checks it.
        version = self.info if self.info.etag else None
        part = RangeDownload(self.address, start, stop, version, sink=self.pool.counted(sink))
        with self.pool.stream():
            part.fill()
        assert part.info is not None
        if part.info.size != self.info.size:
            raise changed_error(self.address)
        return Response(part.info, part.is_range)

    def fetch_first(self, number: int, sink: Callable[[bytes], object]) -> Response:
        """Downloads a chunk, if the server has byte ranges."""
        try:
            return self.fetch(number, sink)
        except StorageError as error:
            if error.code != "storage.unsupported" or number == 0:
                raise
            return Response(self.info, is_range=False)

    def read(self, position: int) -> Iterator[bytes]:
        """Yields the object from a position on, in chunks that are fetched ahead in parallel."""
        if position >= self.info.size:
            return
        number = position // self.chunk_bytes
        blocks: list[bytes] = []
        first = self.fetch_first(number, blocks.append)
        if not first.is_range:
            yield from self.read_whole(position, first.info)
            return
        yield b"".join(blocks)[position % self.chunk_bytes :]
        num_chunks = -(-self.info.size // self.chunk_bytes)
        later = range(number + 1, num_chunks)
        yield from in_parallel(self._content, later, min(self.pool.streams, RUN_AHEAD))

    def _content(self, number: int) -> bytes:
        blocks: list[bytes] = []
        self.fetch(number, blocks.append)
        return b"".join(blocks)

    def read_whole(self, position: int, info: ObjectInfo) -> Iterator[bytes]:
        """Yields the object from a position on, in chunks from one request for the version `info`;
        a retry reads from the start of the object and skips.
        """
        self.pool.on_note(
            f"{self.address}: the server has no byte ranges; an interrupted download of this file"
            " starts again"
        )
        body: Body | None = None

        def receive(remote: Remote) -> bytes:
            nonlocal body
            skipped = 0
            if body is None:
                body = remote.get(self.address.key, 0, self.info.size, info.etag)
                skipped = position
            try:
                if body.info.size != self.info.size:
                    raise ConditionFailed
                for _ in self._blocks(body, skipped):
                    pass
                size = min(self.chunk_bytes, self.info.size - position)
                return b"".join(self._blocks(body, size))
            except Exception:
                body.close()
                body = None
                raise

        with self.pool.stream():
            try:
                while position < self.info.size:
                    content = call(self.address, receive)
                    position += len(content)
                    yield content
            except ConditionFailed:
                raise changed_error(self.address) from None
            finally:
                if body is not None:
                    body.close()

    def _blocks(self, body: Body, size: int) -> Iterator[bytes]:
        """The next `size` bytes of a body, as they come; they are counted."""
        while size:
            block = body.read(min(size, _READ_SIZE))
            if not block:
                raise ConnectionResetError(f"{self.address}: the response ends early")
            self.pool.count(len(block))
            size -= len(block)
            yield block


_SYNC_S = 2.0
_BLOCK = 1 << 20  # of the content that is read again
