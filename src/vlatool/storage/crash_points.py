"""Steps of a run at which it may be ended on purpose: around each operation on storage.

Nothing happens unless the variable below is set, as tests set it: to a file, which gets a line per
step, or to a number, at whose step the process ends as `kill -9` would end it.
"""

import os
import re
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

VARIABLE = "VLATOOL_STEPS"

Kind = Literal["create", "write", "sync", "rename", "remove"]

_VARIES = re.compile(r"[0-9a-f]{8}|\d+")


@contextmanager
def crash_point(
    kind: Kind, path: object, do_half: Callable[[], object] | None = None
) -> Generator[None]:
    """An operation: the steps before, inside and after it.

    Args:
        kind: What is done.
        place: The path or address that it is done to.
        partly: Does a part of it; none where it is done whole or not at all.
    """
    if VARIABLE not in os.environ:
        yield
        return
    _reach(f"{kind} before {_name(path)}")
    if do_half is not None:
        _reach(f"{kind} inside {_name(path)}", do_half)
    yield
    _reach(f"{kind} after {_name(path)}")


def _reach(line: str, partly: Callable[[], object] | None = None) -> None:
    order = os.environ[VARIABLE]
    if not order.isdecimal():
        with Path(order).open("a") as file:
            file.write(f"{line}\n")
        return
    os.environ[VARIABLE] = str(int(order) - 1)
    if int(order) == 1:
        if partly is not None:
            partly()
        os.kill(os.getpid(), signal.SIGKILL)


def _name(place: object) -> str:
    """The last two names of a path; numbers, which differ from item to item, as `#`."""
    return _VARIES.sub("#", "/".join(str(place).split("/")[-2:]))
