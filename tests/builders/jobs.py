"""Toy jobs: items are words, each becomes a file, and `finish` writes a file with all of them."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from vlatool.events import NULL, Reporter
from vlatool.jobs.command import JobConfig, JobResult
from vlatool.jobs.executor import Executor, SerialExecutor
from vlatool.jobs.files import FileEntry, digests_below, file_entry, folder_entry, output_files
from vlatool.jobs.job import InputState, JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command, run_job
from vlatool.storage.atomic import atomic_folder, remove_file, write_text

ALL = "all.txt"
OWNED = ("words/*", "words/*/*", ALL)


class Killed(BaseException):
    """Simulated kill of a run."""


@dataclass(frozen=True)
class Write:
    """Work of a toy job: a file with the word, or a folder with a file per letter."""

    output: Path  # the output folder
    is_folder: bool = False  # an item becomes a folder
    has_arrays: bool = False  # receipts have the letters as an array
    # Word to the exception that is raised for it.
    bad: Mapping[str, Exception] = field(default_factory=dict[str, Exception])
    fatal: str = ""  # word that kills the process

    def __call__(self, word: str) -> Receipt:
        if word == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if word in self.bad:
            raise self.bad[word]
        entry = self._folder(word) if self.is_folder else self._file(word)
        arrays = {"letters": np.array(list(word))} if self.has_arrays else {}
        counts = {"letters": len(word)}
        return Receipt("", counts=counts, files=(entry,), facts={"word": word}, arrays=arrays)

    def _file(self, word: str) -> FileEntry:
        write_text(self.output / f"words/{word}", word)
        return file_entry(self.output, f"words/{word}")

    def _folder(self, word: str) -> FileEntry:
        with atomic_folder(self.output / f"words/{word}") as folder:
            for number, letter in enumerate(word):
                (folder / str(number)).write_text(letter)
        return folder_entry(f"words/{word}", digests_below(self.output / f"words/{word}"))


def no_input(word: str) -> InputState:
    """State of an item without input files."""
    return InputState(word, sizes=word)


class ToyJob:
    """Job that writes words; see `jobs.job.Job`."""

    def __init__(
        self,
        output: Path,
        words: str,
        work: Callable[[str], Receipt] | None = None,
        command: str = "toy",
        **spec: Any,
    ) -> None:
        self.items: Sequence[str] = words.split()
        self.spec = JobSpec(  # other fields of the `JobSpec`
            output=output,
            record=OutputRecord(command, {"case": "lower"}),
            item_name="word",
            plan="plain",
            work=work or Write(output),
            owned=OWNED,
            progress_count="letters",
            **{"state": no_input, "locations": (output,), **spec},
        )

    def name(self, item: str) -> str:
        return item

    def begin(self) -> None:
        remove_file(self.spec.output / ALL)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        done = list(receipts)
        write_text(self.spec.output / ALL, " ".join(map(self._word, done)))
        return [
            *(file for receipt in done for file in receipt.files),
            file_entry(self.spec.output, ALL),
        ]

    def _word(self, receipt: Receipt) -> str:
        return "".join(receipt.arrays["letters"] if self.spec.has_arrays else receipt.facts["word"])

    def result(self, run: JobRun) -> "ToyResult":
        return ToyResult(letters=run.sums.get("letters", 0))


@dataclass(frozen=True, kw_only=True)
class ToyResult(JobResult):
    """Result of a toy job."""

    letters: int


def run_toy(job: ToyJob, executor: Executor | None = None, **options: Any) -> JobRun:
    """Runs a job, in this process unless an executor is given."""
    return run_job(job, executor or SerialExecutor(), options=JobConfig(**options))


class ToyConfig(JobConfig):
    """Options of a toy command."""

    words: str = Field("", description="The items, separated by spaces.")
    output: str = Field("", description="Folder to write.")


def toy(config: ToyConfig, *, reporter: Reporter = NULL) -> ToyResult:
    """Workflow of a toy command."""
    job = ToyJob(Path(config.output), config.words, shown={"output": config.output})
    return run_command(job, ToyResult, config, SerialExecutor(), reporter=reporter)


@dataclass(frozen=True)
class KillsWorker:
    """Kills its process on item 2, `times` times; records each attempt in `folder`."""

    folder: Path
    times: int

    def __call__(self, item: int) -> int:
        attempts = len(list(self.folder.glob(f"{item}-*")))
        (self.folder / f"{item}-{attempts}").touch()
        if item == 2 and attempts < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return item


class KillingExecutor(SerialExecutor):
    """Executor that raises `Killed` after a number of outcomes."""

    def __init__(self, outcomes: int) -> None:
        self._left = outcomes

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for outcome in super().map(function, items):
            if not self._left:
                raise Killed
            self._left -= 1
            yield outcome


def contents(output: Path) -> dict[str, bytes]:
    """Name to content of every file of an output and of its file list."""
    names = [*(file.name for file in output_files(output)), ".vlatool/files.jsonl"]
    return {name: (output / name).read_bytes() for name in names}
