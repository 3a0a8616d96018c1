"""Lock of an output, released when its owner ends for any reason.

On disk it is a lock of the kernel; where the disk has none that works, a lease beside it. In S3 it
is an object that its owner renews while it lives.
"""

import fcntl
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from filelock import SoftFileLease, Timeout, UnixFileLock

from vlatool.errors import EnvironmentProblem, StorageError, UsageError
from vlatool.storage.crash_points import crash_point
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
class _Holder:
    """Content of a lock, time and age of its last renewal by the clock of the storage."""

    content: Mapping[str, Any]
    etag: str
    renewed: float
    age_s: float

    @property
    def owner(self) -> str:
        return str(self.content.get("owner", ""))

    def __str__(self) -> str:
        command = self.content.get("command", "an unknown command")
        process = f", process {pid}" if (pid := self.content.get("pid")) else ""
        return f"`{command}`{process}, since {self.content.get('started', 'an unknown time')}"


class Lock:
    """Lock that this process holds, with the identity of its owner."""

    def __init__(self, path: Path, command: str) -> None:
        self.is_lost = False
        self._path = path
        self._owner = secrets.token_hex(8)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._content: dict[str, str] = {
            "owner": self._owner,
            "command": command,
            "started": started,
        }
        self._seen_at = 0.0

    def read(self, retry_timeout_s: float | None = None) -> _Holder | None:
        """The lock as it is now; None if there is none."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises if the lock was lost; what the storage said a second ago counts."""
        if not self.is_lost and time.monotonic() - self._seen_at >= _SEEN_FOR_S:
            holder = self.read()
            self.is_lost = holder is None or holder.owner != self._owner
            self._seen_at = time.monotonic()
        self.check_known()

    def check_known(self) -> None:
        """As `check`, without a request."""
        if self.is_lost:
            raise StorageError.at(
                self._path.parent.parent,
                "another run took over this output without seeing this one",
                hint="decide which of the runs should use the output, and run its command again",
                code="storage.lock_lost",
            )

    def locked_error(self, holder: _Holder | None) -> UsageError:
        """Error for an output that another run writes."""
        run = holder or "an unknown run"
        return UsageError(
            f"{self._path.parent.parent}: another run is writing here: {run}",
            hint="wait for it, stop it, or choose another --output",
            code="usage.output_in_use",
        )


