"""Several processes of one command on this machine (`--nproc`): how they are started.

The first process starts the ranks with Accelerate's launcher on GPUs and with torch's elastic
agent on a CPU, where Accelerate's silently starts one. They run the same command line without
`--nproc`; `ranks.py` is what the two sides know of each other.
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import FrameType, TracebackType
from typing import Any, Self

from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.events import NULL, Reporter
from vlatool.parallel.executor import default_workers
from vlatool.training.ranks import MEMBERSHIP, THREADS, Membership, RankEnd, cause, rank_error

OPTION = "--nproc"
# In the folder for temporary files. The kernel holds a command's lock for as long as it lives.
_FOLDERS, _LOCK = "vlatool-ranks-", "lock"
# A folder this young may not be locked yet.
_YOUNG_S = 60.0
_MOST_PROCESSES = 1_024  # the agent holds one object for each before it starts any


def start(arguments: Sequence[str], processes: int, *, reporter: Reporter = NULL) -> str:
    """Runs a vlatool command line on ranks of this machine; returns what the main one printed.

    The first and the second SIGINT or SIGTERM are passed on, the third kills the ranks.

    Args:
        arguments: The command line without `vlatool`; `--nproc` in it is left out.
        processes: Number of ranks.
        reporter: Told the command that starts them.

    Raises:
        UsageError: The number cannot be, or this process is a rank itself.
        EnvironmentProblem: There are GPUs, and fewer than ranks.
        VlatoolError: The error of a rank, with the rank's exit code.
        SystemExit: Interrupted (130, 143); the ranks have kept what was done.
    """
    gpus = _gpus()
    check_processes(processes, gpus)
    command = launcher(rank_arguments(arguments), processes, on_gpus=gpus > 0)
    with _shared_folder() as folder:
        threads = _threads(processes) if gpus == 0 else {}
        membership = Membership(processes, os.getpid(), str(folder), bool(threads))
        reporter.note(f"starting {processes} processes: {_command_text(command, threads)}")
        variables = {
            **threads,
            **_warning_filter(),
            **_safe_path(),
            MEMBERSHIP: json.dumps(asdict(membership)),
        }
        with _environment(variables), _stdout_in(folder / "stdout"), _PassedOn(folder) as signals:
            ends = [end.with_error(folder) for end in _launch(command, folder)]
            _end_helpers(folder)
        if ends:
            _raise(ends, signals.received)
        return (folder / "stdout").read_text(getattr(sys.stdout, "encoding", None), "replace")


def check_processes(processes: int, gpus: int) -> None:
    """Refuses a number of ranks that cannot be started here.

    Raises:
        UsageError: It is below one, or this process was started as a rank.
        EnvironmentProblem: There are GPUs, and fewer than ranks.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"{OPTION} within a process that a launcher has started (WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']!r})",
            hint=f"leave out {OPTION} under torchrun and accelerate launch; elsewhere unset "
            "WORLD_SIZE",
            code="usage.nproc_in_rank",
        )
    if processes < 1:
        raise UsageError(
            f"{OPTION} {processes}: at least one process is needed",
            hint=f"write {OPTION} {max(gpus, 1)}",
            code="usage.nproc",
            details={"nproc": processes},
        )
    if processes > _MOST_PROCESSES:
        raise UsageError(
            f"{OPTION} {processes}: more processes than one machine runs",
            hint=f"write {OPTION} {gpus or os.cpu_count()}; at most {_MOST_PROCESSES}",
            code="usage.nproc",
            details={"nproc": processes},
        )
    if 0 < gpus < processes:
        raise EnvironmentProblem(
            f"{OPTION} {processes} needs a GPU for each process, this machine has {gpus}",
            hint=f"write {OPTION} {gpus}",
            code="environment.gpus",
            details={"nproc": processes, "gpus": gpus},
        )


def rank_arguments(arguments: Iterable[str]) -> list[str]:
    """A command line without `--nproc N`."""
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*rest, word, *words]
        if word == OPTION:
            next(words, None)
        elif not word.startswith(f"{OPTION}="):
            rest.append(word)
    return rest


