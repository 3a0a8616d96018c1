"""Ranks of a command: how Slurm or `--nproc` starts them, and how they report errors.

A rank does not print its error: it writes it to the error file that torchrun gives it. The starting
process reports the error that caused the others.
"""

import ctypes
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vlatool.errors import EnvironmentProblem, VlatoolError
from vlatool.events import STOP_SIGNALS
from vlatool.storage.tree import natural_key

LAUNCH = "VLATOOL_LAUNCH"
# File with the machines of a job; `launch sagemaker` sets it.
HOSTS = "VLATOOL_HOSTS"
# Environment variables of a job to names of secrets in its store, as JSON.
SECRETS = "VLATOOL_SECRETS"
THREADS = "OMP_NUM_THREADS"
LOST_RANK = "environment.lost_rank"
CTRL_C = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SLURM_TASKS = "SLURM_STEP_NUM_TASKS"  # set by srun, unlike SLURM_NTASKS, which a batch script has
_PORTS = range(10_000, 30_000)  # below those that Linux gives to connections


def slurm_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of torchrun for a task that srun started.

    Empty for any other process, for a step with one task, and if a launcher has set RANK.

    Raises:
        EnvironmentProblem: A variable of Slurm is missing or no number.
    """
    tasks = environ.get(_SLURM_TASKS, "1")
    if "RANK" in environ or tasks == "1":
        return {}
    try:
        step = int(environ["SLURM_JOB_ID"]) + int(environ.get("SLURM_STEP_ID", "0"))
        variables = {
            "RANK": str(int(environ["SLURM_PROCID"])),
            "WORLD_SIZE": str(int(tasks)),
            "LOCAL_RANK": _local_rank(environ),
            "LOCAL_WORLD_SIZE": str(_tasks_of_node(environ, int(tasks))),
            "MASTER_ADDR": first_host(environ["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(_PORTS[step % len(_PORTS)]),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise EnvironmentProblem(
            f"{_SLURM_TASKS} is {tasks!r}, but another variable of Slurm is wrong: {error}",
            hint=f"start the ranks with srun, or unset {_SLURM_TASKS}",
            code="environment.process_failed",
        ) from None
    # An address that the user has chosen stays.
    return {name: environ.get(name, value) for name, value in variables.items()}


def _local_rank(environ: Mapping[str, str]) -> str:
    """Index of the GPU of a task; with `--gpus-per-task 1` each task sees one GPU, number 0."""
    local_rank = int(environ["SLURM_LOCALID"])
    sees_one = len(environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1
    return "0" if sees_one and environ.get("CUDA_VISIBLE_DEVICES") else str(local_rank)


@dataclass(frozen=True)
class Machine:
    """This machine among the machines of a job.

    Attributes:
        index: Its index.
        count: Number of machines.
        first_host: Name of the machine with rank 0.
    """

    index: int
    count: int
    first_host: str

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Self | None:
        """The machine that the file named by HOSTS describes; None without a file, and in a rank.

        The file is the one that SageMaker writes for each container: `hosts` and `current_host`.

        Raises:
            EnvironmentProblem: The file cannot be used.
        """
        if HOSTS not in environ or "WORLD_SIZE" in environ:
            return None
        try:
            document = json.loads(Path(environ[HOSTS]).read_text())
            hosts = sorted(document["hosts"], key=natural_key)
            return cls(hosts.index(document["current_host"]), len(hosts), hosts[0])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise EnvironmentProblem(
                f"{HOSTS} is {environ[HOSTS]!r}, which does not name machines of a job: {error}",
                hint=f"unset {HOSTS} to train on this machine",
                code="environment.hardware",
            ) from None


def _tasks_of_node(environ: Mapping[str, str], tasks: int) -> int:
    """Tasks of the step on this node; `2(x3),1` stands for three nodes with two and one with one.

    Without the variable all tasks count, as if they shared the node.
    """
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(count) for count, nodes in groups for _ in range(int(nodes or 1))]
    return counts[int(environ.get("SLURM_NODEID", "0")) if len(counts) > 1 else 0]


def first_host(nodes: str) -> str:
    """First host in a node list of Slurm: node03 for `node[03-05,9],login`."""
    first = re.split(r",(?![^[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first)


@dataclass(frozen=True)
class Launch:
    """Data that a process passes on to the processes it starts: the launcher, then the ranks.

    Attributes:
        parent: Process id of the process that passes the data.
        folder: Folder of the launch, into which a rank writes its process id.
    """

    parent: int
    folder: str

    @classmethod
    def of_this_process(cls) -> Self | None:
        """The data that were passed to this process, once; None for any other process."""
        text = os.environ.pop(LAUNCH, None)
        return None if text is None else cls(**json.loads(text))

    def variables(self) -> dict[str, str]:
        """The environment variable with the data."""
        return {LAUNCH: json.dumps(asdict(self))}

    def end_with_parent(self) -> None:
        """Asks the kernel to kill this process when its parent process ends. Linux only.

        The signal is SIGKILL, because a rank that waits in a collective handles no other. The last
        checkpoint stays, as after a SIGKILL of a single process.
        """
        if sys.platform != "linux":
            return
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.parent:  # it ended before prctl was called
            os.kill(os.getpid(), signal.SIGKILL)

    def join(self) -> None:
        """Prepares this process to be a rank: how it ends, its output and signals."""
        self.end_with_parent()
        if os.environ["RANK"] != "0":
            with suppress(OSError):  # stdout or stderr may be closed
                os.dup2(2, 1)  # only the result of rank 0 belongs on stdout
        (Path(self.folder) / f"{os.getpid()}.pid").touch()


# A rank whose main thread does not run Python for so long after a stop signal ends at once.
_STUCK_S = 10.0


def end_when_stuck(report: Callable[[], None]) -> None:
    """Lets a stop signal end this process, too, while its main thread waits for another rank.

    Torch waits in C++, where Python handles no signal: a rank would stay until the other one comes.
    `report` is called before the end.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def watch() -> None:
        while received := os.read(receiver, 1):
            if received[0] in (signal.SIGINT, *STOP_SIGNALS) and not _runs_python():
                report()
                os._exit(CTRL_C if received[0] == signal.SIGINT else TERMINATED)

    threading.Thread(target=watch, daemon=True, name="vlatool-stop").start()