class FileLock(Lock):
    """File with the identity of its owner, and a lock of the kernel or a lease on it."""

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(path, command)
        self._content |= {"pid": str(os.getpid())}
        self._lock: UnixFileLock | SoftFileLease | None = None

    def acquire(self) -> None:
        """Takes the lock; raises UsageError if another live process has it."""
        try:
            with crash_point("create", self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.open("a").close()
        except OSError as error:
            raise StorageError.at(
                self._path.parent.parent,
                f"cannot be used as an output folder: {error.strerror}",
                hint="choose another --output, or make the folder writable",
                code="storage.write",
            ) from error
        try:
            self._lock = self._native() or self._lease()
        except Timeout:
            raise self.locked_error(self.read()) from None
        with crash_point("write", self._path):
            self._path.write_text(json.dumps(self._content))

    def _native(self) -> UnixFileLock | None:
        """Lock of the kernel; None where the disk has none, or gives it to everyone."""
        lock = UnixFileLock(
            self._path, 0, thread_local=False, fallback_to_soft=False, preserve_lock_file=True
        )
        try:
            lock.acquire()
            if _is_locked(self._path):
                return lock
            lock.release()
            reason = "they are given to everyone"
        except (OSError, NotImplementedError) as error:
            if isinstance(error, Timeout):
                raise
            reason = str(error)
        message = "%s: this disk has no locks that work (%s); another command is noticed late"
        _LOGGER.warning(message, self._path.parent.parent, reason)
        return None

    def _lease(self) -> SoftFileLease:
        holder = self.read()
        # Version 0.3 renews the file itself, and names its machine in it.
        if holder and "machine" in holder.content and holder.age_s < STALE_AFTER_S:
            raise self.locked_error(holder)
        lease = _lease_of(self._path, self._lose)
        lease.acquire()
        return lease

    def _lose(self, _: object) -> None:
        self.is_lost = True

    def read(self, retry_timeout_s: float | None = None) -> _Holder | None:
        try:
            body = self._path.read_bytes()[:_MAX_BYTES]
            renewed = self._path.stat().st_mtime
        except FileNotFoundError:
            return None
        return _holder(body, "", renewed, time.time() - renewed) if body else None

    def release(self) -> None:
        """Empties the file, which stays, and is no lock."""
        with suppress(OSError):
            holder = self.read()
            self.is_lost |= holder is None or holder.owner != self._owner
            if not self.is_lost:
                os.truncate(self._path, 0)
        if self._lock is not None:
            self._lock.release()

    def is_held(self) -> bool:
        """True if a live process holds the lock."""
        holder = self.read()
        if holder is None or _is_locked(self._path):
            return holder is not None
        lease = _lease_of(self._path)
        if not os.path.exists(lease.lock_file):
            return False
        try:
            with lease:
                return False
        except Timeout:
            return True


def _lease_of(path: Path, on_compromise: Any = None) -> SoftFileLease:
    return SoftFileLease(
        f"{path}.lease",
        lease_duration=STALE_AFTER_S,
        heartbeat_interval=RENEWED_EVERY_S,
        on_compromise=on_compromise,
        timeout=0,
        thread_local=False,
    )


def _is_locked(path: Path) -> bool:
    """True if a file has a lock of the kernel, by this process or another one."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


class RemoteLock(Lock):
    """Object with the identity of its owner, who renews it."""

    def __init__(self, path: RemotePath, command: str) -> None:
        super().__init__(path, command)
        self._address = path.address
        self._etag = ""

    def acquire(self, stale_after_s: float) -> None:
        """Acquires the lock; takes it over once its owner has not renewed it for `stale_after_s`.

        A killed owner looks alive until then: this polls until it renews (an error) or is stale.
        """
        clock = ProcessClock()
        deadline = clock.now() + stale_after_s
        first: _Holder | None = None
        for _ in range(_ATTEMPTS):  # an owner may release it between two requests
            if self._put(""):
                return
            while (holder := self.read()) is not None:
                if holder.owner == self._owner:  # written, but the response was lost
                    self._etag = holder.etag
                    return
                is_stale = holder.age_s > stale_after_s or clock.now() > deadline
                if is_stale and self._put(holder.etag):
                    return
                if first is None:
                    message = "%s; waiting %d s at most to see if it lives"
                    _LOGGER.warning(message, self.locked_error(holder).message, stale_after_s)
                    first = holder
                elif (holder.owner, holder.renewed) != (first.owner, first.renewed):
                    raise self.locked_error(holder)
                clock.sleep(_POLL_S)
        raise self.locked_error(None)

    def renew_until(self, stop: threading.Event, every_s: float) -> None:
        """Renews the lock until `stop` is set or another run has the lock."""
        clock = ProcessClock()
        while not clock.wait(stop, every_s) and not self.is_lost:
            try:
                if not self._put(self._etag):
                    holder = self.read()
                    self.is_lost = holder is None or holder.owner != self._owner
                    self._etag = holder.etag if holder else ""  # a response was lost
            except (StorageError, EnvironmentProblem) as error:
                _LOGGER.warning("%s: cannot renew the lock: %s", self._path, error)

    def release(self) -> None:
        """Removes the lock if this process still holds it."""
        if self.is_lost:
            return
        timeout_s = min(_RELEASE_TIMEOUT_S, retry_timeout())
        try:
            holder = self.read(timeout_s)
            if holder is None or holder.owner != self._owner:
                self.is_lost = True
                return
            delete(self._address, retry_timeout_s=timeout_s)
        except (StorageError, EnvironmentProblem) as error:
            _LOGGER.warning("%s: cannot release the lock: %s", self._path, error)

    def is_held(self) -> bool:
        """True if an owner renews the lock."""
        holder = self.read()
        return holder is not None and holder.age_s <= STALE_AFTER_S

    def _put(self, etag: str) -> bool:
        """Replaces version `etag` of the lock (empty: none exists); False if it has another."""
        body = json.dumps(self._content).encode()
        try:
            self._etag = put(self._address, body, etag)
        except (ConditionFailed, FileNotFoundError):
            return False
        except StorageError as error:
            if error.code != "storage.unsupported":
                raise
            # The server or an old client library has no conditional writes.
            holder = self.read()
            if holder is not None and holder.etag != etag:
                return False
            self._etag = put(self._address, body)
        return True

    def read(self, retry_timeout_s: float | None = None) -> _Holder | None:
        try:
            return call(self._address, self._request, retry_timeout_s=retry_timeout_s)
        except FileNotFoundError:
            return None
        except RangeNotSatisfiable:  # empty: a copy of the file that a local lock leaves
            info = find_object(self._address)
            return None if info is None else _holder(b"", info.etag, info.modified, math.inf)

    def _request(self, remote: WritableRemote) -> _Holder:
        body = remote.get(self._address.key, 0, _MAX_BYTES, "")
        try:
            content = b"".join(iter(lambda: body.read(_MAX_BYTES), b""))
        finally:
            body.close()
        modified = body.info.modified
        return _holder(content, body.info.etag, modified, body.date - modified)


def _holder(body: bytes, etag: str, renewed: float, age_s: float) -> _Holder:
    content: Any = None
    with suppress(ValueError):
        content = json.loads(body)
    is_known = isinstance(content, dict)
    return _Holder(cast(dict[str, Any], content) if is_known else {}, etag, renewed, age_s)


@contextmanager
def remote_lock(
    path: RemotePath,
    command: str,
    *,
    renewed_every_s: float = RENEWED_EVERY_S,
    stale_after_s: float = STALE_AFTER_S,
) -> Generator[RemoteLock]:
    """Holds the lock object `path`, two levels below the output, until the block ends."""
    lock = RemoteLock(path, command)
    lock.acquire(stale_after_s)
    stop = threading.Event()
    renewal = (stop, renewed_every_s)
    thread = threading.Thread(target=lock.renew_until, args=renewal, daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        stop.set()
        thread.join(timeout=_RELEASE_TIMEOUT_S)
        lock.release()
    lock.check_known()


@contextmanager
def held_lock(path: Path, command: str) -> Generator[Lock]:
    """Holds the lock at `path`, two levels below the output that it protects.

    On disk, the kernel releases the lock when its owner ends, even if it is killed; the file that
    remains is no lock. In S3, the lock ends 90 s after the last renewal.
    """
    if isinstance(path, RemotePath):
        with remote_lock(path, command) as remote:
            yield remote
        return
    lock = FileLock(path, command)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()
    lock.check_known()


def is_held(path: Path) -> bool:
    """True if a live process holds the lock at `path`; in S3, one that renews it."""
    lock = RemoteLock(path, "") if isinstance(path, RemotePath) else FileLock(path, "")
    try:
        return lock.is_held()
    except OSError:
        return False
