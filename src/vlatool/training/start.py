"""Starts several ranks of a command on this machine (`--nproc`).

The starting process runs torchrun as a child (`launcher.py`). The ranks run the same command line
without `--nproc`; `ranks.py` has the data and the errors that the processes exchange.
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import FrameType

from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.executor import default_workers
from vlatool.training.launcher import EXITS, FORWARDED
from vlatool.training.ranks import (
    CTRL_C,
    TERMINATED,
    THREADS,
    Launch,
    Machine,
    RankExit,
    cause,
    rank_error,
)

OPTION = "--nproc"
# Below the folder for temporary files. The kernel releases the lock when the command ends.
_FOLDER_PREFIX = "vlatool-ranks-"
_LOCK = "lock"
# A newer folder may not be locked yet.
_MIN_AGE_S = 60.0
_ONLY = Machine(0, 1, "localhost")
_PORT = 29_500  # torch's default
_MAX_PROCESSES = 1_024  # torchrun creates an object per process before it starts any


def start(
    arguments: Sequence[str], processes: int, *, node: Machine = _ONLY, reporter: Reporter = NULL
) -> str:
    """Runs a vlatool command line on ranks of this machine; returns the output of rank 0.

    `processes`: number of ranks on this machine; `reporter`: receives a note with the command that
    starts the ranks.

    The first and the second stop signal are passed on to the ranks, the third kills them.
    """
    gpus = gpus_here()
    check_processes(processes, gpus, reporter)
    options = torchrun_options(rank_arguments(arguments), processes, node)
    shown = _gpu_variables() if gpus else _threads(processes)
    words = [*(f"{name}={value}" for name, value in shown.items()), "torchrun", shlex.join(options)]
    reporter.note(f"starting {processes} processes: {' '.join(words)}")
    with _shared_folder() as folder:
        launch = Launch(os.getpid(), str(folder), owns_threads=not gpus and THREADS in shown)
        variables = {**shown, **_warning_filter(), **_safe_path(), **launch.variables()}
        output = folder / "stdout"
        waiting: list[subprocess.Popen[bytes]] = []
        with _forwarded_signals(folder, waiting) as received, output.open("wb") as stdout:
            command = [sys.executable, "-m", "vlatool.training.launcher", *options]
            child = subprocess.Popen(  # noqa: S603 - this interpreter, our module
                command, stdout=stdout, env={**os.environ, **variables}, start_new_session=True
            )
            if node.count > 1:
                waiting.append(child)
            exit_code = child.wait()
            # Helper processes of killed ranks: loader workers keep their fork server alive. Each
            # rank leads a process group. The resource tracker of multiprocessing ignores SIGTERM,
            # cleans up, and ends when all others have ended.
            _signal_ranks(folder, os.killpg, signal.SIGTERM)
        if exit_code:
            _raise(exit_code, folder / EXITS, received)
        return output.read_text(getattr(sys.stdout, "encoding", None), "replace")


def check_processes(processes: int, gpus: int, reporter: Reporter = NULL) -> None:
    """Checks that this machine can start so many ranks; warns if it has too few processors."""
    if "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"{OPTION} cannot be used in a process that a launcher has started (WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']!r})",
            hint=f"leave {OPTION} out under torchrun, accelerate launch and srun; otherwise "
            "unset WORLD_SIZE",
            code="usage.bad_value",
        )
    if processes < 1:
        raise UsageError(
            f"{OPTION} {processes}: at least one process is needed",
            hint=f"use {OPTION} {max(gpus, 1)}",
            code="usage.bad_value",
            details={"nproc": processes},
        )
    if processes > _MAX_PROCESSES:
        raise UsageError(
            f"{OPTION} {processes}: more than {_MAX_PROCESSES} processes",
            hint=f"use {OPTION} {gpus or default_workers()}",
            code="usage.bad_value",
            details={"nproc": processes},
        )
    if 0 < gpus < processes:
        raise EnvironmentProblem(
            f"{OPTION} {processes} needs a GPU for each process, but this machine has {gpus}",
            hint=f"use {OPTION} {gpus}",
            code="environment.hardware",
            details={"nproc": processes, "gpus": gpus},
        )
    processors = default_workers()
    if not gpus and processes > processors:
        count = counted(processors, "processor")
        message = f"{OPTION} {processes}: this machine has no GPU and {count}"
        reporter.warn("many_processes", f"{message}; more processes than that are not faster")


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


def torchrun_options(arguments: Sequence[str], processes: int, node: Machine = _ONLY) -> list[str]:
    """The arguments of torchrun that start a vlatool command line on ranks of this machine."""
    # torch's default address, the host name, may not be reachable.
    address = ["--standalone", "--local_addr", "127.0.0.1"]
    if node.count > 1:
        nodes = ["--nnodes", str(node.count), "--node_rank", str(node.index)]
        address = [*nodes, "--master_addr", node.first_host, "--master_port", str(_PORT)]
    return [*address, "--nproc_per_node", str(processes), "-m", "vlatool", *arguments]


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
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield Path(name)


def _raise(exit_code: int, file: Path, received: Sequence[int]) -> None:
    """Raises the error of the rank that failed first. `file`: how the failed ranks ended, written
    by the launcher; missing if the launcher itself failed.
    """
    rows = json.loads(file.read_text())["exits"] if file.is_file() else []
    exits = [RankExit(**row) for row in rows]
    first = cause(exits) if exits else None
    # After an interruption only an error that a rank reported is relevant, not how ranks ended.
    if received and (first is None or first.weight() > 0):
        raise SystemExit(CTRL_C if received[0] == signal.SIGINT else TERMINATED)
    if first is None:
        raise EnvironmentProblem(
            f"torchrun ended with exit code {exit_code}",
            hint="read its output above",
            code="environment.process_failed",
        )
    if first.weight() > 2:
        raise SystemExit(first.code)
    raise rank_error(first)


def gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_variables() -> dict[str, str]:
    """Variables of ranks on GPUs, as far as the user has not set them."""
    from accelerate.utils import check_cuda_p2p_ib_support

    variables = {THREADS: "1"}
    if not check_cuda_p2p_ib_support():
        variables |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    return {name: value for name, value in variables.items() if name not in os.environ}


def _threads(processes: int) -> dict[str, str]:
    """Variable with the number of threads per rank; empty if the user has set it."""
    if THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, default_workers() // processes))}


def _safe_path() -> dict[str, str]:
    """Variable that keeps the current folder out of the import path, where `python -m` puts it."""
    is_on_path = {"", os.getcwd()} & set(sys.path)
    return {} if is_on_path else {"PYTHONSAFEPATH": "1"}


def _warning_filter() -> dict[str, str]:
    """Variable that hides Python's warning about leaked semaphores of a killed rank."""
    rule = "ignore::UserWarning:multiprocessing.resource_tracker"
    user_rules = os.environ.get("PYTHONWARNINGS")
    return {"PYTHONWARNINGS": f"{user_rules},{rule}" if user_rules else rule}


def _signal_ranks(folder: Path, send: Callable[[int, int], None], number: int) -> None:
    for file in folder.glob("*.pid"):
        with suppress(ProcessLookupError, PermissionError):
            send(int(file.stem), number)


@contextmanager
def _forwarded_signals(
    folder: Path, launchers: Sequence[subprocess.Popen[bytes]]
) -> Iterator[list[int]]:
    """Passes stop signals on to the ranks; yields a growing list of the received signals.
    `launchers`: the launcher, if it waits for other machines before it starts ranks.

    Signals go directly to the ranks. Torchrun would pass them to the process group of each rank,
    loader workers included, whose end may cost the rank its last checkpoint, and kill it after 30
    s.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # The file comes first, for ranks that have not joined yet.
        (folder / "stop").write_text(str(number))
        if launchers and not any(folder.glob("*.pid")):
            launchers[0].kill()  # it waits for other machines; a rank that starts ends with it
        elif len(received) < 3:
            _signal_ranks(folder, os.kill, number)
        else:
            _signal_ranks(folder, os.killpg, signal.SIGKILL)

    previous = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in previous.items():
        if handler != signal.SIG_IGN:  # such as SIGHUP with nohup
            signal.signal(number, forward)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
