"""Completion in interactive shells on a terminal, installed as a user does it."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAMS = Path(sys.executable).parent
# Typed keys with tabs, and the command line that they become.
LINES = {
    "vlatool vers\t--jso\t": ["version", "--json"],
    "vlatool presets sh\tworld-pic\t": ["presets", "show", "world-pick"],
    "vlatool resolve-config --preset world-pic\t": ["resolve-config", "--preset", "world-pick"],
}


# Shells switch bracketed paste on for the editing of a line, and off when it is started.
IS_EDITED, IS_STARTED = b"\x1b[?2004h", b"\x1b[?2004l"
# In place of the command that was completed: a line for each of its arguments, and an empty one.
PROGRAM = f"""#!/bin/sh
test -z "$_VLATOOL_COMPLETE" || exec {PROGRAMS}/vlatool "$@"
printf '%s\\n' "$@" "" >> "$HOME/shown"
"""


def environment(home: Path) -> dict[str, str]:
    paths = {"PATH": f"{home}/bin:/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return {**paths, "HOME": str(home), "TERM": "xterm", "LANG": "C.UTF-8"}


@contextmanager
def terminal(shell: str, home: Path) -> Iterator[int]:
    """Interactive shell; yields its terminal."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe(shell, [shell, "-i"], environment(home))
    try:
        yield master
    finally:
        os.close(master)  # hangs up: the shell ends
        os.waitpid(pid, 0)


def read(master: int, mark: bytes) -> None:
    """Reads what the terminal shows, up to a mark."""
    shown = b""
    deadline = time.monotonic() + 60
    while not shown.endswith(mark):
        assert time.monotonic() < deadline, shown
        if select.select([master], [], [], 1)[0]:
            shown += os.read(master, 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completes_commands_options_and_values(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bin/vlatool"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    install = [PROGRAMS / "vlatool", "--install-completion", shell]
    subprocess.run(install, check=True, capture_output=True, env=environment(tmp_path))
    with terminal(shell, tmp_path) as master:
        read(master, IS_EDITED)
        if shell == "zsh":  # the first Tab of a session loads the script; Ctrl-U removes the line
            os.write(master, b"vlatool \t\x15")
        for keys in LINES:
            os.write(master, f"{keys}\r".encode())
            read(master, IS_STARTED)
            read(master, IS_EDITED)
    shown = (tmp_path / "shown").read_text().split("\n\n")[:-1]
    assert [text.splitlines() for text in shown] == [*LINES.values()]
