"""Jobs, work on many items that can be killed and resumed: specification and state."""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from vlatool.config.base import ConfigModel
from vlatool.errors import StorageError
from vlatool.events import Reporter, per_second
from vlatool.jobs.executor import Executor, Outcome
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.jobs.record import OutputRecord
from vlatool.results import Result
from vlatool.storage.background import in_parallel
from vlatool.storage.tree import files_below_each
from vlatool.storage.uri import is_remote

Item = TypeVar("Item")

_STAT_THREADS = 16
# Part of every plan: raise it when the same options give other bytes, not with a release.
_BYTES_VERSION = 2
# Packages that can change, with their version, the bytes that are written.
_SHAPING_PACKAGES = ("pillow", "pyvips-binary", "numpy", "av", "pyarrow", "scipy")


@dataclass(frozen=True)
class InputState:
    """Current state of the input of one item."""

    # digest of location, names, sizes and times of the input files and of `extra`. A copy of the
    # same files counts as changed, which only costs work
    digest: str
    sizes: str = ""  # digest without location and times: equal for a copy
    changed_ns: int = 0  # time of the latest change, nanoseconds since 1970; 0 without files


def input_state(paths: Sequence[Path], extra: Any = None) -> InputState:
    """State of the files at and below paths; `extra`: other input of the item, JSON."""
    sizes: list[list[tuple[object, ...]]] = []
    times: list[int] = []
    for files in files_below_each(paths):
        sizes_below: list[tuple[object, ...]] = []
        for file in files:
            times.append(file.modified_ns)
            if file.etag:
                sizes_below.append((file.name, file.bytes, file.etag))
            else:
                sizes_below.append((file.name, file.bytes))
        sizes.append(sizes_below)
    return InputState(
        digest=digest_of([str(paths[0]), sizes, times, extra]),
        sizes=digest_of([sizes, extra]),
        changed_ns=max(times, default=0),
    )


