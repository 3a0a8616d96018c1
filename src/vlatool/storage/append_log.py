"""Append-only log of JSON rows, one object per line, synced once a second.

On disk, rows are appended to one file. A line that a killed run cut off is skipped, and the next
row starts on a new line. S3 objects cannot be appended to: there, each batch of rows is a separate
object.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from vlatool.storage.atomic import as_storage_error, write_bytes
from vlatool.storage.byte_ranges import open_file, read_file
from vlatool.storage.crash_points import crash_point
from vlatool.storage.documents import parse_json
from vlatool.storage.uri import is_remote

_SYNC_S = 1.0


class AppendLog:
    """Writer of a log; a context manager that syncs the remaining rows at its end.

    `sync_s` is the number of seconds after which rows are synced; infinite if only the caller
    syncs.
    """

    def __init__(self, path: Path, sync_s: float = _SYNC_S) -> None:
        self.path = path
        self._sync_s = sync_s
        self._file: IO[bytes] | None = None
        self._pending: list[bytes] = []
        self._batches: int | None = None
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Syncs the remaining rows and closes the file."""
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row. A killed process loses no row on disk, a power cut the last second."""
        line = json.dumps(row).encode() + b"\n"
        if is_remote(self.path):
            self._pending.append(line)
        else:
            if self._file is None:
                with as_storage_error(self.path), crash_point("create", self.path):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("ab")
                if self._file.tell() and not _ends_with_newline(self.path):
                    self._file.write(b"\n")  # the next row starts on a new line
            self._write(self._file, line)
        if time.monotonic() - self._synced >= self._sync_s:
            self.sync()

    def sync(self) -> None:
        """Writes all rows so far to storage."""
        self._synced = time.monotonic()
        if self._file is not None:
            with as_storage_error(self.path), crash_point("sync", self.path):
                os.fsync(self._file.fileno())
        if self._pending:
            if self._batches is None:
                self._batches = sum(1 for _ in _batches(self.path))
            write_bytes(self.path / f"{self._batches:08d}.jsonl", b"".join(self._pending))
            self._batches += 1
            self._pending = []

    def _write(self, file: IO[bytes], line: bytes) -> None:
        def partly() -> None:
            file.write(line[: len(line) // 2])
            file.flush()

        with as_storage_error(self.path), crash_point("write", self.path, partly):
            file.write(line)
            file.flush()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log, in order; none if it does not exist. Torn lines are skipped."""
    if is_remote(path):
        for batch in _batches(path):
            yield from _rows(read_file(batch))
    elif path.is_file():
        yield from _rows(read_file(path))


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _batches(path: Path) -> Iterator[Path]:
    yield from sorted(path.glob("*.jsonl")) if path.is_dir() else ()


def _ends_with_newline(path: Path) -> bool:
    with open_file(path) as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
