"""Commands of a checkout, run in forks of a process that has imported the modules already.

A command is `python -m vlatool`; a fork takes a tenth of a second instead of several. As a program,
this is the server of `Commands`: one JSON request per line on stdin, one response on stdout.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Self


class Done(NamedTuple):
    """Exit code (or the negative number of the signal), stdout and stderr of a command."""

    code: int
    stdout: str
    stderr: str


class Commands:
    """Commands of one checkout.

    Args:
        source: Folder `src` of the checkout.
        folder: Working folder of the commands.
        scratch: Folder for their output streams.
    """

    def __init__(self, source: Path, folder: Path, scratch: Path) -> None:
        scratch.mkdir()
        self._scratch = scratch
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(scratch)],
            env={**os.environ, "PYTHONPATH": str(source)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        path = self._answer()["vlatool"]
        if not Path(path).is_relative_to(source):
            raise RuntimeError(f"{path} was imported, not a module of {source}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def run(self, words: Sequence[str], **environment: str) -> Done:
        """Runs a command with these variables added."""
        assert self._server.stdin is not None
        request = {"words": list(words), "environment": environment}
        self._server.stdin.write(f"{json.dumps(request)}\n")
        self._server.stdin.flush()
        code = int(self._answer()["code"])
        return Done(code, *((self._scratch / name).read_text() for name in ("out", "err")))

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the server of the commands has ended")
        return json.loads(line)


def serve(scratch: Path) -> None:
    """Handles requests until stdin ends."""
    sys.path[0] = ""  # as for `python -m`, not the folder of this file
    import vlatool

    modules = scratch / "modules"
    send({"vlatool": str(vlatool.__file__)})
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(request["words"], request["environment"], scratch)
        send({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})
        if modules.exists():
            import_all(modules.read_text().split())
            modules.unlink()


def become(words: Sequence[str], environment: Mapping[str, str], scratch: Path) -> None:
    """Runs a command in this process, then ends the process."""
    code = 1
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    # One processor: no worker processes, so operations come in the same order every time.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.argv = ["vlatool", *words]
    try:
        runpy.run_module("vlatool", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the caller reads it in stderr
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    (scratch / "modules").write_text("\n".join(sys.modules))
    os._exit(code)


def import_all(names: Sequence[str]) -> None:
    """Imports the modules that a command imported, so that later forks need not."""
    for name in names:
        if name not in sys.modules and not name.endswith("__main__"):
            with suppress(Exception):
                import_module(name)


def send(answer: Mapping[str, Any]) -> None:
    """Writes a response."""
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
