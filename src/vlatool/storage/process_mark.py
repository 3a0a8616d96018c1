"""Which process wrote something, so that another one on the same machine can tell it has ended."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_STARTED = 19  # field 22 of /proc/PID/stat, counted from the one behind the name: proc(5)
_STATE = 0
_ENDED = ("Z", "X")


@dataclass(frozen=True)
class ProcessMark:
    """A process, without a word about its machine.

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
    facts = f"{salt} {boot} {table} {os.getuid()} {os.uname().nodename}"
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process; empty where there is none or the system does not tell."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return fields[_STATE], fields[_STARTED]
