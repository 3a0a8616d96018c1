"""One run per output: a lock that dies with its owner."""

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from vlatool.errors import StorageError, UsageError
from vlatool.storage.crash_points import crash_point
from vlatool.storage.documents import read_json
from vlatool.storage.remote_lock import remote_lock
from vlatool.storage.remote_path import RemotePath


class Lock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Makes sure that it still is.

        Raises:
            StorageError: Another run took it over.
        """
        ...


class _FileLock:
    """The kernel takes a file's lock from nobody who lives."""

    def check(self) -> None:
        pass


@contextmanager
def held_lock(path: Path, command: str) -> Generator[Lock]:
    """Holds the lock at `path`, two levels below the folder that it stands for.

    On disk, the kernel releases the lock when its owner ends, however it ends, so a file left
    behind by a killed run holds nothing. In S3, an object is renewed while its owner lives; one
    whose owner ended on this machine holds nothing, any other for 90 s after the last renewal.

    Raises:
        UsageError: Another live run holds it; names that run.
        StorageError: The folder cannot be made or written.
    """
    if isinstance(path, RemotePath):
        with remote_lock(path, command) as lock:
            yield lock
        return
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{path.parent.parent}: another run is writing here: {_describe(path)}",
                hint="wait for it, stop it, or choose another --output",
                code="usage.output_locked",
            ) from None
        with crash_point("write", path):
            file.truncate(0)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(json.dumps({"pid": os.getpid(), "command": command, "started": started}))
            file.flush()
        yield _FileLock()
        file.truncate(0)


def _open(path: Path) -> IO[str]:
    try:
        with crash_point("create", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+")
    except OSError as error:
        raise StorageError(
            f"{path.parent.parent}: cannot be used as an output folder: {error.strerror}",
            hint="choose another --output, or make the folder writable",
            code="storage.write",
            details={"path": str(path)},
        ) from error


def _describe(path: Path) -> str:
    try:
        owner = read_json(path)
        return f"`{owner['command']}`, process {owner['pid']}, since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unnamed process"