def _runs_python() -> bool:
    """True if the main thread runs Python again soon; it has handled its signals then."""
    has_run = threading.Event()
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: bool(has_run.set()))
    ctypes.pythonapi.Py_AddPendingCall(call, None)
    return has_run.wait(_STUCK_S)


@dataclass(frozen=True)
class RankExit:
    """How a rank ended.

    Attributes:
        rank: Index of the rank.
        exit_code: Its exit code; negative for a signal.
        time_s: Time of the error, or at which the end was noticed, in whole seconds.
        error: Content of the error file of the rank, if it wrote one.
    """

    rank: int
    exit_code: int
    time_s: int
    error: Mapping[str, Any] | None = None

    @property
    def code(self) -> int:
        """Exit code as in a shell: 128 + signal number for a signal."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    def weight(self) -> int:
        """Rank of this end among the possible causes; 0 is the most likely cause.

        After one rank ends, the others fail in the next collective, which looks like a bug, or are
        terminated by the agent.
        """
        if self.exit_code in (
            CTRL_C,
            -signal.SIGINT,
        ):  # also if a rank stops because another received the signal
            return 4
        if self.exit_code == TERMINATED or -self.exit_code in STOP_SIGNALS:
            return 3
        if self.exit_code < 0:
            return 1
        is_consequence = self.error is None or self.error["code"] == LOST_RANK
        return 2 if is_consequence or self.exit_code == 1 else 0


def cause(exits: Iterable[RankExit]) -> RankExit:
    """The end that caused all others."""
    known = list(exits)
    # Ranks that end later were ended by the agent, by SIGKILL if they hung.
    first = min(end.time_s for end in known)
    at_once = [end for end in known if end.time_s <= first + 1]
    return min(at_once, key=lambda end: (end.weight(), end.rank))


def rank_error(end: RankExit) -> VlatoolError:
    """The error of a rank with its exit code; 128 + signal number if a signal ended it."""
    error = end.error or _unexplained(end)
    members = {"exit_code": end.code, "kind": error["kind"]}
    # The error of rank 0 is the error of the command; for other ranks the message has the index.
    prefix = f"rank {end.rank}: " if end.error and end.rank else ""
    return type("RankError", (VlatoolError,), members)(
        prefix + error["message"],
        hint=error["hint"],
        code=error["code"],
        details={**error.get("details", {}), "rank": end.rank, "exit_code": end.code},
    )


def _unexplained(end: RankExit) -> Mapping[str, Any]:
    if end.exit_code >= 0:
        message = f"rank {end.rank} ended with exit code {end.exit_code}"
        hint = "read the output of this rank above"
    else:
        message = f"rank {end.rank} was killed by {_name(-end.exit_code)}"
        hint = "run the same command again to resume from the last checkpoint"
        if -end.exit_code == signal.SIGKILL:
            hint = f"it has probably run out of memory; {hint}"
    return {"kind": "rank", "message": message, "hint": hint, "code": "environment.process_failed"}


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