def launcher(arguments: Sequence[str], processes: int, *, on_gpus: bool) -> list[str]:
    """The command that starts the ranks, as it can be typed.

    Accelerate's asks for nothing that it would otherwise guess, warn of, or read from the user's
    own `accelerate config`; port 0 is a free one.
    """
    count = str(processes)
    program = ["-m", "vlatool", *arguments]
    if on_gpus:
        own = ["--num_processes", count, "--num_machines", "1", "--main_process_port", "0"]
        plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return ["accelerate", "launch", "--multi_gpu", *own, *plain, *program]
    # The name of the machine, torch's choice, may lead to an address that does not answer.
    return [
        *("torchrun", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", count),
        *program,
    ]


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """A folder of this command and its ranks; those that killed commands have left go."""
    for left in Path(gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):  # somebody else's, gone meanwhile, or the lock of one that lives
            about = left.lstat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > _YOUNG_S:
                with (left / _LOCK).open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
    with TemporaryDirectory(prefix=_FOLDERS) as name, Path(name, _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Path(name)


def _raise(ends: Sequence[RankEnd], received: Sequence[int]) -> None:
    told = cause(ends)
    # After an interruption only what a rank says itself is news, not how it was cut off.
    if received and told.weight() > 0:
        raise SystemExit(128 + received[0])
    if told.weight() > 2:
        raise SystemExit(told.code)
    raise rank_error(told)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _threads(processes: int) -> dict[str, str]:
    """A rank's part of the processors, unless the user has decided."""
    if THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, default_workers() // processes))}


def _safe_path() -> dict[str, str]:
    """A rank is started with `-m`, which would import from the current folder first."""
    is_there = {"", os.getcwd()} & set(sys.path)
    return {} if is_there else {"PYTHONSAFEPATH": "1"}


def _warning_filter() -> dict[str, str]:
    """Python's warnings without the one on semaphores of a killed rank, which is no news."""
    rule = "ignore::UserWarning:multiprocessing.resource_tracker"
    own = os.environ.get("PYTHONWARNINGS")
    return {"PYTHONWARNINGS": f"{own},{rule}" if own else rule}


def _command_text(command: Sequence[str], variables: Mapping[str, str]) -> str:
    return " ".join(
        [*(f"{name}={value}" for name, value in variables.items()), shlex.join(command)]
    )


def _launch(command: Sequence[str], folder: Path) -> list[RankEnd]:
    """Runs the launcher's own function to the end of all ranks; returns those that failed.

    In a thread of its own the agent leaves signals alone. In the main thread it passes them to
    the whole group of each rank, the rank's loader processes included, whose death may cost the
    rank its last checkpoint, and it waits 30 s at most.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What the agent logs of ranks that fail is what `rank_error` says.
    logging.disable(logging.ERROR)
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_call_launcher, command, folder).result()
    except ChildFailedError as failed:
        return [RankEnd(rank, f.exitcode, f.timestamp) for rank, f in failed.failures.items()]
    finally:
        logging.disable(logging.NOTSET)
    return []


def _call_launcher(command: Sequence[str], folder: Path) -> None:
    # The agent makes a folder for logs that it does not write, and leaves it behind.
    logs = str(folder / "agent")
    if command[0] == "torchrun":
        from torch.distributed import run

        parsed = run.parse_args(command[1:])
        parsed.log_dir = logs
        run.run(parsed)
    else:
        from accelerate.commands.launch import launch_command, launch_command_parser

        parsed = launch_command_parser().parse_args(command[2:])
        parsed.log_dir = logs
        launch_command(parsed)


def _end_helpers(folder: Path) -> None:
    """Ends what a killed rank has left: its loaders keep the server that forks them alive.

    A rank leads a group of processes of its own; multiprocessing's tracker ignores SIGTERM, tidies
    up and ends when it is alone.
    """
    _signal_ranks(folder, os.killpg, signal.SIGTERM)


def _signal_ranks(folder: Path, send: Callable[[int, int], None], number: int) -> None:
    for file in folder.glob("*.pid"):
        with suppress(ProcessLookupError, PermissionError):
            send(int(file.stem), number)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _stdout_in(path: Path) -> Iterator[None]:
    """Keeps what the ranks print, so that one that fails after the main one takes it back."""
    path.touch()
    if sys.stdout is None:  # it was closed
        yield
        return
    sys.stdout.flush()
    before = os.dup(1)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


class _PassedOn:
    """While active, SIGINT and SIGTERM go to the ranks.

    Attributes:
        received: The signals that came.
    """

    def __init__(self, folder: Path) -> None:
        self.received: list[int] = []
        self._folder = folder
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received.append(number)
        # First for the ranks that have not joined yet.
        (self._folder / "stop").write_text(str(number))
        if len(self.received) < 3:
            _signal_ranks(self._folder, os.kill, number)
        else:
            _signal_ranks(self._folder, os.killpg, signal.SIGKILL)
