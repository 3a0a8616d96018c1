"""Trials of the outputs of an earlier commit: the present one must resume them and redo nothing.

    git worktree add ../vlatool-before HEAD~1
    python benchmarks/resume_across_commits.py --before ../vlatool-before/src
    PYTHONPATH=/path/of/another/checkout/src python benchmarks/resume_across_commits.py --before ...

The earlier code makes every output twice: finished, and half-finished. It is killed at the storage
operation (`vlatool.storage.crash_points`) that records half of the items, or that writes the first
checkpoint of a training run. The present code (PYTHONPATH, else this checkout) then runs the same
command on a copy of each. The bytes must equal those of the finished output, without `.vlatool/`
and times. No item, shard or training step that was done may be done again, except where the earlier
code does so as well. `verify` and `inspect` must report the same codes with both.
`--only 'shards*'` runs some of the commands; `--keep DIR` keeps the outputs. With `--make DIR`, the
earlier code makes one output, run and checkpoint of each kind in `DIR/made`, and nothing is tried.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from forked_commands import Commands, Done
from resume_across_commits_runs import CASES, FILES

STEPS = ("CRASH_POINTS", "VLATOOL_STEPS")  # the second is that of earlier commits
# Operations that record finished work, by kind: a line of a log, or a file.
ENTERED = {
    "items": re.compile(r"rename after items/.*|write after journal/items\.#\.jsonl"),
    "shards": re.compile(r"rename after shards/shard_#\.npz"),
    "steps": re.compile(r"write after [^/]+/metrics\.jsonl"),
}
CHECKPOINT = re.compile(r"rename after checkpoints/step_#")
WRITING = re.compile(r"write inside (?!\.vlatool/).*")
# A log that is shortened is rewritten, which records no work.
SHORTENED = re.compile(r"rename after [^/]+/metrics\.jsonl")
METADATA, METRICS = "processing_metadata.json", "metrics.jsonl"
CURVES = "curves.html"
# Left by a killed command that writes its output in one go.
PARTIAL = ".*.partial"
TIMES = ("samples_per_second", "step_ms", "data_wait", "memory_gb", "seconds", "stages")
Counts = Mapping[str, int]
OWN_SOURCE = Path(__file__).resolve().parents[1] / "src"


@dataclass
class Outcome:
    """The outcome of a trial.

    Attributes:
        name: Case and state of its output.
        note: Short description.
        redone: Number of finished items, shards, steps or files that were written again.
        problems: Other problems.
        unequal: Names of files with other bytes.
    """

    name: str
    note: str = ""
    redone: int = 0
    problems: list[str] = field(default_factory=list[str])
    unequal: list[str] = field(default_factory=list[str])

    def line(self) -> str:
        """The outcome in a line."""
        files = f"UNEQUAL: {', '.join(self.unequal[:3])}" if self.unequal else "equal"
        parts = [self.note, f"{self.redone} redone", files, *self.problems]
        return f"{self.name}: {'; '.join(part for part in parts if part)}"


class Trials:
    """Trials of cases in a folder.

    Args:
        folder: Folder of all outputs.
        earlier: Commands of the earlier code.
        present: Commands of the code under test.
    """

    def __init__(self, folder: Path, earlier: Commands, present: Commands) -> None:
        self._folder = folder
        self._earlier, self._present = earlier, present
        self._traces: dict[str, list[str]] = {}
        for name in ("made", "out", "half"):
            (folder / name).mkdir()
        for name, text in FILES.items():
            (folder / name).write_text(text)

    def outcomes(self, name: str) -> Iterator[Outcome]:
        """Outcomes of the trials of a case."""
        self.make(name)
        for kind, number in self._stops(name):
            yield self._half(name, kind, number)
        yield self._finished(name)
        yield self._inspected(name)

    def make(self, name: str) -> None:
        """Makes the finished output of a case and those that it needs, by the earlier code."""
        case = CASES[name]
        if name in self._traces:
            return
        for needed in re.findall(r"made/([\w-]+)", case.line) + [case.before] * bool(case.before):
            self.make(needed)
        done, self._traces[name] = self._run(self._earlier, name, self._prepared_words(name))
        if done.code:
            raise RuntimeError(f"{name}: the earlier code cannot make it: {done.stderr}")
        shutil.move(self._out(name), self._made(name))

    def _stops(self, name: str) -> Iterator[tuple[str, int]]:
        """Kind of progress and number of the operation at which the command is killed."""
        trace = self._traces[name]
        numbers = {kind: _operation_numbers(trace, pattern) for kind, pattern in ENTERED.items()}
        if numbers["steps"]:
            yield "steps", _operation_numbers(trace, CHECKPOINT)[0]
            return
        for kind, kind_numbers in numbers.items():
            if kind_numbers:
                yield kind, kind_numbers[len(kind_numbers) // 2 - 1]
        if not any(numbers.values()):
            yield "", _operation_numbers(trace, WRITING)[0]

    def _half(self, name: str, kind: str, number: int) -> Outcome:
        """Outcome of the present code on the output of the killed earlier code."""
        half = self._folder / "half" / name
        shutil.rmtree(half, ignore_errors=True)
        ended = self._earlier.run(self._prepared_words(name), **dict.fromkeys(STEPS, str(number)))
        shutil.move(self._out(name), half)
        total, recorded = _entered(self._traces[name]), _recorded_counts(half)
        outcome = Outcome(f"{name}, half-finished{f' ({kind})' if kind else ''}")
        if ended.code != -9:
            outcome.problems.append(f"the earlier code was not killed: {ended.code}")
        if kind and not recorded[kind]:
            outcome.problems.append(f"the earlier code recorded no {kind}")
        shutil.copytree(half, self._out(name))
        done, trace = self._run(self._present, name, self._words(name))
        self._check_exit(outcome, done, 0)
        now = _entered(trace)
        left = {part: max(0, total[part] - recorded[part]) for part in total}
        outcome.redone = sum(max(0, now[part] - left[part]) for part in total)
        outcome.note = _described(recorded, total)
        short = [part for part in total if not done.code and now[part] < left[part]]
        outcome.problems += [
            f"{part}: {now[part]} recorded, {left[part]} were left" for part in short
        ]
        self._check_resumed(outcome, done, recorded["items"])
        self._compare(outcome, name)
        return outcome

    def _finished(self, name: str) -> Outcome:
        """Outcome of the present code on a finished output.

        It may write the files again that the earlier code writes again.
        """
        outcome = Outcome(f"{name}, finished")
        changed: list[set[str]] = []
        entered: list[Counts] = []
        for commands in (self._earlier, self._present):
            shutil.copytree(self._made(name), self._out(name))
            stamps = _stamps(self._out(name))
            done, trace = self._run(commands, name, self._words(name))
            changed.append(_changed(stamps, _stamps(self._out(name))))
            entered.append(_entered(trace))
            if commands is self._earlier:
                shutil.rmtree(self._out(name))
            else:
                self._check_exit(outcome, done, CASES[name].again)
        outcome.redone = sum(max(0, entered[1][kind] - entered[0][kind]) for kind in ENTERED)
        outcome.note = (
            f"{len(changed[0])} files written again by both" if changed[0] else "left alone"
        )
        more = sorted(changed[1] - changed[0])
        if more:
            outcome.redone = outcome.redone or len(more)
            outcome.problems.append(f"written again: {', '.join(more[:3])}")
        self._compare(outcome, name)
        return outcome

    def _inspected(self, name: str) -> Outcome:
        """Outcome of comparing the codes that `verify` and `inspect` report."""
        outcome = Outcome(f"{name}, verify and inspect")
        codes: list[str] = []
        for command in ("verify", "inspect"):
            words = [command, f"made/{name}", "--json", "-q"]
            before, now = (
                _reported(checkout.run(words)) for checkout in (self._earlier, self._present)
            )
            codes += before[1]
            if before != now:
                outcome.problems.append(f"{command}: {now}, before {before}")
        outcome.note = f"codes {', '.join(sorted(set(codes)))}" if codes else "no codes"
        return outcome

    def _check_exit(self, outcome: Outcome, done: Done, expected: int) -> None:
        if done.code != expected:
            note = (done.stderr.strip() or "no message").splitlines()[0]
            outcome.problems.append(f"ended with {done.code}: {note}")

    def _check_resumed(self, outcome: Outcome, done: Done, recorded: int) -> None:
        """Compares the number of resumed items in the result, where it has one."""
        resumed = _document(done.stdout).get("resumed", recorded)
        if not done.code and resumed != recorded:
            outcome.problems.append(f"the result says that {resumed} items were resumed")

    def _compare(self, outcome: Outcome, name: str) -> None:
        """Compares the output with the finished one of the earlier code, and removes it."""
        expected, files = _contents(self._made(name)), _contents(self._out(name))
        names = expected.keys() | files.keys()
        outcome.unequal = sorted(file for file in names if expected.get(file) != files.get(file))
        shutil.rmtree(self._out(name))

    def _prepared_words(self, name: str) -> list[str]:
        """Words of a command, after its output is reset to the state before the first run."""
        shutil.rmtree(self._out(name), ignore_errors=True)
        if CASES[name].before:
            shutil.copytree(self._made(CASES[name].before), self._out(name))
        return self._words(name)

    def _words(self, name: str) -> list[str]:
        line = CASES[name].line
        line = line if "OUT" in line else f"{line} -o OUT"
        return [*shlex.split(line.replace("OUT", f"out/{name}")), "--json", "-q"]

    def _run(self, commands: Commands, name: str, words: Sequence[str]) -> tuple[Done, list[str]]:
        """Runs a command and returns the operations on storage too."""
        trace = self._folder / f"{name}.steps"
        trace.unlink(missing_ok=True)
        done = commands.run(words, **dict.fromkeys(STEPS, str(trace)))
        return done, trace.read_text().splitlines() if trace.exists() else []

    def _out(self, name: str) -> Path:
        return self._folder / "out" / name

    def _made(self, name: str) -> Path:
        return self._folder / "made" / name


def _operation_numbers(trace: Sequence[str], pattern: re.Pattern[str]) -> list[int]:
    """Numbers of the operations of a kind, from 1."""
    return [number for number, line in enumerate(trace, 1) if pattern.fullmatch(line)]


def _entered(trace: Sequence[str]) -> Counts:
    counts = {kind: len(_operation_numbers(trace, pattern)) for kind, pattern in ENTERED.items()}
    return {**counts, "steps": counts["steps"] - len(_operation_numbers(trace, SHORTENED))}


def _recorded_counts(output: Path) -> Counts:
    """Numbers of items, shards and steps that an unfinished output has recorded."""
    journal, steps = output / ".vlatool/journal", output / "checkpoints"
    items = {path.stem for path in journal.glob("items/*.npz")}
    for log in journal.glob("items.*.jsonl"):
        items |= {json.loads(line)["item"] for line in log.read_text().splitlines()}
    return {
        "items": len(items),
        "shards": sum(1 for _ in journal.glob("shards/*.npz")),
        "steps": max((int(path.name[5:]) for path in steps.glob("step_*")), default=0),
    }


def _described(recorded: Counts, total: Counts) -> str:
    parts = [f"{recorded[kind]} of {total[kind]} {kind} recorded" for kind in total if total[kind]]
    return ", ".join(parts) or "written in one go"


def _contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but pages and plots, without values that depend on the time."""
    digests: dict[str, str] = {}
    for path in _files(folder):
        content = path.read_bytes()
        if path.name == METRICS:
            content = json.dumps([*map(_without_times, content.splitlines())]).encode()
        if path.name not in (METADATA, CURVES) and path.suffix != ".html":
            digests[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


def _without_times(row: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(row).items() if not key.endswith(TIMES)}


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        is_own = ".vlatool" in path.relative_to(folder).parts or fnmatch(path.name, PARTIAL)
        if path.is_file() and not is_own:
            yield path


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: writing replaces them."""
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in _files(folder)}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> set[str]:
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def _reported(done: Done) -> tuple[int, list[str]]:
    """Exit code, and all values of keys `code` in the result, sorted."""
    return done.code, sorted(_codes(_document(done.stdout)))


def _codes(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from [item] if key == "code" and isinstance(item, str) else _codes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _codes(item)


def _document(stdout: str) -> dict[str, Any]:
    try:
        document = json.loads(stdout)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def main(arguments: argparse.Namespace) -> int:
    """Prints a line per trial; returns 1 if any work was redone, files differ, or a run failed."""
    started = time.monotonic()
    before = arguments.before.resolve()
    now = Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or OWN_SOURCE).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.make or arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        start: Callable[..., Commands] = partial(Commands, folder=folder)
        with (
            start(before, scratch=folder / "earlier") as earlier,
            start(now, scratch=folder / "present") as present,
        ):
            trials = Trials(folder, earlier, present)
            outcomes: list[Outcome] = []
            for name in filter(partial(fnmatch, pat=arguments.only), CASES):
                if arguments.make:
                    trials.make(name)
                    print(folder / "made" / name, flush=True)
                    continue
                for outcome in trials.outcomes(name):
                    print(outcome.line(), flush=True)
                    outcomes.append(outcome)
    if arguments.make:
        return 0
    redone = sum(outcome.redone for outcome in outcomes)
    unequal = sum(bool(outcome.unequal) for outcome in outcomes)
    problems = sum(len(outcome.problems) for outcome in outcomes)
    print(
        f"{len(outcomes)} cases, {redone} items redone, {unequal} unequal, {problems} problems, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if redone or unequal or problems or not outcomes else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="folder src of a checkout")
    parser.add_argument("--only", default="*", help="pattern of names of cases")
    parser.add_argument("--make", type=Path, help="an empty folder for outputs of the earlier code")
    parser.add_argument("--keep", type=Path, help="an empty folder to keep")
    sys.exit(main(parser.parse_args()))
