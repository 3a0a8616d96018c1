"""Ends a command at one step, repeats it, and compares with a run that nobody disturbed.

Each run is a fork of this process, which has imported everything and started no thread: a run then
takes a tenth of a second. The steps are those of `vlatool.storage.crash_points`.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from tests.kills.commands import Command, Place, make_inputs
from vlatool.storage.atomic import remove_tree
from vlatool.storage.crash_points import VARIABLE
from vlatool.storage.remote_path import RemotePath

Case = tuple[int, str]


@dataclass
class Trial:
    """Cases of one command.

    Attributes:
        command: The command.
        cases: Number and line of each step that is tried.
        steps: How many steps an undisturbed run has.
        problems: What was wrong.
    """

    command: Command
    cases: Sequence[Case] = ()
    steps: int = 0
    problems: list[str] = field(default_factory=list[str])


class Bench:
    """Where cases are tried.

    Args:
        root: An empty folder.
        bucket: An empty bucket, for commands that write to S3.
    """

    def __init__(self, root: Path, bucket: str = "") -> None:
        self._root = root
        self._bucket = bucket
        self._place = Place(root / "inputs", root / "case" / "out")
        self._log = root / "log.txt"
        self._modules = root / "modules.txt"
        if self._forked(lambda: make_inputs(root / "inputs")):
            raise RuntimeError(self._log.read_text())
        self._import_all()

    def trial(self, command: Command, choose: Callable[[Sequence[Case]], Sequence[Case]]) -> Trial:
        """Tries the cases that `choose` takes from all of a command."""
        trial = Trial(command)
        out = (
            RemotePath(f"s3://{self._bucket}/out") if command.is_remote else self._root / "case/out"
        )
        self._place = Place(self._root / "inputs", out)
        note = self._root / "steps"
        note.unlink(missing_ok=True)
        self._begin(command)
        if self._forked(lambda: command.run(self._place), str(note)):
            trial.problems.append(f"undisturbed: {self._last_line()}")
            return trial
        self._import_all()
        expected = command.result(self._place.out)
        lines = note.read_text().splitlines()
        trial.steps = len(lines)
        trial.cases = choose(cases_of(lines))
        for number, line in trial.cases:
            self._begin(command)
            self._try(trial, number, line, expected)
        return trial

    def _try(self, trial: Trial, number: int, line: str, expected: object) -> None:
        command, place = trial.command, self._place
        code = self._forked(lambda: command.run(place), str(number))
        if code != -signal.SIGKILL:
            trial.problems.append(f"{line} ({number}): ended with {code}: {self._last_line()}")
            return
        if self._forked(lambda: command.run(place)):
            trial.problems.append(f"{line} ({number}): repeated: {self._last_line()}")
            return
        if command.result(place.out) != expected:
            trial.problems.append(f"{line} ({number}): other bytes")
        elif not command.is_remote and (left := _leftovers(place.out)):
            trial.problems.append(f"{line} ({number}): left {left[0]}")

    def _begin(self, command: Command) -> None:
        """Leaves what is there before; made once, copied from then on."""
        folder, earlier = self._root / "case", self._root / "earlier" / command.name
        shutil.rmtree(folder, ignore_errors=True)
        if earlier.exists():
            shutil.copytree(earlier, folder)
            return
        folder.mkdir()
        if command.is_remote and self._forked(lambda: remove_tree(self._place.out)):
            raise RuntimeError(self._log.read_text())
        if self._forked(lambda: command.before(self._place)):
            raise RuntimeError(self._log.read_text())
        if not command.is_remote:
            shutil.copytree(folder, earlier)

    def _import_all(self) -> None:
        """Imports what a run imported, so that the forks to come need not."""
        for name in self._modules.read_text().split():
            with suppress(Exception):
                import_module(name)

    def _forked(self, work: Callable[[], object], steps: str | None = None) -> int:
        """Exit code of a fork that does the work; its steps are noted, or it ends at one."""
        child = os.fork()
        if child == 0:
            self._do(work, steps)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _do(self, work: Callable[[], object], steps: str | None) -> None:
        code = 1
        try:
            descriptor = os.open(self._log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # no workers: steps in order
            if steps is not None:
                os.environ[VARIABLE] = steps
            work()
            self._modules.write_text("\n".join(list(sys.modules)))
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent shall hear of it
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _last_line(self) -> str:
        return (self._log.read_text().strip() or "no output").splitlines()[-1]


def cases_of(lines: Sequence[str]) -> list[Case]:
    """The first and the last step of each line: each kind of operation at each file."""
    numbered = list(enumerate(lines, start=1))
    first = {line: number for number, line in reversed(numbered)}
    last = {line: number for number, line in numbered}
    return sorted({(number, line) for line in first for number in (first[line], last[line])})


def _leftovers(out: Path) -> list[str]:
    found = [*out.rglob(".*.partial"), *out.rglob(".vlatool/journal")]
    return [path.relative_to(out).as_posix() for path in found]
