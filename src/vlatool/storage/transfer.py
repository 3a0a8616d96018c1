"""Downloads of objects to local files, in parallel byte ranges, resumed after any interruption.

An object of up to one chunk is read into memory and written at once. A larger one is a file of its
full size in a partial folder, with a log of the chunks that it holds; it gets its name when it is
complete and its digest is known.
"""

import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from vlatool.errors import DataError, StorageError
from vlatool.storage.atomic import as_storage_error, remove_file, sync_folder, write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.crash_points import crash_point
from vlatool.storage.documents import parse_json
from vlatool.storage.reader import LARGEST_RANGE, RangeDownload, changed_error
from vlatool.storage.remote import Address, Body, ConditionFailed, ObjectInfo, Remote, call
from vlatool.storage.tree import sha256_of

CHUNK = LARGEST_RANGE
_RESTARTS = 2  # of an object that changes, or whose digest is wrong
_SYNC_S = 2.0
_READ_SIZE = 256 * 1024
_LONGEST_SLEEP_S = 1.0  # while the rate is limited, so that a cancelled download ends soon


class Cancelled(BaseException):
    """End of a download because its command ends; no retry and no item error catches it."""


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


def remove_partial(partial_file: Path) -> None:
    """Removes what `download` keeps of an unfinished or recorded download."""
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
    data = bytes(part.received)
    _check_digest(address, part.info.digest or info.digest, len(data), [data])
    write_bytes(target, data, synced=False)
    return Downloaded(len(data), hashlib.sha256(data).hexdigest(), is_synced=False)


class _LargeDownload:
    """Download of an object in chunks."""

    def __init__(
        self, address: Address, info: ObjectInfo, target: Path, path: Path, pool: TransferPool
    ) -> None:
        self._address, self._info, self._target, self._pool = address, info, target, pool
        self._partial = _PartialFile(path, address, info)

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

    def _fetch_first(self, file: "_PartialFile", number: int) -> RangeDownload:
        """Downloads the first missing chunk; only asks for it if the server has no ranges."""
        try:
            return self._fetch(file, number)
        except StorageError as error:
            if error.code != "storage.unsupported" or number == 0:
                raise
            return RangeDownload(self._address, 0, 0, self._info, is_range=False)

    def _fetch(self, file: "_PartialFile", number: int) -> RangeDownload:
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

    def _stream(self, file: "_PartialFile", info: ObjectInfo | None) -> None:
        """Downloads the whole object with one request."""
        self._pool.on_note(
            f"{self._address}: the server has no byte ranges; an interrupted download of this file"
            " starts again"
        )
        etag = info.etag if info else ""
        with self._pool.stream():
            call(self._address, partial(self._receive, file, etag))

    def _receive(self, file: "_PartialFile", etag: str, remote: Remote) -> None:
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


