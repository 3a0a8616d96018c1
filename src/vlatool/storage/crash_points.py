"""Crash points around each storage operation, at which tests can kill the process.

They do nothing unless the environment variable below is set: to a file, which gets a line per
crash point, or to a number N, with which the process kills itself (SIGKILL) at crash point N.
"""

import os
import re
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

# Not VLATOOL_...: those are settings of remote storage, and each change makes a new connection.
VARIABLE = "CRASH_POINTS"

Kind = Literal["create", "write", "sync", "rename", "remove"]

_VARIES = re.compile(r"[0-9a-f]{8}|\d+")


@contextmanager
def crash_point(
    kind: Kind, path: object, do_half: Callable[[], object] | None = None
) -> Generator[None]:
    """Surrounds an operation with crash points: before, inside and after it; `do_half`: performs a
    part of the operation; None if the operation is atomic.
    """
    if VARIABLE not in os.environ:
        yield
        return
    _reach(f"{kind} before {_name(path)}")
    if do_half is not None:
        _reach(f"{kind} inside {_name(path)}", do_half)
    yield
    _reach(f"{kind} after {_name(path)}")


def _reach(line: str, do_half: Callable[[], object] | None = None) -> None:
    setting = os.environ[VARIABLE]
    if not setting.isdecimal():
        with Path(setting).open("a") as file:
            file.write(f"{line}\n")
        return
    os.environ[VARIABLE] = str(int(setting) - 1)
    if int(setting) == 1:
        if do_half is not None:
            do_half()
        os.kill(os.getpid(), signal.SIGKILL)


def _name(path: object) -> str:
    """Last two names of a path; numbers, which differ between items, become `#`."""
    return _VARIES.sub("#", "/".join(str(path).split("/")[-2:]))