def inputs_of(states: Iterable[tuple[str, str, int]], item_name: str) -> dict[str, Any]:
    """Inputs of a run, for its record."""
    digest = hashlib.blake2b(digest_size=8)
    count = 0
    changed_ns = 0
    for name, sizes, changed in states:
        digest.update(f"{name} {sizes}\n".encode())
        count += 1
        changed_ns = max(changed_ns, changed)
    changed_at = datetime.fromtimestamp(changed_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return {f"{item_name}s": count, "fingerprint": digest.hexdigest(), "changed_at": changed_at}


def current_states(
    items: Sequence[Item], name: Callable[[Item], str], state: Callable[[Item], InputState]
) -> list[tuple[str, str, int]]:
    """(name, sizes, changed_ns) of every item, from the current state of its input."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        states = zip(map(name, items), pool.map(state, items), strict=True)
        return [(item, now.sizes, now.changed_ns) for item, now in states]


def plan_digest(*parts: Any) -> str:
    """Digest of the values and the software versions that determine the bytes of an item."""
    from importlib.metadata import PackageNotFoundError, version  # workers do not need it

    versions: dict[str, str] = {}
    for name in _SHAPING_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return digest_of([*parts, _BYTES_VERSION, zlib.ZLIB_RUNTIME_VERSION, versions])


def digest_of(value: Any) -> str:
    """Digest of nested plain values, dataclasses and configurations, without class names, and
    without fields whose metadata say `in_digest: False`.
    """
    text = json.dumps(_plain(value), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, ConfigModel):
        private = value.__pydantic_private__ or {}
        return {**value.recorded(), **{k: _plain(v) for k, v in private.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        kept = [field for field in fields(value) if field.metadata.get("in_digest", True)]
        return {field.name: _plain(getattr(value, field.name)) for field in kept}
    if isinstance(value, Mapping):
        return [[str(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass
class JobRun:
    """State and counts of a run of a job."""

    status: str  # `written`, `already complete` or `planned`
    record: OutputRecord  # record in the output, with inputs and result once it is complete
    executor: Executor  # executor of the run, also for work while the job finishes
    reporter: Reporter  # receives progress and warnings
    started: datetime = field(default_factory=lambda: datetime.now(UTC))  # start time
    seconds: float = 0.0  # duration
    # items that are not in the output, with code, message, hint and details
    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    # map from error code to number of items that failed with it
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    # map from finding code to number of items that have it
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    # sums of the counts of all receipts
    sums: dict[str, int] = field(default_factory=dict[str, int])
    # map from reason to number of windows or samples that were left out
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    resumed: int = 0  # number of items that an earlier run finished
    bytes_on_disk: int = 0  # size of all listed files
    empty: list[str] = field(default_factory=list[str])  # items without files
    # sums of the counts of the items that this run finished
    new_counts: dict[str, int] = field(default_factory=dict[str, int])
    new_bytes: int = 0  # size of their files
    # folders that contain the inputs and the output, longest first
    parent_folders: Sequence[str] = ()
    is_fresh: bool = False  # True if the run started from scratch
    result: Result | None = None  # result for the record, once the job is finished

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

    def progress_fields(self, count: str, seconds: float) -> dict[str, float | int | str]:
        """Fields of the progress bar: sum and rate of a count of the receipts."""
        new = self.new_counts.get(count, 0)
        fields: dict[str, float | int | str] = {count: self.sums.get(count, 0)}
        for name, amount in ((f"{count}/s", new), ("MB/s", self.new_bytes / 1e6)):
            rate = per_second(amount, seconds)
            if rate is not None:
                fields[name] = round(rate, 1)
        fields["failed"] = len(self.failures)
        return fields | self.reasons

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
    output: Path  # the output folder
    record: OutputRecord  # the command and the options that affect the output
    item_name: str  # noun for an item, such as `episode`
    plan: str  # digest of everything that affects the bytes of an item besides its input
    # processes one item; picklable. Its files have their final names when it returns. None: the
    # executor does it, with the `ItemTask` that it gets as a function
    work: Callable[[Item], Receipt] | None
    state: Callable[[Item], InputState]  # returns the state of the input of an item; picklable
    owned: Sequence[str]  # patterns of the files that the job writes. Other files are not touched
    # patterns of `owned` for files that hold times. The file list leaves them out
    volatile: Sequence[str] = ()
    # patterns of `owned` for files that are removed once the output is complete. The file list of a
    # complete output leaves them out
    temporary: Sequence[str] = ()
    locations: Sequence[Path] = ()  # inputs and output. Records do not hold their parent folders
    progress_count: str = ""  # count of receipts that progress shows, such as `samples`
    has_arrays: bool = False  # receipts carry arrays. Names of items must be valid file names then
    # When the files of a run with other options are removed: before the first item, if the user
    # gives --overwrite; by `finish`, which replaces them; or never
    replaced: Literal["first", "last", "never"] = "first"
    # values of the result for this call, such as `output` as it was given
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # reads an item as `work` does and writes nothing, for a dry run: the item fails, or the receipt
    # has its counts and reasons to drop it. Picklable. None: nothing is read
    check: Callable[[Item], Receipt] | None = None

    @property
    def is_download(self) -> bool:
        """True if the items are files of a storage. A later run may have more, so that their set is
        not compared as an option and receipts are kept when the output is complete; one that the
        storage fails to send does not end the others; `work` reports its bytes itself.
        """
        return self.record.is_download


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
        """Consumes the receipts of the finished items, in order, and writes the shared files;
        returns entries of the file list.
        """
        ...

    def result(self, run: "JobRun") -> Result:
        """Content of the output; the loop sets what all results have. Also for a dry run."""
        ...


_LOADED_AHEAD = 4


@dataclass(frozen=True)
class WorkItem:
    """Item, its name, and the logged receipt of an earlier run."""

    item: Any
    name: str
    logged: Receipt | None


@dataclass(frozen=True)
class ItemTask:
    """Function that a worker calls with an item; skips finished items. Picklable."""

    work: Callable[[Any], Receipt] | None  # `JobSpec.work`
    state: Callable[[Any], InputState]  # `JobSpec.state`
    plan: str  # `JobSpec.plan`
    journal: Journal  # journal of the output
    has_arrays: bool  # receipts are files of their own
    has_stored: bool  # an earlier run left such files

    def __call__(self, item: WorkItem) -> Receipt:
        """Receipt of an item, without the arrays, which are in the journal."""
        state, earlier = self.check_input(item)
        if earlier is not None:
            return earlier
        assert self.work is not None, "the executor of the job works on its items"
        return self.complete(item, state, self.work(item.item)).without_arrays()

    def check_input(self, item: WorkItem) -> tuple[InputState, Receipt | None]:
        """State of the input, and the receipt of an earlier run if it is still valid."""
        state = self.state(item.item)
        key = f"{self.plan} {state.digest}"
        earlier = self.journal.find(item.name, key) if self.has_stored else item.logged
        if earlier is None or earlier.key != key:
            return state, None
        receipt = intact_receipt(self.journal.output, earlier)
        return state, receipt and replace(receipt.without_arrays(), resumed=True)

    def complete(self, item: WorkItem, state: InputState, receipt: Receipt) -> Receipt:
        """Receipt with name and key; stored in the journal if it has arrays."""
        key = f"{self.plan} {state.digest}"
        receipt = replace(
            receipt, item=item.name, key=key, sizes=state.sizes, changed_ns=state.changed_ns
        )
        if self.has_arrays:
            self.journal.store(receipt)
        else:
            json.dumps(receipt.row())  # a receipt that is not JSON fails its own item
        return receipt


def job_outcomes(
    job: Job[Any], journal: Journal, executor: Executor
) -> Iterator[Outcome[Any, Receipt]]:
    """Outcomes of the items of a job with complete receipts, in the order of the executor.

    Arrays of receipts are read from the journal, ahead of their use if it is remote.
    """
    spec = job.spec
    has_stored = spec.has_arrays and journal.folder.is_dir()
    task = ItemTask(spec.work, spec.state, spec.plan, journal, spec.has_arrays, has_stored)
    logged = {} if spec.has_arrays else journal.logged()
    names = map(job.name, job.items)
    work_items = (
        WorkItem(item, name, logged.get(name)) for item, name in zip(job.items, names, strict=True)
    )

    def loaded(outcome: Outcome[WorkItem, Receipt]) -> Outcome[Any, Receipt]:
        receipt = outcome.value
        error = outcome.error
        if receipt is not None and spec.has_arrays:
            try:
                receipt = _with_arrays(journal, receipt)
            except StorageError as problem:
                receipt = None
                error = problem
        return Outcome(outcome.item.item, receipt, error)

    outcomes = executor.map(task, work_items)
    if spec.has_arrays and is_remote(spec.output):
        return in_parallel(loaded, outcomes, _LOADED_AHEAD)
    return map(loaded, outcomes)


def _with_arrays(journal: Journal, receipt: Receipt) -> Receipt:
    """Receipt with its arrays from the journal."""
    stored = journal.find(receipt.item, receipt.key)
    if stored is None:
        raise StorageError(
            f"{journal.folder}: the receipt of {receipt.item} is missing",
            hint="another program removed it; run the same command again",
            code="storage.changed",
        )
    return replace(stored, resumed=receipt.resumed)
