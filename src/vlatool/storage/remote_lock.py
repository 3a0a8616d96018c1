"""One run per output in a bucket: an object that its owner renews while it lives."""

import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from vlatool.errors import EnvironmentProblem, StorageError, UsageError
from vlatool.storage.remote import ConditionFailed, RangeNotSatisfiable, WritableRemote, call
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import ProcessClock, retry_timeout
from vlatool.storage.writer import delete, put

RENEWED_EVERY_S = 20.0
STALE_AFTER_S = 90.0  # outlasts four renewals; a run killed elsewhere blocks no longer
_ATTEMPTS = 3
_LARGEST = 64 * 1024  # bytes of a lock
_RELEASE_PATIENCE_S = 10.0  # an unreleased lock ends by itself

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_STARTED = 19  # field 22 of /proc/PID/stat, counted from the one behind the name: proc(5)
_STATE = 0
_ENDED = ("Z", "X")

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessId:
    """Which process holds a lock, so that another one on its machine can tell that it has ended.

    Attributes:
        machine: Digest of the machine's boot and the process table; empty where there is neither.
        pid: Its number.
        started: Clock tick at which it began, since numbers are used again.
    """

    machine: str
    pid: int
    started: str

    @classmethod
    def of_this_process(cls, salt: str) -> Self:
        """The mark of this process.

        Args:
            salt: Another one gives another digest, so that marks of one machine do not look alike.
        """
        return cls(_machine(salt), os.getpid(), _stat(os.getpid())[1])

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The mark in a document; one that proves nothing where there is none."""
        return cls(
            str(document.get("machine", "")),
            int(document.get("pid", 0)),
            str(document.get("process_started", "")),
        )

    def document(self) -> dict[str, Any]:
        """The mark as keys of a document."""
        return {"machine": self.machine, "pid": self.pid, "process_started": self.started}

    def has_ended(self, salt: str) -> bool:
        """Whether the process ran here and is no more; False where that cannot be told."""
        if not self.machine or not self.started or self.machine != _machine(salt):
            return False
        state, started = _stat(self.pid)
        return started != self.started or state in _ENDED


@dataclass(frozen=True)
class _LockState:
    """What a lock says, and how long ago by the server's clock it was renewed."""

    owner: str
    command: str
    started: str
    process: ProcessId
    etag: str
    age_s: float

    def is_dead(self, stale_after_s: float) -> bool:
        """Whether it renewed the lock too long ago, or is known to have ended."""
        return self.age_s > stale_after_s or self.process.has_ended(self.owner)


@contextmanager
def remote_lock(
    path: RemotePath,
    command: str,
    *,
    renewed_every_s: float = RENEWED_EVERY_S,
    stale_after_s: float = STALE_AFTER_S,
) -> Generator["RemoteLock"]:
    """Holds the object `path`, two levels below the folder it stands for, until the block ends.

    Raises:
        UsageError: Another live run holds it; names that run.
        StorageError: The storage fails, or another run took the lock over in the meantime.
    """
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
        thread.join(timeout=_RELEASE_PATIENCE_S)
        lock.release()
    lock.check()


