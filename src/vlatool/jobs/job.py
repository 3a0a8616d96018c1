"""What long work that may be killed says of itself, and what it learns of its run."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from vlatool.errors import BugError, PartialFailure, VlatoolError
from vlatool.events import Reporter
from vlatool.jobs.files import FileEntry
from vlatool.jobs.inputs import InputState
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.parallel.executor import Executor

Item = TypeVar("Item")

_NAMED = 5


@dataclass(frozen=True)
class JobOptions:
    """How a job is run; nothing here shapes what it writes.

    Attributes:
        overwrite: Replace what a complete run or one with other options left.
        dry_run: Write nothing; say what is done and what would be.
        on_error: `skip` goes on without an item that fails, `stop` ends at the first.
        max_failures: End when more items failed; None for never.
    """

    overwrite: bool = False
    dry_run: bool = False
    on_error: Literal["skip", "stop"] = "skip"
    max_failures: int | None = None


@dataclass(frozen=True)
class Ranks:
    """Processes that do one job together; each does its share of the items.

    Attributes:
        rank: Number of this one; the first locks, finishes and seals.
        size: How many there are.
        meet: Returns when all of them have called it.
        leave: Called when this one ends by an error, so that the others do not wait for it.
    """

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = lambda: None
    abort: Callable[[], None] = lambda: None


@dataclass
class JobRun:
    """What a job learns of its run while it finishes.

    Attributes:
        status: `written`, `already complete`, `planned`, or `shared` for all ranks but the first.
        record: As it stands in the output, with inputs and result once it is complete.
        executor: Where more work can be done.
        reporter: Who hears of it.
        started: When it began.
        seconds: How long it took.
        failures: Items that are not in the output, with code, message, hint and details.
        reasons: Code of each failure to the number of items that have it.
        warnings: Code of each finding to the number of items that have it.
        sums: Sums of the counts of all receipts.
        dropped: Reason to number of what was left out.
        resumed: Items that an earlier run made.
        bytes_on_disk: Size of all listed files.
        empty: Items that left no file.
        made: Sums of the counts of what this run made itself.
        made_bytes: Size of those files.
        is_fresh: Whether it began anew, over nothing that an earlier run left.
        places: Folders above what was read and written, longest first.
    """

    status: str
    record: OutputRecord
    executor: Executor
    reporter: Reporter
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    sums: dict[str, int] = field(default_factory=dict[str, int])
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    resumed: int = 0
    bytes_on_disk: int = 0
    empty: list[str] = field(default_factory=list[str])
    new_counts: dict[str, int] = field(default_factory=dict[str, int])
    new_bytes: int = 0
    parent_folders: Sequence[str] = ()
    is_fresh: bool = False

    def add_receipt(self, receipt: Receipt) -> None:
        """Counts what was done; tells each kind of finding once and counts the rest."""
        self.resumed += receipt.resumed
        if not receipt.files:
            self.empty.append(receipt.item)
        for name, count in receipt.counts.items():
            self.sums[name] = self.sums.get(name, 0) + count
            if not receipt.resumed:
                self.new_counts[name] = self.new_counts.get(name, 0) + count
        self.new_bytes += 0 if receipt.resumed else receipt.bytes
        for reason, count in receipt.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        for finding in receipt.findings:
            if finding.severity == "info":
                continue
            if finding.code not in self.warnings:
                self.reporter.warn(finding.code, finding.message)
            self.warnings[finding.code] = self.warnings.get(finding.code, 0) + 1

    def reset_counts(self) -> None:
        """Forgets what was counted; what was told stays told."""
        self.failures, self.empty, self.resumed, self.new_bytes = [], [], 0, 0
        self.sums, self.dropped, self.new_counts, self.reasons = {}, {}, {}, {}
        self.warnings = dict.fromkeys(self.warnings, 0)

    def progress_fields(self, measured: str, seconds: float) -> dict[str, float | int | str]:
        """What is shown beside the bar."""
        seconds = max(seconds, 1e-6)
        return {
            measured: self.sums.get(measured, 0),
            f"{measured}/s": float(round(self.new_counts.get(measured, 0) / seconds, 1)),
            "MB/s": float(round(self.new_bytes / 1e6 / seconds, 1)),
            "failed": len(self.failures),
            **self.reasons,
        }

    def fail(self, failure: dict[str, Any]) -> None:
        """Counts an item that is not in the output."""
        self.failures.append(failure)
        self.reasons[failure["code"]] = self.reasons.get(failure["code"], 0) + 1

    def redact_paths(self, value: Any) -> Any:
        """A value for a file that may be published: locations without the folders above them."""
        if isinstance(value, Mapping):
            return {key: self.redact_paths(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact_paths(item) for item in value]
        if isinstance(value, str):
            for place in self.parent_folders:
                value = re.sub(rf"(?<![\w./-]){re.escape(place)}", "", value)
        return value


@dataclass(frozen=True)
class JobSpec(Generic[Item]):
    """What a job is, before it does anything.

    Attributes:
        output: Where it writes.
        record: The command, and the options that shape what it writes.
        title: The command as messages call it, such as `preprocess lerobot`.
        item_name: What an item is called, such as `episode`.
        plan: Digest of all that shapes the bytes of an item besides its input.
        work: Does one item; picklable. What it writes is under its final name when it returns.
        state: Looks at what one item is made from; picklable.
        owned: Patterns of the files it writes; what others put beside them is left alone.
        unlisted: Those of them that hold times; the list of files leaves them out.
        passing: Those of them that go once the output is complete; the list names them before only.
        places: What is read and written; records name nothing above.
        measured: The count of receipts that progress shows, such as `samples`.
        has_arrays: Whether receipts carry arrays; then items need names that can be file names.
        grows: Whether a later run may bring more items; their set is no option then, and receipts
            are kept when the output is complete.
        can_overwrite: Whether the command has `--overwrite`.
        is_replaced_last: Whether what an earlier run left stays until `finish` replaces it.
        is_pipelined: Whether the executor does the work its own way: its `map` gets `work` as it
            is and the items themselves, only those that are not done.
    """

    output: Path
    record: OutputRecord
    title: str
    item_name: str
    plan: str
    work: Callable[[Item], Receipt]
    state: Callable[[Item], InputState]
    owned: Sequence[str]
    volatile: Sequence[str] = ()
    temporary: Sequence[str] = ()
    locations: Sequence[Path] = ()
    progress_count: str = ""
    has_arrays: bool = False
    grows: bool = False
    can_overwrite: bool = True
    is_replaced_last: bool = False
    is_pipelined: bool = False

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Patterns of files that may be there without a line in the list."""
        return (*self.volatile, *self.temporary)


