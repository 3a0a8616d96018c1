"""Communication between the ranks of `--nproc` and the process that started them.

A rank does not print its error: it hands it to the starting process, which reports the error that
caused the others.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from vlatool.errors import EnvironmentProblem, VlatoolError
from vlatool.storage.atomic import write_json

MEMBERSHIP = "VLATOOL_RANK_OF"
THREADS = "OMP_NUM_THREADS"
_CTRL_C, _SIGTERM = 128 + signal.SIGINT, 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Membership:
    """Data that the starting process passes to its ranks.

    Attributes:
        processes: Number of ranks.
        starter: Process id of the starting process.
        folder: Folder into which a rank writes its process id and its error.
        owns_threads: The starting process set the number of threads, not the user.
    """

    processes: int
    starter: int
    folder: str
    owns_threads: bool

    @classmethod
    def of_this_process(cls) -> Self | None:
        """The membership of a process that `start` started; None for any other process."""
        text = os.environ.pop(MEMBERSHIP, None)
        return None if text is None else cls(**json.loads(text))

    def join(self) -> None:
        """Connects this rank to the starting process.

        Raises:
            EnvironmentProblem: The launcher started another number of processes.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size != self.processes:
            raise EnvironmentProblem(
                f"{self.processes} processes were requested, the launcher started {world_size}",
                hint=f"start them with torchrun: torchrun --nproc_per_node {self.processes} "
                "-m vlatool ...",
                code="environment.processes",
            )
        _end_with(self.starter)
        if _rank() > 0:
            with suppress(OSError):  # stdout or stderr may be closed
                os.dup2(2, 1)  # only the result of rank 0 belongs on stdout
        folder = Path(self.folder)
        (folder / f"{os.getpid()}.pid").touch()
        if (folder / "stop").is_file():
            os.kill(os.getpid(), int((folder / "stop").read_text()))
        if self.owns_threads:
            # Torch reads the number at import. `Runtime.limit_threads` subtracts the loader
            # workers later, unless the user has set the variable.
            import torch as _  # noqa: F401 - import has the side effect

            os.environ.pop(THREADS, None)

    def report_error(self, error: VlatoolError) -> None:
        """Writes the error of this rank for the starting process."""
        document = {
            "kind": error.kind,
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "details": json.loads(json.dumps(error.details, default=str)),
        }
        if isinstance(error.result, _Told):
            document["result"] = {
                "document": json.loads(json.dumps(error.result.document(), default=str)),
                "text": error.result.text(),
            }
        write_json(Path(self.folder) / f"{_rank()}.json", document)


@runtime_checkable
class _Told(Protocol):
    """A result that is attached to an error, as far as it can be passed between processes."""

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        ...

    def text(self) -> str:
        """The result as text."""
        ...


@dataclass(frozen=True)
class RankResult:
    """The result of rank 0, to be printed by the starting process."""

    info: Mapping[str, Any]
    words: str

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return dict(self.info)

    def text(self) -> str:
        """The result as text."""
        return self.words


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _end_with(starter: int) -> None:
    """Lets the kernel kill this rank when the process that started it ends. Linux only.

    The signal is SIGKILL, because a rank that waits in a collective handles no other. The last
    checkpoint stays, as after a SIGKILL of a single process.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != starter:  # it ended before prctl was called
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class RankEnd:
    """The end of a rank.

    Attributes:
        rank: Index of the rank.
        exit_code: Its exit code; negative for a signal.
        time_s: Time at which the end was noticed, in whole seconds.
        error: The error that the rank reported, if any.
    """

    rank: int
    exit_code: int
    time_s: int
    error: Mapping[str, Any] | None = None

    @property
    def code(self) -> int:
        """Exit code as in a shell: 128 + signal number for a signal."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    def with_error(self, folder: Path) -> Self:
        """This end with the error that the rank wrote to the folder, if any."""
        file = folder / f"{self.rank}.json"
        return replace(self, error=json.loads(file.read_text())) if file.is_file() else self

    def weight(self) -> int:
        """Rank of this end among the possible causes; 0 is the most likely cause.

        After one rank ends, the others fail in the next collective, which looks like a bug, or are
        terminated by the agent.
        """
        if self.exit_code == _CTRL_C:  # also if a rank stops because another received the signal
            return 4
        if self.exit_code in (_SIGTERM, -signal.SIGTERM):
            return 3
        if self.exit_code < 0:
            return 1
        return 2 if self.error is None or self.exit_code == 1 else 0


def cause(rank_ends: Iterable[RankEnd]) -> RankEnd:
    """The end that caused the others."""
    known = list(rank_ends)
    # Ranks that end later were ended by the agent, by SIGKILL if they hung.
    first = min(end.time_s for end in known)
    at_once = [end for end in known if end.time_s <= first + 1]
    return min(at_once, key=lambda end: (end.weight(), end.rank))


def rank_error(end: RankEnd) -> VlatoolError:
    """The error of a rank with its exit code; 128 + signal number if a signal ended it."""
    error = end.error or _unexplained(end)
    members = {"exit_code": end.code, "kind": error["kind"]}
    # The error of rank 0 is the error of the command; for other ranks the message has the index.
    prefix = f"rank {end.rank}: " if end.error and end.rank else ""
    result_error = type("RankError", (VlatoolError,), members)(
        prefix + error["message"],
        hint=error["hint"],
        code=error["code"],
        details={**error.get("details", {}), "rank": end.rank, "exit_code": end.code},
    )
    if result := error.get("result"):
        result_error.result = RankResult(result["document"], result["text"])
    return result_error


def _unexplained(end: RankEnd) -> Mapping[str, Any]:
    if end.exit_code >= 0:
        message = f"rank {end.rank} ended with exit code {end.exit_code}"
        hint = "see the output of the rank above"
    else:
        message = f"rank {end.rank} was killed by {_name(-end.exit_code)}"
        hint = "run the same command to resume from the last checkpoint"
        if -end.exit_code == signal.SIGKILL:
            hint = f"a common reason is that the memory ran out; {hint}"
    return {"kind": "rank", "message": message, "hint": hint, "code": "rank.ended"}


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
