"""Processors and memory that this process may use, with the limits of its container."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Cgroups:
    """Control groups of this process: version 1 or 2, and those around them.

    The kernel's pages on cgroup-v2 and cgroup-v1/memory describe the files.
    """

    own: Path = Path("/proc/self/cgroup")
    root: Path = Path("/sys/fs/cgroup")

    def processors(self) -> float:
        """Processors by the smallest quota of time; infinity without one."""
        smallest = math.inf
        for group in self._groups("cpu"):
            with suppress(OSError, ValueError):  # "max" is no number
                quota, period = map(int, (group / "cpu.max").read_text().split())
                smallest = min(smallest, quota / period)
            with suppress(OSError, ValueError):
                quota = int((group / "cpu.cfs_quota_us").read_text())
                if quota > 0:
                    period = int((group / "cpu.cfs_period_us").read_text())
                    smallest = min(smallest, quota / period)
        return smallest

    def memory(self) -> float:
        """Smallest limit of memory in bytes; infinity without one."""
        smallest = math.inf
        for group in self._groups("memory"):
            for name in ("memory.max", "memory.limit_in_bytes"):
                with suppress(OSError, ValueError):
                    smallest = min(smallest, int((group / name).read_text()))
        return smallest

    def _groups(self, controller: str) -> Iterator[Path]:
        """Folders of the group of this process and of those around it, up to the root.

        A container may see the name that its group has outside; its own root has the limits then.
        """
        try:
            lines = self.own.read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            _, controllers, name = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = self.root / controller if controllers else self.root
            group = PurePosixPath(name)
            for folder in (group, *group.parents):
                yield base / str(folder).lstrip("/")


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, math.ceil(min(count, Cgroups().processors())))


def memory() -> int:
    """Bytes of memory that this process may use now."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, KeyError):
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        size = min(size, int(rows["MemAvailable"].split()[0]) * 1024)
    return int(min(size, Cgroups().memory()))
