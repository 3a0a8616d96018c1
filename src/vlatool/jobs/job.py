"""Jobs, work on many items that can be killed and resumed: specification and state."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from vlatool.events import Reporter, per_second
from vlatool.jobs.executor import Executor
from vlatool.jobs.files import FileEntry
from vlatool.jobs.inputs import InputState
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.results import Result

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """Processes that share one job; each works on its part of the items.

    Attributes:
        rank: Rank of this process. Rank 0 locks the output, finishes the job and completes the
            record.
        size: Number of ranks.
        barrier: Returns when all ranks have called it.
        abort: Called when this rank fails, so that the others do not wait for it.
    """

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = lambda: None
    abort: Callable[[], None] = lambda: None


@dataclass
class JobRun:
    """State and counts of a run of a job.

    Attributes:
        status: `written`, `already complete`, `planned`, or `shared` for ranks other than 0.
        record: Record in the output, with inputs and result once it is complete.
        executor: Executor of the run, also for work while the job finishes.
        reporter: Receives progress and warnings.
        started: Start time.
        seconds: Duration.
        failures: Items that are not in the output, with code, message, hint and details.
        reasons: Map from error code to number of items that failed with it.
        warnings: Map from finding code to number of items that have it.
        sums: Sums of the counts of all receipts.
        dropped: Map from reason to number of windows or samples that were left out.
        resumed: Number of items that an earlier run finished.
        bytes_on_disk: Size of all listed files.
        empty: Items without files.
        new_counts: Sums of the counts of the items that this run finished.
        new_bytes: Size of their files.
        parent_folders: Folders that contain the inputs and the output, longest first.
        is_fresh: True if the run started from scratch.
        result: Result for the record, once the job is finished.
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
    result: Result | None = None

    def add_receipt(self, receipt: Receipt) -> None:
        """Adds the counts of a receipt; warns of the first finding of each code."""
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

    def add_checked(self, receipt: Receipt) -> None:
        """Adds the receipt of a check, which writes no files."""
        self.add_receipt(receipt)
        if not receipt.dropped:
            self.empty.remove(receipt.item)

    def reset_counts(self) -> None:
        """Sets all counts to zero. Codes that were warned of are not warned of again."""
        self.failures, self.empty, self.resumed, self.new_bytes = [], [], 0, 0
        self.sums, self.dropped, self.new_counts, self.reasons = {}, {}, {}, {}
        self.warnings = dict.fromkeys(self.warnings, 0)

    def progress_fields(
        self, count: str, seconds: float, others: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, float | int | str]:
        """Fields of the progress bar.

        Args:
            count: Name of the count of receipts to show.
            seconds: Time since the start.
            others: Rows of the logs of other ranks.
        """
        counts = [(row.get("counts", {}).get(count, 0), row.get("resumed")) for row in others]
        new = self.new_counts.get(count, 0) + sum(number for number, done in counts if not done)
        amounts = {f"{count}/s": new, "MB/s": self.new_bytes / 1e6}
        rates = {name: per_second(amount, seconds) for name, amount in amounts.items()}
        return {
            count: self.sums.get(count, 0) + sum(number for number, _ in counts),
            **{name: round(rate, 1) for name, rate in rates.items() if rate is not None},
            "failed": len(self.failures) + sum("failed" in row for row in others),
            **self.reasons,
        }

    def fail(self, failure: dict[str, Any]) -> None:
        """Counts an item that is not in the output."""
        self.failures.append(failure)
        self.reasons[failure["code"]] = self.reasons.get(failure["code"], 0) + 1

    def redact_paths(self, value: Any) -> Any:
        """JSON value for a file that may be published, without the parent folders of paths."""
        if isinstance(value, Mapping):
            return {key: self.redact_paths(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact_paths(item) for item in value]
        if isinstance(value, str):
            for folder in self.parent_folders:
                value = re.sub(rf"(?<![\w./-]){re.escape(folder)}", "", value)
        return value


@dataclass(frozen=True)
class JobSpec(Generic[Item]):
    """Specification of a job.

    Attributes:
        output: The output folder.
        record: The command and the options that affect the output.
        title: The command in messages, such as `preprocess lerobot`.
        item_name: Noun for an item, such as `episode`.
        plan: Digest of everything that affects the bytes of an item besides its input.
        work: Processes one item; picklable. Its files have their final names when it returns.
        state: Returns the state of the input of an item; picklable.
        check: Reads an item as `work` does and writes nothing, for a dry run: the item fails, or
            the receipt has its counts and reasons to drop it. Picklable. None: nothing is read.
        owned: Patterns of the files that the job writes. Other files are not touched.
        volatile: Patterns of `owned` for files that hold times. The file list leaves them out.
        temporary: Patterns of `owned` for files that are removed once the output is complete. The
            file list of a complete output leaves them out.
        locations: Inputs and output. Records do not hold their parent folders.
        progress_count: Count of receipts that progress shows, such as `samples`.
        has_arrays: Receipts carry arrays. Names of items must be valid file names then.
        grows: A later run may have more items. Their set is not compared as an option then, and
            receipts are kept when the output is complete.
        can_overwrite: The command has `--overwrite`.
        is_replaced_last: Files of an earlier run stay until `finish` replaces them.
        is_pipelined: `map` of the executor gets `work` unchanged and only the items to do.
        skips_storage_errors: An item that fails because of a storage does not end the others.
        has_own_progress: `work` reports progress itself.
        shown: Values of the result for this call, such as `output` as it was given.
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
    skips_storage_errors: bool = False
    has_own_progress: bool = False
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])
    check: Callable[[Item], Receipt] | None = None

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Patterns of files that may exist without an entry in the file list."""
        return (*self.volatile, *self.temporary)


class Job(Protocol[Item]):
    """Job of a command."""

    @property
    def spec(self) -> JobSpec[Item]:
        """Specification of the job."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """All items, in the order of the receipts that `finish` gets."""
        ...

    def name(self, item: Item) -> str:
        """Name of an item, unique and the same in every run."""
        ...

    def begin(self) -> None:
        """Removes files that would make an unfinished output look complete."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: "JobRun") -> Sequence[FileEntry]:
        """Consumes the receipts of the finished items, in order, and writes the shared files.

        Returns:
            Entries of the file list.
        """
        ...

    def result(self, run: "JobRun") -> Result:
        """Content of the output; the loop sets what all results have. Also for a dry run."""
        ...
