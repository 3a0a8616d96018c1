"""Lock of an output, released when its owner ends for any reason.

On disk it is a lock of the kernel, in S3 an object that its owner renews while it lives. A file
that holds the lock is renewed too: some disks have no locks, and some give them to everyone.
"""

import fcntl
import json
import logging
import math
import os
import secrets
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol, cast

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
_SETTLED_AFTER_S = 1.0
_MAX_BYTES = 64 * 1024  # of a lock object
_SEEN_FOR_S = 1.0  # a request for each of many small files would double their time
_RELEASE_TIMEOUT_S = 10.0  # a lock that is not released becomes stale

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _LockState:
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
    with _renewed(lock, renewed_every_s):
        yield lock


@contextmanager
def _renewed(lock: "_RenewedLock", renewed_every_s: float) -> Generator[None]:
    """Renews a lock in the background, and releases it at the end."""
    stop = threading.Event()
    thread = threading.Thread(
        target=lock.renew_until,
        args=(stop, renewed_every_s),
        daemon=True,
        name="vlatool-lock",
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_RELEASE_TIMEOUT_S)
        lock.release()
    lock.check_known()


class _RenewedLock(ABC):
    """Lock with the identity of its owner, who renews it."""

    def __init__(self, path: Path, command: str) -> None:
        self.is_lost = False
        self._path = path
        self._owner = secrets.token_hex(8)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._content: dict[str, Any] = {
            "owner": self._owner,
            "command": command,
            "started": started,
        }
        self._etag = ""
        self._seen_at = 0.0

    @abstractmethod
    def _read(self, retry_timeout_s: float | None = None) -> _LockState | None: ...

    @abstractmethod
    def _put(self, etag: str) -> bool:
        """Replaces version `etag` of the lock (empty: none exists); False if it has another."""

    @abstractmethod
    def _remove(self, timeout_s: float) -> None: ...

    def _has_ended(self, holder: _LockState) -> bool:
        """True if it is certain that an owner that did not release the lock has ended."""
        return False

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
                self._path.parent.parent,
                "another run took over this output without seeing this one",
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
            is_stale = self._has_ended(holder)
            is_stale = is_stale or holder.age_s > stale_after_s or clock.now() > deadline
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
            except (StorageError, EnvironmentProblem, OSError) as error:
                _LOGGER.warning("%s: cannot renew the lock: %s", self._path, error)
            if self.is_lost:
                _LOGGER.error("%s: another run took over this output", self._path)
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
            self._remove(timeout_s)
        except (StorageError, EnvironmentProblem, OSError) as error:
            _LOGGER.warning("%s: cannot release the lock: %s", self._path, error)

    def _renew(self) -> None:
        if self._put(self._etag):
            return
        holder = self._read()
        if holder is not None and holder.owner == self._owner:  # a response was lost
            self._etag = holder.etag
        else:
            self.is_lost = True

    def _locked_error(self, holder: _LockState | None) -> UsageError:
        owner = str(holder) if holder else "an unknown run"
        return UsageError(
            f"{self._path.parent.parent}: another run is writing here: {owner}",
            hint="wait for it, stop it, or choose another --output",
            code="usage.output_in_use",
        )


class RemoteLock(_RenewedLock):
    """Object with the identity of its owner."""

    def __init__(self, path: RemotePath, command: str) -> None:
        super().__init__(path, command)
        self._address = path.address

    def _put(self, etag: str) -> bool:
        body = json.dumps(self._content).encode()
        try:
            self._etag = put(self._address, body, etag)
        except (ConditionFailed, FileNotFoundError):
            return False
        except StorageError as error:
            if error.code != "storage.unsupported":
                raise
            # The server or an old client library has no conditional writes.
            holder = self._read()
            if holder is not None and holder.etag != etag:
                return False
            self._etag = put(self._address, body)
        return True

    def _remove(self, timeout_s: float) -> None:
        delete(self._address, retry_timeout_s=timeout_s)

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


def _lock_state(body: bytes, etag: str, renewed: float, age_s: float) -> _LockState:
    content: Any = None
    with suppress(ValueError):
        content = json.loads(body)
    is_known = isinstance(content, dict)
    return _LockState(cast(dict[str, Any], content) if is_known else {}, etag, renewed, age_s)


class Lock(Protocol):
    def check(self) -> None: ...

    def check_known(self) -> None: ...