class RemoteLock:
    """An object that names its owner, renewed while the owner lives."""

    def __init__(self, path: RemotePath, command: str) -> None:
        self.is_lost = False
        self._path = path
        self._address = path.address
        self._owner = secrets.token_hex(8)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"owner": self._owner, "command": command, "started": started}
        mark = ProcessId.of_this_process(self._owner)
        self._content = json.dumps({**content, **mark.document()}).encode()
        self._etag = ""

    def check(self) -> None:
        """Makes sure that no other run is known to have taken it over.

        Raises:
            StorageError: One has.
        """
        if self.is_lost:
            raise StorageError(
                f"{self._address}: another run took this output over while storage could not be "
                "reached",
                hint="see which run should go on there, and run its command again",
                code="storage.lock_lost",
                details={"path": str(self._address)},
            )

    def acquire(self, stale_after_s: float) -> None:
        """Takes the lock where there is none, or where its owner is dead."""
        holder: _LockState | None = None
        for _ in range(_ATTEMPTS):
            if self._put(holder.etag if holder is not None else ""):
                return
            holder = self._read()
            if holder is None:  # released a moment ago
                continue
            if holder.owner == self._owner:  # written, but the answer got lost
                self._etag = holder.etag
                return
            if not holder.is_dead(stale_after_s):
                break
        raise self._refusal(holder, stale_after_s)

    def renew_until(self, stop: threading.Event, every_s: float) -> None:
        """Renews the lock until told to stop, or until another run has it."""
        clock = ProcessClock()
        while not clock.wait(stop, every_s):
            try:
                self._renew()
            except (StorageError, EnvironmentProblem) as error:
                _LOGGER.warning("%s: the lock could not be renewed: %s", self._address, error)
            if self.is_lost:
                _LOGGER.error("%s: another run took this output over", self._address)
                return

    def release(self) -> None:
        """Removes the lock if it is still ours."""
        if self.is_lost:
            return
        try:
            holder = self._read()
            if holder is None or holder.owner != self._owner:
                self.is_lost = True
                return
            delete(self._address, retry_timeout_s=min(_RELEASE_PATIENCE_S, retry_timeout()))
        except (StorageError, EnvironmentProblem) as error:
            _LOGGER.warning("%s: the lock could not be released: %s", self._address, error)

    def _renew(self) -> None:
        if self._put(self._etag):
            return
        holder = self._read()
        if holder is not None and holder.owner == self._owner:  # an answer got lost
            self._etag = holder.etag
        else:
            self.is_lost = True

    def _put(self, etag: str) -> bool:
        """Writes the lock over a version, or where nothing is; False where that is not so."""
        try:
            self._etag = put(self._address, self._content, etag)
        except (ConditionFailed, FileNotFoundError):
            return False
        except StorageError as error:
            if error.code not in ("storage.unsupported", "storage.request"):
                raise
            # The server or an old client library has no conditional writes: look, then write.
            return self._put_unconditionally(etag)
        return True

    def _put_unconditionally(self, etag: str) -> bool:
        holder = self._read()
        if holder is not None and holder.etag != etag:
            return False
        self._etag = put(self._address, self._content)
        return True

    def _read(self) -> _LockState | None:
        try:
            return call(self._address, self._asked)
        except (FileNotFoundError, RangeNotSatisfiable):
            return None

    def _asked(self, remote: WritableRemote) -> _LockState:
        body = remote.get(self._address.key, 0, _LARGEST, "")
        try:
            content = body.read(_LARGEST)
        finally:
            body.close()
        return _holder(content, body.info.etag, body.date - body.info.modified)

    def _refusal(self, holder: _LockState | None, stale_after_s: float) -> UsageError:
        other = f"`{holder.command}`, since {holder.started}" if holder else "an unnamed run"
        return UsageError(
            f"{self._path.parent.parent}: another run is writing here: {other}",
            hint="wait for it, stop it, or choose another --output; a run that was killed on"
            f" another machine stops counting after {stale_after_s:.0f} s",
            code="usage.output_locked",
        )


def _holder(body: bytes, etag: str, age_s: float) -> _LockState:
    try:
        content = json.loads(body)
        names = (content["owner"], content["command"], content["started"])
        return _LockState(*names, ProcessId.of(content), etag, age_s)
    except (ValueError, KeyError, TypeError, AttributeError):
        nobody = ProcessId.of({})
        return _LockState("", "an unnamed command", "an unknown time", nobody, etag, age_s)


def _machine(salt: str) -> str:
    """Boot, process table and user of this machine, unguessable: a boot has a random number.

    The user counts because systems may hide the processes of others.
    """
    try:
        boot = _BOOT_ID.read_text(encoding="utf-8").strip()
        table = _NAMESPACE.readlink()
    except OSError:
        return ""
    # Copies of one virtual machine may share the number of the boot, but hardly the name.
    info = f"{salt} {boot} {table} {os.getuid()} {os.uname().nodename}"
    return hashlib.blake2b(info.encode(), digest_size=16).hexdigest()


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process; empty where there is none or the system does not tell."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return fields[_STATE], fields[_STARTED]
