"""Commands in forks of one process with all imports, so that each takes only milliseconds.

`python -m tests.builders.forks MODULE...` is that process: it imports the modules, then reads
requests.
"""

import json
import multiprocessing.util
import os
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.builders.interrupt import sitecustomize as interrupt

WARM = (
    "pyarrow.parquet",
    "safetensors.torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "vlatool.checkpoints.facts",
    "vlatool.recordings.check",
    "vlatool.models.titok.objective",
    "vlatool.workflows.build_dataset",
    "vlatool.workflows.encode",
    "vlatool.workflows.encode",
    "vlatool.workflows.open_loop",
    "vlatool.workflows.predict",
    "vlatool.workflows.preprocess",
    "vlatool.workflows.train",
)
LIGHT = (
    "vlatool.cli.forms",
    "vlatool.cli.output",
    "vlatool.evaluation.config",
    "vlatool.training.config",
    "vlatool.workflows.preprocess",
)  # for commands without torch
LEFT_S = 20.0  # time for the processes of a finished command to end, on a busy machine


@dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    code: int | None  # exit status; negative for a signal, None after a timeout
    stdout: str  # standard output
    stderr: str  # standard error
    left: int  # number of its processes that did not end with it

    @property
    def document(self) -> dict[str, Any]:
        """Printed JSON document."""
        return json.loads(self.stdout)


class Forks:
    """Runner of commands in forks of a process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(
        self,
        words: Sequence[str | Path],  # words of the command line
        *,
        seconds: float = 30,  # time after which the command is killed
        environment: Mapping[str, str] | None = None,  # variables that are set in addition
        # Current folder of the command; None for the root of the repository.
        folder: Path | None = None,
        script: Path | None = None,
    ) -> Outcome:
        """Runs `vlatool WORDS`, or `python SCRIPT WORDS`, in a new session."""
        started = self.start(words, environment=environment, folder=folder, script=script)
        return started.finish(seconds)

    def start(
        self,
        words: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        script: Path | None = None,
    ) -> "Started":
        """Starts `vlatool WORDS`, or `python SCRIPT WORDS`, in a new session."""
        request = {
            "words": [str(word) for word in words],
            "environment": dict(environment or {}),
            "folder": str(folder or "."),
            "script": str(script or ""),
        }
        return Started(int(self.ask("start", request)), self)

    def ask(self, name: str, request: Mapping[str, Any]) -> Any:
        """Answer of the process to a request."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([name, request]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@dataclass(frozen=True)
class Started:
    """A started command."""

    pid: int  # process id; the process leads its session and process group
    forks: Forks  # runner of the command

    def is_running(self) -> bool:
        """False if the command has ended."""
        return not _is_zombie(str(self.pid))

    def finish(self, seconds: float = 60) -> Outcome:
        """Waits for the end of the command; kills it after `seconds`."""
        return Outcome(**self.forks.ask("finish", {"pid": self.pid, "seconds": seconds}))


@contextmanager
def forks(
    modules: Sequence[str] = WARM, environment: Mapping[str, str] | None = None
) -> Iterator[Forks]:
    """Starts the process, which imports the modules; it ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.builders.forks", *modules],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Forks(process)
        assert process.stdin
        process.stdin.close()


class _Server:
    """Starts commands and waits for them."""

    def __init__(self) -> None:
        self._streams: dict[int, tuple[int, int]] = {}

    def start(self, words: list[str], environment: dict[str, str], folder: str, script: str) -> int:
        """Process id of a started command."""
        streams = os.memfd_create("stdout"), os.memfd_create("stderr")
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment)
            os.chdir(folder)
            _run_command(words, script, *streams)
        self._streams[pid] = streams
        return pid

    def finish(self, pid: int, seconds: float) -> dict[str, Any]:
        """Outcome of a started command."""
        code = _wait(pid, seconds)
        left = _left(pid)
        texts: list[str] = []
        for file in self._streams.pop(pid):
            texts.append(os.pread(file, 2**22, 0).decode(errors="replace"))
            os.close(file)
        return vars(Outcome(code, texts[0], texts[1], left))

    def close(self) -> None:
        """Kills the commands that a failed test left."""
        for pid in self._streams:
            with suppress(ProcessLookupError):
                os.killpg(pid, 9)


def _serve() -> None:
    for name in sys.argv[1:]:
        import_module(name)
    server = _Server()
    for line in sys.stdin:
        request_name, request = json.loads(line)
        sys.stdout.write(json.dumps(getattr(server, request_name)(**request)) + "\n")
        sys.stdout.flush()
    server.close()


def _run_command(words: list[str], script: str, out: int, err: int) -> None:
    code = 99
    try:
        os.setsid()
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        from vlatool.cli.app import run

        if interrupt.VARIABLE in os.environ:
            interrupt.install()
        sys.argv = [script or "vlatool", *words]
        try:
            if script:
                sys.path.insert(0, str(Path(script).parent))
                runpy.run_path(script, run_name="__main__")
                code = 0
            else:
                code = run(words)
        except SystemExit as error:  # of a completion or of a script
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except Exception:
            traceback.print_exc()
            raise
        _end_as_an_interpreter()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _end_as_an_interpreter() -> None:
    """Joins the threads of pools and runs the finalizers of multiprocessing.

    Without them its resource tracker reports the semaphores of a pool as leaked on stderr.
    """
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    multiprocessing.util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with suppress(ProcessLookupError):
        os.killpg(pid, 9)
    os.waitpid(pid, 0)
    return None


def _left(session: int) -> int:
    """Number of processes of a session that do not end in time; kills them."""
    deadline = time.monotonic() + LEFT_S
    while (left := _members(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    return len(left)


def _members(session: int) -> list[int]:
    """Processes of a session, without those that have ended and whose parent is yet to notice."""
    pids: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.getsid(int(name)) == session and not _is_zombie(name):
                pids.append(int(name))
    return pids


def _is_zombie(name: str) -> bool:
    return Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[0] == "Z"


if __name__ == "__main__":
    _serve()
