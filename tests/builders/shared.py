"""Folders that all processes of a test session share and only read.

Each is made once per machine: the first process that asks for one makes it under a lock.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

States = dict[str, tuple[int, int]]


@contextmanager
def shared_folder(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Iterator[Path]:
    """Yields the folder that `make` filled, here or in another process of the session.

    Raises:
        AssertionError: A test wrote into the folder.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "shared" / name
    complete = root / "shared" / f"{name}.complete"
    folder.parent.mkdir(exist_ok=True)
    with (root / "shared" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            folder.mkdir()
            make(folder)
            complete.touch()
    before = _states(folder)
    yield folder
    assert _states(folder) == before, f"a test wrote into the shared folder {name}"


def _states(folder: Path) -> States:
    """Size and time of change of each file."""
    states: States = {}
    for path in folder.rglob("*"):
        status = path.stat()
        states[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return states
