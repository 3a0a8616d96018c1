"""File of an unfinished download, with a log of the chunks that it holds."""

import math
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.atomic import as_storage_error, remove_file, sync_folder
from vlatool.storage.crash_points import crash_point
from vlatool.storage.digests import verified_sha256
from vlatool.storage.remote import Address, ObjectInfo

_SYNC_S = 2.0


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
    `synced`, when all chunks before are on the disk; `sha256`, when the file is complete. A power
    cut may lose content whose row is in the log: chunks after the last `synced` are checked.
    """

    def __init__(self, path: Path, address: Address, info: ObjectInfo, chunk_bytes: int) -> None:
        self._path, self._address, self._size = path, address, info.size
        self._chunk_bytes = chunk_bytes
        self._identity = {"location": str(address), "etag": info.etag, "size": info.size}
        self._lock = threading.Lock()
        self._done: set[int] = set()
        self._synced_at = time.monotonic()
        self._is_closed = False
        self.chunks = -(-info.size // chunk_bytes)
        self.finished = self._finished()

    def _finished(self) -> str:
        """SHA-256 of a complete download; empty if it is not complete."""
        rows = list(read_log(_log_of(self._path)))
        is_same = bool(rows) and rows[0] == self._identity
        return str(rows[-1].get("sha256", "")) if is_same and not self._path.exists() else ""

    def __enter__(self) -> Self:
        with as_storage_error(self._path), crash_point("create", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = list(read_log(_log_of(self._path))) if self._path.is_file() else []
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

    def missing(self) -> Iterator[int]:
        """Numbers of the chunks that are not there."""
        done = frozenset(self._done)
        return (number for number in range(self.chunks) if number not in done)

    def is_full(self) -> bool:
        """True if no chunk is missing."""
        return len(self._done) == self.chunks

    def size_of(self, number: int) -> int:
        """Size of a chunk in bytes."""
        return min(self._chunk_bytes, self._size - number * self._chunk_bytes)

    def write_chunk(self, number: int, data: bytes | bytearray) -> None:
        """Writes a chunk and its row."""

        def write(content: bytes | bytearray | memoryview) -> None:
            view, offset = memoryview(content), number * self._chunk_bytes
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
            self._log.append(row)
            self._done.add(number)
            if time.monotonic() - self._synced_at >= _SYNC_S:
                self._sync()

    def check(self, digest: str) -> str:
        """SHA-256 of the whole file, after comparing the digest that the server vouches for.

        Raises:
            DataError: The digests differ.
        """
        return verified_sha256(self._address, digest, self._size, self._blocks())

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

    def _sync(self) -> None:
        with crash_point("sync", self._path):
            os.fsync(self._data)
        self._log.append({"synced": True})
        self._synced_at = time.monotonic()

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
        return os.pread(self._data, self.size_of(number), number * self._chunk_bytes)

    def _blocks(self) -> Iterator[bytes]:
        return map(self._chunk, range(self.chunks))
