"""Description of the machine, printed above all results."""

import os
import platform


def describe() -> str:
    """Processor, cores, memory and Python version, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = platform.python_version()
    return f"{platform.machine()}, {cores} cores, {memory:.0f} GiB, Python {python}"
