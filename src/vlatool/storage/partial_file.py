"""File of an unfinished download, with a log of the chunks that it holds."""

import math
import os
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.atomic import as_storage_error, remove_file, sync_folder
from vlatool.storage.crash_points import crash_point
from vlatool.storage.remote import Address, ObjectInfo

_SYNC_S = 2.0
_BLOCK = 1 << 20  # of the content that is read again


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
        self._path, self._size = path, info.size
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
        """Writes bytes of a chunk."""
        view = memoryview(block)
        with self._lock, as_storage_error(self._path):
            self._check_open()
            while view:
                count = os.pwrite(self._data, view, position)
                view, position = view[count:], position + count

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
            data, num_rows = os.dup(self._data), self._num_rows
        try:
            with as_storage_error(self._path), crash_point("sync", self._path):
                os.fsync(data)
        finally:
            os.close(data)
        with self._lock, as_storage_error(self._path):
            self._check_open()
            self._log.append({"synced": num_rows})
            self._synced_at, self._is_syncing = time.monotonic(), False

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
        self._file, self._number = file, number
        self._position = file.start_of(number)
        self._crc = 0

    def write(self, block: bytes) -> None:
        """Writes the next bytes."""
        self._file.write_at(self._position, block)
        self._crc = zlib.crc32(block, self._crc)
        self._position += len(block)

    def finish(self) -> None:
        """Records the chunk, after its last byte."""
        self._file.add_chunk(self._number, self._crc)