class _PartialFile:
    """File of the full size of an object, with a log of the chunks that it holds.

    Rows of the log: the object; `chunk` and the CRC-32 of its content, when it is written;
    `synced`, when all chunks before are on the disk; `sha256`, when the file is complete. A power
    cut may lose content whose row is in the log: chunks after the last `synced` are checked.
    """

    def __init__(self, path: Path, address: Address, info: ObjectInfo) -> None:
        self._path, self._address, self._size = path, address, info.size
        self._identity = {"location": str(address), "etag": info.etag, "size": info.size}
        self._lock = threading.Lock()
        self._done: set[int] = set()
        self._synced_at = time.monotonic()
        self._is_closed = False
        self.chunks = -(-info.size // CHUNK)
        self.finished = self._finished()

    def _finished(self) -> str:
        """SHA-256 of a complete download; empty if it is not complete."""
        rows = _rows(_log_of(self._path))
        is_same = bool(rows) and rows[0] == self._identity
        return str(rows[-1].get("sha256", "")) if is_same and not self._path.exists() else ""

    def __enter__(self) -> Self:
        with as_storage_error(self._path), crash_point("create", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = _rows(_log_of(self._path)) if self._path.is_file() else []
            if not rows or rows[0] != self._identity:
                remove_partial(self._path)
                rows = []
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._data, self._size)
            self._log = _log_of(self._path).open("ab")
        self._done = self._intact(rows)
        if not rows:
            self._append(self._identity)
        elif rows and not _ends_with_newline(_log_of(self._path)):
            self._log.write(b"\n")
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._is_closed = True
            self._log.close()
            os.close(self._data)

    def missing(self) -> Iterator[int]:
        """Numbers of the chunks that are not there."""
        done = frozenset(self._done)
        return (number for number in range(self.chunks) if number not in done)

    def is_full(self) -> bool:
        """True if no chunk is missing."""
        return len(self._done) == self.chunks

    def size_of(self, number: int) -> int:
        """Size of a chunk in bytes."""
        return min(CHUNK, self._size - number * CHUNK)

    def write_chunk(self, number: int, data: bytes | bytearray) -> None:
        """Writes a chunk and its row."""

        def write(content: bytes | bytearray | memoryview) -> None:
            view, offset = memoryview(content), number * CHUNK
            while view:
                count = os.pwrite(self._data, view, offset)
                view, offset = view[count:], offset + count

        half = memoryview(data)[: len(data) // 2]
        row = {"chunk": number, "crc": zlib.crc32(data)}
        with self._lock, as_storage_error(self._path):
            if self._is_closed:  # by another chunk that failed
                raise Cancelled
            with crash_point("write", self._path, lambda: write(half)):
                write(data)
            self._append(row)
            self._done.add(number)
            if time.monotonic() - self._synced_at >= _SYNC_S:
                self._sync()

    def check(self, digest: str) -> str:
        """SHA-256 of the whole file, after comparing the digest that the server vouches for.

        Raises:
            DataError: The digests differ.
        """
        kind = digest.partition(":")[0]
        if kind not in ("", "sha256"):
            _check_digest(self._address, digest, self._size, self._blocks())
        sha256 = sha256_of(self._path)
        if kind == "sha256" and digest != f"sha256:{sha256}":
            raise _digest_error(self._address, digest)
        return sha256

    def publish(self, target: Path, sha256: str) -> None:
        """Gives the file its final name."""
        with as_storage_error(target):
            self._sync()
            self._append({"sha256": sha256})
            target.parent.mkdir(parents=True, exist_ok=True)
            with crash_point("rename", target):
                self._path.replace(target)
            sync_folder(target.parent)

    def _sync(self) -> None:
        with crash_point("sync", self._path):
            os.fsync(self._data)
        self._append({"synced": True})
        self._synced_at = time.monotonic()

    def _append(self, row: Mapping[str, Any]) -> None:
        self._log.write(json.dumps(row).encode() + b"\n")
        self._log.flush()

    def _intact(self, rows: list[dict[str, Any]]) -> set[int]:
        """Chunks that the file holds."""
        last_sync = max((i for i, row in enumerate(rows) if "synced" in row), default=0)
        done: set[int] = set()
        for index, row in enumerate(rows):
            number = row.get("chunk")
            if not isinstance(number, int) or not 0 <= number < self.chunks:
                continue
            if index < last_sync or zlib.crc32(self._chunk(number)) == row.get("crc"):
                done.add(number)
            else:
                done.discard(number)
        return done

    def _chunk(self, number: int) -> bytes:
        return os.pread(self._data, self.size_of(number), number * CHUNK)

    def _blocks(self) -> Iterator[bytes]:
        return map(self._chunk, range(self.chunks))


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; torn lines are skipped."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError):
            row = parse_json(line)
            rows += [row] if isinstance(row, dict) else []
    return rows


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _check_digest(address: Address, digest: str, size: int, blocks: Iterable[bytes]) -> None:
    """Compares content with the digest that the server vouches for.

    Raises:
        DataError: They differ.
    """
    kind, _, expected = digest.partition(":")
    if kind == "git-sha1":
        state = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    elif kind in ("md5", "sha256"):
        state = hashlib.new(kind, usedforsecurity=False)
    else:
        return
    for block in blocks:
        state.update(block)
    if state.hexdigest() != expected:
        raise _digest_error(address, digest)


def _digest_error(address: Address, digest: str) -> DataError:
    return DataError.at(
        address,
        f"the content does not have the {digest.partition(':')[0]} digest of the server",
        hint="run the same command again; if it fails again, the object or a proxy is damaged",
        code="data.wrong_digest",
    )
