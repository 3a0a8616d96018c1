"""Invocations in this process, in an environment that does not depend on the machine."""

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlatool.cli import app

COLUMNS = "100"


def run_vlatool(*argv: str) -> tuple[int, str]:
    """Exit code and stdout of `vlatool ARGV...`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = app.run(argv)
    return code, stdout.getvalue()


@contextmanager
def plain_terminal() -> Iterator[None]:
    """Sets a terminal of fixed width without colors."""
    before = dict(os.environ)
    os.environ |= {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Changes to `folder`, so that recorded paths are relative."""
    with contextlib.chdir(folder), plain_terminal():
        yield
