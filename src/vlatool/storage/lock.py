"""Lock of an output, released when its owner ends for any reason."""

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
    """Held lock."""

    def check(self) -> None:
        """Raises if the lock was lost.

        Raises:
            StorageError: Another run took the lock over.
        """
        ...


class _FileLock:
    """Lock of a local file, which a live process cannot lose."""

    def check(self) -> None:
        pass


@contextmanager
def held_lock(path: Path, command: str) -> Generator[Lock]:
    """Holds the lock at `path`, two levels below the output that it protects.

    On disk, the kernel releases the lock when its owner ends, even if it is killed; the file that
    remains is no lock. In S3, the owner renews an object while it lives. The lock ends when its
    owner is known to have ended on this machine, else 90 s after the last renewal.

    Raises:
        UsageError: Another live run holds the lock; the message has its command.
        StorageError: The folder cannot be created or written.
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
        return "an unknown process"
