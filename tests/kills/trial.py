"""Trials that kill a command at one step, repeat it, and compare with an uninterrupted run.

Each run is a fork of this process, which has imported everything and started no thread: a run takes
a tenth of a second. The steps are those of `vlatool.storage.crash_points`.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from tests.kills.commands import Command, Workspace, make_inputs
from vlatool.storage.atomic import remove_tree
from vlatool.storage.crash_points import VARIABLE
from vlatool.storage.remote_path import RemotePath

Case = tuple[int, str]
_JOURNAL = ".vlatool/journal"


@dataclass
class Trial:
    """Result of the cases of one command."""

    command: Command
    cases: Sequence[Case] = ()  # number and line of each step at which it was killed
    steps: int = 0  # number of steps of an uninterrupted run
    problems: list[str] = field(default_factory=list[str])  # description of each failure


class TrialRunner:
    """Runner of the cases of commands; `root`: an empty folder; `bucket`: an empty bucket, for
    commands that write to S3.
    """

    def __init__(self, root: Path, bucket: str = "") -> None:
        self._root = root
        self._bucket = bucket
        self._workspace = Workspace(root / "inputs", root / "case" / "out")
        self._log = root / "log.txt"
        self._modules = root / "modules.txt"
        if self._forked(lambda: make_inputs(root / "inputs")):
            raise RuntimeError(self._log.read_text())
        self._import_all()

    def trial(self, command: Command, select: Callable[[Sequence[Case]], Sequence[Case]]) -> Trial:
        """Tries the cases that `choose` takes from all of a command."""
        trial = Trial(command)
        out = (
            RemotePath(f"s3://{self._bucket}/out") if command.is_remote else self._root / "case/out"
        )
        self._workspace = Workspace(self._root / "inputs", out, f"s3://{self._bucket}/copies")
        note = self._root / "steps"
        note.unlink(missing_ok=True)
        self._prepare(command)
        if self._forked(lambda: command.run(self._workspace), str(note)):
            trial.problems.append(f"uninterrupted: {self._last_line()}")
            return trial
        self._import_all()
        expected = command.result(self._workspace.out)
        lines = note.read_text().splitlines()
        trial.steps = len(lines)
        trial.cases = select(cases_of(lines))
        for number, line in trial.cases:
            self._prepare(command)
            self._run_case(trial, number, line, expected)
        return trial

    def _run_case(self, trial: Trial, number: int, line: str, expected: object) -> None:
        command, workspace = trial.command, self._workspace
        code = self._forked(lambda: command.run(workspace), str(number))
        if code != -signal.SIGKILL:
            trial.problems.append(f"{line} ({number}): ended with {code}: {self._last_line()}")
            return
        if command.loses_machine:
            shutil.rmtree(workspace.out, ignore_errors=True)
        if self._forked(lambda: command.run(workspace)):
            trial.problems.append(f"{line} ({number}): repeated: {self._last_line()}")
            return
        if command.result(workspace.out) != expected:
            trial.problems.append(f"{line} ({number}): other bytes")
        elif not command.is_remote and (left := _leftovers(command, workspace.out)):
            trial.problems.append(f"{line} ({number}): left {left[0]}")

    def _prepare(self, command: Command) -> None:
        """Prepares the folder for a case; the first result is copied for later cases."""
        folder, earlier = self._root / "case", self._root / "earlier" / command.name
        shutil.rmtree(folder, ignore_errors=True)
        if earlier.exists():
            shutil.copytree(earlier, folder)
            return
        folder.mkdir()
        remote = [self._workspace.out] if command.is_remote else []
        remote += [RemotePath(self._workspace.remote)] if command.has_copy else []
        for path in remote:
            if self._forked(partial(remove_tree, path)):
                raise RuntimeError(self._log.read_text())
        if self._forked(lambda: command.prepare(self._workspace)):
            raise RuntimeError(self._log.read_text())
        if not remote:
            shutil.copytree(folder, earlier)

    def _import_all(self) -> None:
        """Imports the modules that a run imported, so that later forks need not."""
        for name in self._modules.read_text().split():
            with suppress(Exception):
                import_module(name)

    def _forked(self, work: Callable[[], object], steps: str | None = None) -> int:
        child = os.fork()
        if child == 0:
            self._run_in_fork(work, steps)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _run_in_fork(self, work: Callable[[], object], steps: str | None) -> None:
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
        except BaseException:  # noqa: BLE001 - the parent reports any error
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _last_line(self) -> str:
        return (self._log.read_text().strip() or "no output").splitlines()[-1]


def cases_of(lines: Sequence[str]) -> list[Case]:
    """First and last step of each kind of operation on each file."""
    numbered = list(enumerate(lines, start=1))
    first = {line: number for number, line in reversed(numbered)}
    last = {line: number for number, line in numbered}
    return sorted({(number, line) for line in first for number in (first[line], last[line])})


def _leftovers(command: Command, out: Path) -> list[str]:
    patterns = [".*.partial", ".vlatool/partial", *([] if command.has_journal else [_JOURNAL])]
    paths = [path for pattern in patterns for path in out.rglob(pattern)]
    return [path.relative_to(out).as_posix() for path in paths]