class Job(Protocol[Item]):
    """What a command does to its items."""

    @property
    def spec(self) -> JobSpec[Item]:
        """What it is."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """Every item, in the order in which receipts are finished."""
        ...

    def name(self, item: Item) -> str:
        """The item's name, unique among all and equal from run to run."""
        ...

    def inputs(self) -> Mapping[str, Any]:
        """What all items are made from now, as `inputs_of` tells it.

        Nothing without files, unless the job grows: then it tells which items there are.
        """
        ...

    def begin(self) -> None:
        """Takes away what would make a half-written output look whole."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: "JobRun") -> Sequence[FileEntry]:
        """Consumes the receipts of the good items, in order, and writes what all share.

        Returns:
            Every file that `verify` shall know.
        """
        ...

    def result(self, run: "JobRun") -> Mapping[str, Any]:
        """What came of it, for the record: JSON."""
        ...


def failure_of(run: JobRun, item_name: str, done: int) -> VlatoolError | None:
    """The error of a finished run that lacks items; None when nothing failed.

    Args:
        run: The run.
        item_name: What an item is called.
        done: Items that are in the output.
    """
    if not run.failures:
        return None
    count = len(run.failures)
    bugs = [one for one in run.failures if one["code"] == BugError.unexpected]
    named = ", ".join(str(one[item_name]) for one in run.failures[:_NAMED])
    message = f"{count} of {count + done} {item_name}s failed: {named}"
    message += ", ..." if count > _NAMED else ""
    details = {"failures": list(run.failures)}
    if bugs:
        return BugError(
            f"{message}; {len(bugs)} by a bug in vlatool or in a plugin",
            hint="the others are written; .vlatool/run.json has the tracebacks: report them",
            code=BugError.unexpected,
            details=details,
        )
    return PartialFailure(
        message,
        hint="the others are written; reasons are listed in .vlatool/run.json; "
        "once repaired, run the same command again",
        code=f"partial.{item_name}s_failed",
        details=details,
    )
