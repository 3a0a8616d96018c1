"""A rank of `--nproc` and the process that started it: what each tells the other.

A rank says nothing of its errors itself: it hands them to the first process, which tells the one
that the others followed from.
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
    """What the first process tells its ranks.

    Attributes:
        processes: Number of ranks it asked for.
        starter: Its process id.
        folder: Where a rank leaves its process id and its error.
        owns_threads: It chose the number of threads, not the user.
    """

    processes: int
    starter: int
    folder: str
    owns_threads: bool

    @classmethod
    def of_this_process(cls) -> Self | None:
        """The membership of a process that `start` has started; None for any other."""
        text = os.environ.pop(MEMBERSHIP, None)
        return None if text is None else cls(**json.loads(text))

    def join(self) -> None:
        """Ties this rank to the first process.

        Raises:
            EnvironmentProblem: The launcher has started another number of processes.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size != self.processes:
            raise EnvironmentProblem(
                f"{self.processes} processes were asked for, the launcher started {world_size}",
                hint=f"start them yourself: torchrun --nproc_per_node {self.processes} "
                "-m vlatool ...",
                code="environment.processes",
            )
        _end_with(self.starter)
        if _rank() > 0:
            with suppress(OSError):  # they may be closed
                os.dup2(2, 1)  # only the main rank's result belongs on stdout
        folder = Path(self.folder)
        (folder / f"{os.getpid()}.pid").touch()
        if (folder / "stop").is_file():
            os.kill(os.getpid(), int((folder / "stop").read_text()))
        if self.owns_threads:
            # Torch reads the number while it is loaded; later the loaders' share is taken off by
            # `Runtime.share_processors`, which leaves a number alone that the user has set.
            import torch as _  # noqa: F401 - for the effect

            os.environ.pop(THREADS, None)

    def report_error(self, error: VlatoolError) -> None:
        """Hands this rank's error to the first process."""
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
    """A result that came with an error: what is left of it between processes."""

    def document(self) -> dict[str, Any]:
        """For programs."""
        ...

    def text(self) -> str:
        """For people."""
        ...


@dataclass(frozen=True)
class RankResult:
    """What the main rank would have printed."""

    info: Mapping[str, Any]
    words: str

    def document(self) -> dict[str, Any]:
        """For programs."""
        return dict(self.info)

    def text(self) -> str:
        """For people."""
        return self.words


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _end_with(starter: int) -> None:
    """Lets the kernel kill this rank when the process that started it is gone.

    Only Linux can; SIGKILL, because a rank that waits for its neighbours hears nothing else. As
    after a SIGKILL of a single process, the last checkpoint stands.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != starter:  # it went before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended.

    Attributes:
        rank: Which one.
        exit_code: Its exit code; negative for a signal.
        time_s: When that was seen, in whole seconds.
        error: What it handed over, if anything.
    """

    rank: int
    exit_code: int
    time_s: int
    error: Mapping[str, Any] | None = None

    @property
    def code(self) -> int:
        """Its exit code as a shell says it: 128 and the signal."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    def with_error(self, folder: Path) -> Self:
        """This end, with the error that the rank has left in the folder, if any."""
        file = folder / f"{self.rank}.json"
        return replace(self, error=json.loads(file.read_text())) if file.is_file() else self

    def weight(self) -> int:
        """How well it explains why all ranks ended: 0 best.

        A rank whose neighbour is gone fails in the next exchange, which looks like a bug, or is
        asked to end by the agent.
        """
        if self.exit_code == _CTRL_C:  # also of a rank that stops because another is told to
            return 4
        if self.exit_code in (_SIGTERM, -signal.SIGTERM):
            return 3
        if self.exit_code < 0:
            return 1
        return 2 if self.error is None or self.exit_code == 1 else 0


def cause(ends: Iterable[RankEnd]) -> RankEnd:
    """The end that the others followed from."""
    known = list(ends)
    # Those that are seen later were ended by the agent, by SIGKILL if they hung.
    first = min(end.time_s for end in known)
    at_once = [end for end in known if end.time_s <= first + 1]
    return min(at_once, key=lambda end: (end.weight(), end.rank))


def rank_error(end: RankEnd) -> VlatoolError:
    """The error of a rank, with its exit code; 128 and the signal if one ended it."""
    error = end.error or _unexplained(end)
    members = {"exit_code": end.code, "kind": error["kind"]}
    # What the main rank says is what the command says; another's needs its number.
    place = f"rank {end.rank}: " if end.error and end.rank else ""
    told = type("RankError", (VlatoolError,), members)(
        place + error["message"],
        hint=error["hint"],
        code=error["code"],
        details={**error.get("details", {}), "rank": end.rank, "exit_code": end.code},
    )
    if result := error.get("result"):
        told.result = RankResult(result["document"], result["text"])
    return told


def _unexplained(end: RankEnd) -> Mapping[str, Any]:
    if end.exit_code >= 0:
        message = f"rank {end.rank} ended with exit code {end.exit_code}"
        hint = "what it wrote itself stands above"
    else:
        message = f"rank {end.rank} was ended by {_name(-end.exit_code)}"
        hint = "the same command goes on from the last checkpoint"
        if -end.exit_code == signal.SIGKILL:
            hint = f"often the memory ran out; {hint}"
    return {"kind": "rank", "message": message, "hint": hint, "code": "rank.ended"}


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
