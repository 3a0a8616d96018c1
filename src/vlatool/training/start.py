"""Start of several ranks of one command on this machine (`--nproc`).

The starting process uses Accelerate's launcher on GPUs and torch's elastic agent on a CPU, where
Accelerate's launcher silently starts only one process. The ranks run the same command line without
`--nproc`; `ranks.py` has the communication between both sides.
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
from vlatool.jobs.executor import default_workers
from vlatool.training.ranks import MEMBERSHIP, THREADS, Membership, RankEnd, cause, rank_error

OPTION = "--nproc"
# Below the folder for temporary files. The kernel releases the lock when the command ends.
_FOLDER_PREFIX, _LOCK = "vlatool-ranks-", "lock"
# A newer folder may not be locked yet.
_MIN_AGE_S = 60.0
_MAX_PROCESSES = 1_024  # the agent creates an object per process before it starts any


def start(arguments: Sequence[str], processes: int, *, reporter: Reporter = NULL) -> str:
    """Runs a vlatool command line on ranks of this machine; returns the output of rank 0.

    The first and the second SIGINT or SIGTERM are passed on to the ranks, the third kills them.

    Args:
        arguments: The command line without `vlatool`; `--nproc` in it is left out.
        processes: Number of ranks.
        reporter: Receives a note with the command that starts the ranks.

    Raises:
        UsageError: The number of ranks is invalid, or this process is a rank itself.
        EnvironmentProblem: There are fewer GPUs than ranks.
        VlatoolError: The error of a rank, with the exit code of the rank.
        SystemExit: Interrupted (130, 143); the ranks have saved their progress.
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
            rank_ends = [end.with_error(folder) for end in _launch(command, folder)]
            _end_helpers(folder)
        if rank_ends:
            _raise(rank_ends, signals.received)
        return (folder / "stdout").read_text(getattr(sys.stdout, "encoding", None), "replace")


def check_processes(processes: int, gpus: int) -> None:
    """Checks that a number of ranks can be started on this machine.

    Raises:
        UsageError: The number is below 1 or too large, or this process is a rank itself.
        EnvironmentProblem: There are fewer GPUs than ranks.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"{OPTION} is not allowed in a process that a launcher has started (WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']!r})",
            hint=f"leave out {OPTION} under torchrun and accelerate launch; otherwise unset "
            "WORLD_SIZE",
            code="usage.nproc_in_rank",
        )
    if processes < 1:
        raise UsageError(
            f"{OPTION} {processes}: at least one process is needed",
            hint=f"use {OPTION} {max(gpus, 1)}",
            code="usage.nproc",
            details={"nproc": processes},
        )
    if processes > _MAX_PROCESSES:
        raise UsageError(
            f"{OPTION} {processes}: more than {_MAX_PROCESSES} processes",
            hint=f"use {OPTION} {gpus or os.cpu_count()}",
            code="usage.nproc",
            details={"nproc": processes},
        )
    if 0 < gpus < processes:
        raise EnvironmentProblem(
            f"{OPTION} {processes} needs a GPU for each process, this machine has {gpus}",
            hint=f"use {OPTION} {gpus}",
            code="environment.gpus",
            details={"nproc": processes, "gpus": gpus},
        )


def rank_arguments(arguments: Iterable[str]) -> list[str]:
    """The command line without `--nproc N`."""
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

    For Accelerate it sets all options that Accelerate would otherwise guess, warn about, or read
    from the user's `accelerate config`; port 0 selects a free port.
    """
    count = str(processes)
    program = ["-m", "vlatool", *arguments]
    if on_gpus:
        process_options = [
            "--num_processes",
            count,
            "--num_machines",
            "1",
            "--main_process_port",
            "0",
        ]
        other_options = ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return ["accelerate", "launch", "--multi_gpu", *process_options, *other_options, *program]
    # torch's default, the host name, may resolve to an address that is not reachable.
    return [
        *("torchrun", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", count),
        *program,
    ]


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """Folder that this command and its ranks share; removes folders that killed commands left."""
    for old in Path(gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError):  # of another user, removed meanwhile, or locked
            stat = old.lstat()
            if stat.st_uid == os.getuid() and time.time() - stat.st_mtime > _MIN_AGE_S:
                with (old / _LOCK).open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(old)
    with TemporaryDirectory(prefix=_FOLDER_PREFIX) as name, Path(name, _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Path(name)


def _raise(rank_ends: Sequence[RankEnd], received: Sequence[int]) -> None:
    first_end = cause(rank_ends)
    # After an interruption only an error that a rank reported is relevant, not how ranks ended.
    if received and first_end.weight() > 0:
        raise SystemExit(128 + received[0])
    if first_end.weight() > 2:
        raise SystemExit(first_end.code)
    raise rank_error(first_end)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _threads(processes: int) -> dict[str, str]:
    """Variable with the number of threads per rank; empty if the user has set it."""
    if THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, default_workers() // processes))}


def _safe_path() -> dict[str, str]:
    """Variable that keeps the current folder off the import path: `python -m` would add it."""
    is_on_path = {"", os.getcwd()} & set(sys.path)
    return {} if is_on_path else {"PYTHONSAFEPATH": "1"}


def _warning_filter() -> dict[str, str]:
    """Variable that hides Python's warning about leaked semaphores of a killed rank."""
    rule = "ignore::UserWarning:multiprocessing.resource_tracker"
    user_rules = os.environ.get("PYTHONWARNINGS")
    return {"PYTHONWARNINGS": f"{user_rules},{rule}" if user_rules else rule}


def _command_text(command: Sequence[str], variables: Mapping[str, str]) -> str:
    return " ".join(
        [*(f"{name}={value}" for name, value in variables.items()), shlex.join(command)]
    )


def _launch(command: Sequence[str], folder: Path) -> list[RankEnd]:
    """Runs the function of the launcher until all ranks have ended; returns the failed ones.

    In a thread the agent does not handle signals. In the main thread it passes them to the process
    group of each rank, loader workers included, whose end may cost the rank its last checkpoint,
    and it waits at most 30 s.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # `rank_error` reports failed ranks; the log of the agent would repeat it.
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
    # The agent creates a log folder that stays empty, and does not remove it.
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
    """Ends the helper processes of killed ranks: loader workers keep their fork server alive.

    Each rank leads a process group. The resource tracker of multiprocessing ignores SIGTERM, cleans
    up, and ends when all others have ended.
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
    """Redirects stdout of the ranks to a file: it is dropped if a rank fails after rank 0."""
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
    """Context that passes SIGINT and SIGTERM on to the ranks.

    Attributes:
        received: The signals that were received.
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
        # The file comes first, for ranks that have not joined yet.
        (self._folder / "stop").write_text(str(number))
        if len(self.received) < 3:
            _signal_ranks(self._folder, os.kill, number)
        else:
            _signal_ranks(self._folder, os.killpg, signal.SIGKILL)
