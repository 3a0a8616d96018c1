"""Disks without some operations, for processes that a test starts."""

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")


def limited_disk(folder: Path, build: Path, **settings: str) -> dict[str, str]:
    """Variables of processes for which the disk below `folder` lacks operations.

    `build`: folder for the library; `settings`: such as `DISK_FLOCK="ENOLCK"`, see `disks.c`.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not there to build a disk without some operations")
    library = build / "disks.so"
    if not library.exists():
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(library), "DISK_PREFIX": str(folder), **settings}
