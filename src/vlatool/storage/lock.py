"""Lock of an output, released when its owner ends for any reason.

On disk it is a lock of the kernel, in S3 an object that its owner renews while it lives.
"""

import fcntl
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from vlatool.errors import EnvironmentProblem, StorageError, UsageError
from vlatool.storage.crash_points import crash_point
from vlatool.storage.documents import read_json
from vlatool.storage.remote import (
    ConditionFailed,
    RangeNotSatisfiable,
    WritableRemote,
    call,
    find_object,
)
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import ProcessClock, retry_timeout
from vlatool.storage.writer import delete, put

RENEWED_EVERY_S = 20.0
STALE_AFTER_S = 90.0  # more than four renewals; the longest block by a run killed elsewhere
_ATTEMPTS = 3
_POLL_S = 5.0
_MAX_BYTES = 64 * 1024  # of a lock object
_SEEN_FOR_S = 1.0  # a request for each of many small files would double their time
_RELEASE_TIMEOUT_S = 10.0  # a lock that is not released becomes stale

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _LockState:
    """Content of a lock object, time and age of its last renewal by the clock of the server."""

    owner: str
    command: str
    started: str
    etag: str
    renewed: float
    age_s: float


@contextmanager
def remote_lock(
    path: RemotePath,
    command: str,
    *,
    renewed_every_s: float = RENEWED_EVERY_S,
    stale_after_s: float = STALE_AFTER_S,
) -> Generator["RemoteLock"]:
    """Holds the lock object `path`, two levels below the output, until the block ends."""
    lock = RemoteLock(path, command)
    lock.acquire(stale_after_s)
    stop = threading.Event()
    thread = threading.Thread(
        target=lock.renew_until,
        args=(stop, renewed_every_s),
        daemon=True,
        name="vlatool-lock",
    )
    thread.start()
    try:
        yield lock
    finally:
        stop.set()
        thread.join(timeout=_RELEASE_TIMEOUT_S)
        lock.release()
    lock.check_known()