class FileLock(_RenewedLock):
    """File with the identity of its owner, whose time the owner renews.

    A lock of the kernel on it is enough, where it works (`is_exclusive`): what an owner that was
    killed left then means nothing.
    """

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(path, command)
        self.is_exclusive = False
        pid = os.getpid()
        self._content |= {"pid": pid, "process": _process(pid), "machine": _machine()}

    def take(self, file: IO[str]) -> None:
        """Takes the lock in an opened file."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_exclusive = _excludes(self._path)
            reason = "they are given to everyone"
        except BlockingIOError:
            raise self._locked_error(self._read()) from None
        except OSError as error:
            reason = str(error.strerror)
        if not self.is_exclusive:
            message = "%s: this disk has no locks that work (%s); another command is noticed late"
            _LOGGER.warning(message, self._path.parent.parent, reason)
            holder = self._read()
            if holder is not None and _is_here(holder) and not self._has_ended(holder):
                raise self._locked_error(holder)
            self.acquire(STALE_AFTER_S)
            time.sleep(_SETTLED_AFTER_S)  # for one that read the file at the same time
            holder = self._read()
            if holder is not None and holder.owner != self._owner:
                raise self._locked_error(holder)
            return
        holder = self._read()
        self._content["over"] = "" if holder is None else holder.owner
        with crash_point("write", self._path):
            self._write()

    def _write(self) -> None:
        with self._path.open("r+") as file:
            file.truncate(0)
            file.write(json.dumps(self._content))

    def _put(self, etag: str) -> bool:
        holder = self._read()
        if holder is not None and holder.etag != etag:
            return False
        self._write()
        return True

    def _read(self, retry_timeout_s: float | None = None) -> _LockState | None:
        try:
            with self._path.open("rb") as file:
                body = file.read(_MAX_BYTES)
                renewed = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        if not body:
            return None
        age_s = 0.0 if self.is_exclusive else _disk_time(self._path.parent) - renewed
        state = _lock_state(body, "", renewed, age_s)
        return replace(state, etag=f"{state.owner} {renewed}")

    def _remove(self, timeout_s: float) -> None:
        os.truncate(self._path, 0)  # the file stays, and is no lock

    def _renew(self) -> None:
        holder = self._read()
        if holder is not None and holder.owner == self._owner:
            os.utime(self._path)
        elif self.is_exclusive and (holder is None or holder.content.get("over") == self._owner):
            # A lock that only holds on one machine: the other run ends when it sees this.
            if self._path.exists():
                self._write()
        else:
            self.is_lost = True

    def is_held_by_another(self) -> bool:
        """True if a live process holds the lock."""
        try:
            with self._path.open("rb") as file:
                if not file.read(1):  # empty when its last owner has released it
                    return False
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_exclusive = True  # as far as is known
        except BlockingIOError:
            return True
        except OSError:
            is_exclusive = False
        holder = self._read()
        if holder is None or self._has_ended(holder):
            return False
        return _is_here(holder) or not (is_exclusive or holder.age_s > STALE_AFTER_S)

    def _has_ended(self, holder: _LockState) -> bool:
        is_same = _process(holder.content.get("pid", 0)) == holder.content.get("process")
        return _is_here(holder) and not is_same


def _is_here(holder: _LockState) -> bool:
    """True if the process of a lock was started on this machine, since it was started."""
    return bool(_machine()) and holder.content.get("machine") == _machine()


def _excludes(path: Path) -> bool:
    """True if the lock of a file that is locked cannot be taken again."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _disk_time(folder: Path) -> float:
    """Time by the clock of the disk, which may be on another machine."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may only be read
        return time.time()


def _machine() -> str:
    """Name of this start of the machine and of its processes' numbers; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Time of start of a process of this machine, in ticks; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@contextmanager
def held_lock(path: Path, command: str) -> Generator[Lock]:
    """Holds the lock at `path`, two levels below the output that it protects.

    On disk, the kernel releases the lock when its owner ends, even if it is killed; the file that
    remains is no lock. Where the disk has no such locks, and in S3, the owner renews a file or an
    object while it lives; the lock ends 90 s after the last renewal.
    """
    if isinstance(path, RemotePath):
        with remote_lock(path, command) as lock:
            yield lock
        return
    with _open(path) as file:
        lock = FileLock(path, command)
        lock.take(file)
        with _renewed(lock, RENEWED_EVERY_S):
            yield lock


def is_held(path: Path) -> bool:
    """True if a live process holds the lock at `path`; in S3, one that renews it."""
    lock = RemoteLock(path, "") if isinstance(path, RemotePath) else FileLock(path, "")
    try:
        return lock.is_held_by_another()
    except OSError:
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
