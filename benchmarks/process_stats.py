"""Wall time, CPU time and memory of a command and all its processes."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.05


@dataclass(frozen=True)
class ProcessStats:
    """Resources that a command used.

    Attributes:
        seconds: Wall time, including start-up.
        cpu_s: User and system time of the command and all its processes.
        driver_mib: Peak resident memory of the command itself.
        worker_mib: Peak resident memory of the largest child process; 0 without one.
        stdout: Text on stdout.
    """

    seconds: float
    cpu_s: float
    driver_mib: float
    worker_mib: float
    stdout: str


def run(command: Sequence[str]) -> ProcessStats:
    """Runs a command and measures it.

    Raises:
        RuntimeError: The command failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peaks: dict[int, float] = {}
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watcher.start()
    assert process.stdout is not None
    stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {status}: {stdout}")
    driver = peaks.pop(process.pid, 0.0)
    worker = max(peaks.values(), default=0.0)
    return ProcessStats(seconds, usage.ru_utime + usage.ru_stime, driver, worker, stdout)


def _watch(root: int, peaks: dict[int, float]) -> None:
    """Records the peak memory of every process of the tree until the root has ended."""
    while Path(f"/proc/{root}").exists():
        for pid in tree(root):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    peaks[pid] = int(line.split()[1]) / 1024
        time.sleep(_EVERY_S)


def tree(root: int) -> list[int]:
    """Ids of a process and of all its descendants."""
    pids = [root]
    for pid in pids:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        pids += [int(child) for child in children]
    return pids