class RemoteLock:
    """Lock object with the identity of its owner, who renews it."""

    def __init__(self, path: RemotePath, command: str) -> None:
        self.is_lost = False
        self._path = path
        self._address = path.address
        self._owner = secrets.token_hex(8)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"owner": self._owner, "command": command, "started": started}
        self._content = json.dumps(content).encode()
        self._etag = ""
        self._seen_at = 0.0

    def check(self) -> None:
        """Raises if the lock was lost; what the storage said a second ago counts."""
        if not self.is_lost and time.monotonic() - self._seen_at >= _SEEN_FOR_S:
            holder = self._read()
            self.is_lost = holder is None or holder.owner != self._owner
            self._seen_at = time.monotonic()
        self.check_known()

    def check_known(self) -> None:
        """As `check`, without a request."""
        if self.is_lost:
            raise StorageError.at(
                self._address,
                "another run took over this output while the storage could not be reached",
                hint="decide which of the runs should use the output, and run its command again",
                code="storage.lock_lost",
            )

    def acquire(self, stale_after_s: float) -> None:
        """Acquires the lock; takes it over once its owner has not renewed it for `stale_after_s`.

        A killed owner looks alive until then: this polls until it renews (an error) or is stale.
        """
        clock = ProcessClock()
        first = None
        deadline = math.inf
        misses = 0
        etag: str | None = ""  # version to replace: empty for none, None while the owner may live
        while etag is None or not self._put(etag):
            if etag is None:
                clock.sleep(_POLL_S)
            holder = self._read()
            if holder is None:  # released meanwhile
                etag = ""
                misses = misses + 1
                if misses == _ATTEMPTS:
                    raise self._locked_error(None)
                continue
            if holder.owner == self._owner:  # written, but the response was lost
                self._etag = holder.etag
                return
            is_stale = holder.age_s > stale_after_s or clock.now() > deadline
            if first is None:
                first = holder
                deadline = clock.now() + stale_after_s
                if not is_stale:
                    message = "%s; waiting %d s at most to see if it lives"
                    _LOGGER.warning(message, self._locked_error(holder).message, stale_after_s)
            elif (holder.owner, holder.renewed) != (first.owner, first.renewed):
                raise self._locked_error(holder)
            etag = holder.etag if is_stale else None

    def renew_until(self, stop: threading.Event, every_s: float) -> None:
        """Renews the lock until `stop` is set or another run has the lock."""
        clock = ProcessClock()
        while not clock.wait(stop, every_s):
            try:
                self._renew()
            except (StorageError, EnvironmentProblem) as error:
                _LOGGER.warning("%s: cannot renew the lock: %s", self._address, error)
            if self.is_lost:
                _LOGGER.error("%s: another run took over this output", self._address)
                return

    def is_held_by_another(self) -> bool:
        """True if another live owner holds the lock."""
        holder = self._read()
        return holder is not None and holder.age_s <= STALE_AFTER_S

    def release(self) -> None:
        """Removes the lock if this process still holds it."""
        if self.is_lost:
            return
        timeout_s = min(_RELEASE_TIMEOUT_S, retry_timeout())
        try:
            holder = self._read(timeout_s)
            if holder is None or holder.owner != self._owner:
                self.is_lost = True
                return
            delete(self._address, retry_timeout_s=timeout_s)
        except (StorageError, EnvironmentProblem) as error:
            _LOGGER.warning("%s: cannot release the lock: %s", self._address, error)

    def _renew(self) -> None:
        if self._put(self._etag):
            return
        holder = self._read()
        if holder is not None and holder.owner == self._owner:  # a response was lost
            self._etag = holder.etag
        else:
            self.is_lost = True

    def _put(self, etag: str) -> bool:
        """Replaces version `etag` of the lock (empty: none exists); False if it has another."""
        try:
            self._etag = put(self._address, self._content, etag)
        except (ConditionFailed, FileNotFoundError):
            return False
        except StorageError as error:
            if error.code != "storage.unsupported":
                raise
            # The server or an old client library has no conditional writes.
            holder = self._read()
            if holder is not None and holder.etag != etag:
                return False
            self._etag = put(self._address, self._content)
        return True

    def _read(self, retry_timeout_s: float | None = None) -> _LockState | None:
        try:
            return call(self._address, self._request, retry_timeout_s=retry_timeout_s)
        except FileNotFoundError:
            return None
        except RangeNotSatisfiable:  # empty: a copy of the file that a local lock leaves
            info = find_object(self._address)
            return None if info is None else _lock_state(b"", info.etag, info.modified, math.inf)

    def _request(self, remote: WritableRemote) -> _LockState:
        body = remote.get(self._address.key, 0, _MAX_BYTES, "")
        content = b""
        try:
            while (left := _MAX_BYTES - len(content)) and (block := body.read(left)):
                content += block
        finally:
            body.close()
        modified = body.info.modified
        return _lock_state(content, body.info.etag, modified, body.date - modified)

    def _locked_error(self, holder: _LockState | None) -> UsageError:
        other = f"`{holder.command}`, since {holder.started}" if holder else "an unknown run"
        return _locked_error(self._path, other)


def _lock_state(body: bytes, etag: str, renewed: float, age_s: float) -> _LockState:
    names = ("", "an unknown command", "an unknown time")
    with suppress(ValueError, KeyError, TypeError):
        content = json.loads(body)
        names = (content["owner"], content["command"], content["started"])
    return _LockState(*names, etag, renewed, age_s)


def _locked_error(path: Path, owner: str) -> UsageError:
    return UsageError(
        f"{path.parent.parent}: another run is writing here: {owner}",
        hint="wait for it, stop it, or choose another --output",
        code="usage.output_in_use",
    )


class Lock(Protocol):
    def check(self) -> None: ...


class _FileLock:
    """Lock of a local file, which a live process cannot lose."""

    def check(self) -> None:
        pass


@contextmanager
def held_lock(path: Path, command: str) -> Generator[Lock]:
    """Holds the lock at `path`, two levels below the output that it protects.

    On disk, the kernel releases the lock when its owner ends, even if it is killed; the file that
    remains is no lock. In S3, the owner renews an object while it lives; the lock ends 90 s after
    the last renewal.
    """
    if isinstance(path, RemotePath):
        with remote_lock(path, command) as lock:
            yield lock
        return
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _locked_error(path, _describe(path)) from None
        with crash_point("write", path):
            file.truncate(0)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(json.dumps({"pid": os.getpid(), "command": command, "started": started}))
            file.flush()
        yield _FileLock()
        file.truncate(0)


def is_held(path: Path) -> bool:
    """True if a live process holds the lock at `path`; in S3, one that renews it."""
    if isinstance(path, RemotePath):
        return RemoteLock(path, "").is_held_by_another()
    try:
        with path.open("rb") as file:
            if file.read(1):  # empty when its last owner has released it
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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
