"""Starts several ranks of a command on this machine (`--nproc`).

The starting process runs this module as a child, which runs torchrun and writes down how the ranks
ended. The ranks run the same command line without `--nproc`; `ranks.py` has the data and the errors
that the processes exchange.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.events import NULL, STOP_SIGNALS, Reporter, counted
from vlatool.jobs.executor import default_workers
from vlatool.storage.atomic import write_json
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
_EXITS = "exits.json"
_FORWARDED = (signal.SIGINT, *STOP_SIGNALS)
_ONLY = Machine(0, 1, "localhost")
_PORT = 29_500  # torch's default


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
    with TemporaryDirectory(prefix="vlatool-ranks-") as name:
        folder = Path(name)
        launch = Launch(os.getpid(), name)
        variables = {**shown, **_warning_filter(), **_safe_path(), **launch.variables()}
        output = folder / "stdout"
        with output.open("wb") as stdout:
            command = [sys.executable, "-m", "vlatool.training.start", *options]
            child = subprocess.Popen(  # noqa: S603 - this interpreter, our module
                command, stdout=stdout, env={**os.environ, **variables}, start_new_session=True
            )
        with _forwarded_signals(folder, child) as received:
            exit_code = child.wait()
            # Helper processes of killed ranks: loader workers keep their fork server alive. Each
            # rank leads a process group. The resource tracker of multiprocessing ignores SIGTERM,
            # cleans up, and ends when all others have ended.
            _signal_ranks(folder, os.killpg, signal.SIGTERM)
        if exit_code:
            _raise(exit_code, folder / _EXITS, received)
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
def _forwarded_signals(folder: Path, child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Passes stop signals on to the ranks; yields a growing list of the received signals.

    Signals go directly to the ranks. Torchrun would pass them to the process group of each rank,
    loader workers included, whose end may cost the rank its last checkpoint, and kill it after 30
    s.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not any(folder.glob("*.pid")):
            child.kill()  # it may wait for other machines; a rank that starts ends with it
        elif len(received) < 3:
            _signal_ranks(folder, os.kill, number)
        else:
            _signal_ranks(folder, os.killpg, signal.SIGKILL)

    previous = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in previous.items():
        if handler != signal.SIG_IGN:  # such as SIGHUP with nohup
            signal.signal(number, forward)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(options: Sequence[str]) -> int:
    """Runs torchrun in the child process until all ranks have ended; returns 1 if one failed, and
    writes down how.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launch = Launch.of_this_process()
    assert launch is not None
    launch.end_with_parent()
    for number in _FORWARDED:  # not SIG_IGN, which the ranks would inherit
        signal.signal(number, lambda *_: None)
    os.environ.update(replace(launch, parent=os.getpid()).variables())
    folder = Path(launch.folder)
    parsed = run.parse_args(options)
    parsed.log_dir = str(folder / "torchrun")  # otherwise a new folder that it does not remove
    logging.disable(logging.ERROR)  # the starting process reports the failed ranks
    try:
        # In a thread torchrun handles no signals: `start` passes them on.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run.run, parsed).result()
    except ChildFailedError as failed:
        exits: list[RankExit] = []
        for rank, end in failed.failures.items():
            # Torch has a document of its own for a rank without an error file.
            error = end.error_file_data if "kind" in end.error_file_data else None
            exits.append(RankExit(rank, end.exitcode, end.timestamp, error))
        write_json(folder / _EXITS, {"exits": [asdict(rank_exit) for rank_exit in exits]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
