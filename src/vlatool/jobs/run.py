"""The one loop over items in which every long command runs.

A job says what its items are, how one is done and how the whole is finished; the loop sees to whose
output it is, to the lock, the journal, failures, progress, the list of files and the record.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlatool.errors import BugError, DataError, StorageError, VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.jobs.append_log import AppendLog
from vlatool.jobs.files import changed_files, remove_leftovers, remove_owned, write_file_list
from vlatool.jobs.inputs import inputs_of
from vlatool.jobs.job import Job, JobOptions, Ranks, Run
from vlatool.jobs.journal import Journal, Receipt, forget, intact
from vlatool.jobs.record import (
    OutputRecord,
    claim_output,
    known_output,
    output_lock,
    parent_of,
    read_record,
)
from vlatool.parallel.executor import Executor, Outcome
from vlatool.storage.atomic import remove_empty
from vlatool.storage.background import in_parallel
from vlatool.storage.lock import Lock
from vlatool.storage.uri import is_remote

_LOADED_AHEAD = 4


def run_job(
    job: Job[Any],
    executor: Executor,
    *,
    options: JobOptions | None = None,
    reporter: Reporter = NULL,
    ranks: Ranks | None = None,
) -> Run:
    """Does what is not done yet of a job.

    A run that was ended, however it was, goes on where it was; the bytes are those of a run that
    was not. Failed items are told in the run; `failure_of` makes an error of them.

    Args:
        job: What is to be done.
        executor: Where items are done; left before the lock is.
        options: How.
        reporter: Hears of it.
        ranks: Who else does it.

    Raises:
        UsageError: The output belongs to another run, or another process writes it now.
        DataError: Every item failed, or one did and `on_error` is `stop`.
        StorageError: Something cannot be read or written; what is written stays.
    """
    loop = _Loop(job, options or JobOptions(), executor, reporter, ranks or Ranks())
    return loop.run()


class _Loop:
    def __init__(
        self,
        job: Job[Any],
        options: JobOptions,
        executor: Executor,
        reporter: Reporter,
        ranks: Ranks,
    ) -> None:
        self._job = job
        self._options = options
        self._ranks = ranks
        self._journal = Journal(job.output)
        record = replace(job.record, unlisted=tuple(job.unlisted), parent=parent_of(job.output))
        self._run = Run("written", record, executor, reporter, places=_above(job.places))
        self._keyed: list[tuple[str, str, int]] = []

    def run(self) -> Run:
        output = self._job.output
        if self._ranks.rank:
            return self._share()
        seen = read_record(output)
        before = self._before()  # refused before the lock leaves a trace
        if self._options.dry_run:
            return self._planned(before)
        with output_lock(output, f"vlatool {self._job.title}") as lock:
            if read_record(output) != seen:  # another run was here in the meantime
                before = self._before()
            try:
                with ExitStack() as ending:
                    ending.push(self._run.executor)  # workers end before the lock does
                    self._do(before, lock)
            except (DataError, BugError):
                self._free_if_useless(before)
                raise
        return self._run

    def _before(self) -> OutputRecord | None:
        """The record of the run that this one goes on with or repeats, if any."""
        return known_output(
            self._job.output,
            self._run.record,
            None if self._job.grows else self._job.inputs,
            overwrite=self._options.overwrite,
            can_overwrite=self._job.can_overwrite,
        )

    def _planned(self, before: OutputRecord | None) -> Run:
        self._run.status = "planned"
        if before is not None:
            if before.complete and self._has_all(before):
                self._known(before)
            self._run.resumed = self._journal.count()
        return self._run

    def _has_all(self, before: OutputRecord) -> bool:
        """Whether a complete output has every item; one that cannot grow was compared before."""
        return not self._job.grows or before.inputs == self._job.inputs()

    def _known(self, before: OutputRecord) -> None:
        self._run.status, self._run.record = "already complete", before

    def _do(self, before: OutputRecord | None, lock: Lock) -> None:
        job, run = self._job, self._run
        if before is not None and before.complete and self._has_all(before):
            damaged = changed_files(job.output)
            if not damaged:
                self._forget()
                self._known(before)
                self._ranks.meet()
                return
            message = f"{job.output}: {damaged[0]} is missing or was changed; it is made anew"
            run.reporter.warn("output_damaged", message)
        if before is None:
            claim_output(job.output, run.record, job.owned)
        else:
            run.record.save(job.output)
        remove_leftovers(job.output)
        job.begin()
        self._ranks.meet()
        self._finish(lock)
        self._ranks.meet()

    def _finish(self, lock: Lock) -> None:
        """Items, what they share, the list of files and, last, the record."""
        job, run = self._job, self._run
        clock = time.monotonic()
        entries = job.finish(self._held(lock), run)
        lock.check()
        run.seconds = round(time.monotonic() - clock, 2)
        write_file_list(job.output, entries)
        run.bytes_on_disk = sum(entry.bytes for entry in entries)
        remove_leftovers(job.output)  # of workers that died on the way
        has_inputs = any(sizes for _, sizes, _ in self._keyed)
        run.record = replace(
            run.record,
            inputs=inputs_of(self._keyed, job.noun) if has_inputs else {},
            result=run.told(job.result(run)),
            complete=not run.failures,
        )
        run.record.save(job.output)
        if run.record.complete:
            self._forget()

    def _forget(self) -> None:
        if not self._job.grows:
            forget(self._job.output)

    def _free_if_useless(self, before: OutputRecord | None) -> None:
        """Frees the output for a run with corrected options when not one item left a file."""
        if (before is None or not before.complete) and not self._journal.has_files():
            remove_owned(self._job.output, self._job.owned)
            forget(self._job.output)
            remove_empty(self._job.output)

    def _held(self, lock: Lock) -> Iterator[Receipt]:
        """Receipts of all items in order, as long as the output is still ours."""
        receipts = self._receipts(self._job.items)
        if self._ranks.size > 1:
            for _ in self._own_share():
                lock.check()
            self._ranks.meet()
            receipts = self._receipts_of_all()
        for receipt in receipts:
            lock.check()
            self._keyed.append((receipt.item, receipt.sizes, receipt.changed_ns))
            yield receipt
        if self._run.failures and len(self._run.failures) == len(self._job.items):
            raise _all_failed(self._run.failures, self._job.noun)

    def _share(self) -> Run:
        """The work of a rank that is not the first, which has claimed the output meanwhile."""
        self._ranks.meet()
        before = read_record(self._job.output)
        if before is not None and before.complete:
            self._known(before)
            return self._run
        for _ in self._own_share():
            pass
        self._ranks.meet()
        self._ranks.meet()
        self._run.status = "shared"
        return self._run

    def _own_share(self) -> Iterator[Receipt]:
        return self._receipts(self._job.items[self._ranks.rank :: self._ranks.size])

    def _receipts_of_all(self) -> Iterator[Receipt]:
        """What the logs of all ranks say of the items of this run."""
        rows: dict[str, dict[str, Any]] = {}
        for rank in range(self._ranks.size):
            rows |= {str(row.get("item")): row for row in self._journal.rows(rank)}
        failures = self._run.failures = list[dict[str, Any]]()
        for item in self._job.items:
            row = rows.get(self._job.name(item), {})
            if "failed" in row:
                failures.append(row["failed"])
            else:
                yield self._whole(Receipt.of(row))

    def _receipts(self, items: Sequence[Any]) -> Iterator[Receipt]:
        """Receipts of the good items in order; failures and findings are collected."""
        job, run, clock = self._job, self._run, time.monotonic()
        with (
            run.reporter.progress(f"{job.noun}s", len(items), f"{job.noun}s") as bar,
            AppendLog(self._journal.log(self._ranks.rank)) as log,
        ):
            for outcome in self._outcomes(items):
                if outcome.error is not None:
                    self._fail(outcome.item, outcome.error, log)
                elif outcome.value is not None:
                    self._take(outcome.value, log)
                    yield outcome.value
                bar.advance(1, **self._shown(max(time.monotonic() - clock, 1e-6)))

    def _outcomes(self, items: Sequence[Any]) -> Iterator[Outcome[Any, Receipt]]:
        """Outcomes with whole receipts; those of a remote journal are fetched a few at a time."""
        job = self._job
        task = _Task(job.work, job.state, job.plan, self._journal, stored=job.has_arrays)
        known = {} if job.has_arrays else self._logged()
        parts = (_Part(item, job.name(item), known.get(job.name(item))) for item in items)
        outcomes = self._run.executor.map(task, parts)
        if not job.has_arrays:
            return (replace(outcome, item=outcome.item.item) for outcome in outcomes)
        if is_remote(job.output):
            return in_parallel(self._loaded, outcomes, _LOADED_AHEAD)
        return map(self._loaded, outcomes)

    def _logged(self) -> dict[str, Receipt]:
        """Receipts of earlier runs; the last of an item counts."""
        rows = (row for row in self._journal.rows_of_all() if "failed" not in row)
        return {receipt.item: receipt for receipt in map(_receipt, rows) if receipt is not None}

    def _loaded(self, outcome: Outcome["_Part", Receipt]) -> Outcome[Any, Receipt]:
        if outcome.value is None:
            return Outcome(outcome.item.item, error=outcome.error)
        try:
            return Outcome(outcome.item.item, self._whole(outcome.value))
        except StorageError as error:
            return Outcome(outcome.item.item, error=error)

    def _whole(self, receipt: Receipt) -> Receipt:
        """The receipt with its arrays from the journal."""
        if not self._job.has_arrays:
            return receipt
        found = self._journal.find(receipt.item, receipt.key)
        if found is None:
            raise StorageError(
                f"{self._journal.folder}: the entry of {receipt.item} is gone",
                hint="something else removed it; run the same command again",
                code="storage.output_changed",
            )
        return replace(found, resumed=receipt.resumed)

    def _take(self, receipt: Receipt, log: AppendLog) -> None:
        """Counts what was done; tells each kind of finding once and counts the rest."""
        run = self._run
        run.resumed += receipt.resumed
        for name, count in receipt.counts.items():
            run.sums[name] = run.sums.get(name, 0) + count
            if not receipt.resumed:
                run.made[name] = run.made.get(name, 0) + count
        run.made_bytes += 0 if receipt.resumed else receipt.bytes
        for reason, count in receipt.dropped.items():
            run.dropped[reason] = run.dropped.get(reason, 0) + count
        for finding in receipt.findings:
            if finding.code not in run.warnings:
                run.reporter.warn(finding.code, finding.message)
            run.warnings[finding.code] = run.warnings.get(finding.code, 0) + 1
        if self._ranks.size > 1 or not (self._job.has_arrays or receipt.resumed):
            log.append(receipt.row())

    def _shown(self, seconds: float) -> dict[str, float | int | str]:
        """What is shown beside the bar."""
        run, name = self._run, self._job.measured
        reasons: dict[str, int] = {}
        for one in run.failures:
            reasons[one["code"]] = reasons.get(one["code"], 0) + 1
        return {
            name: run.sums.get(name, 0),
            f"{name}/s": float(round(run.made.get(name, 0) / seconds, 1)),
            "MB/s": float(round(run.made_bytes / 1e6 / seconds, 1)),
            "failed": len(run.failures),
            **reasons,
        }

    def _fail(self, item: Any, error: VlatoolError, log: AppendLog) -> None:
        if self._options.on_error == "stop" or not isinstance(error, DataError | BugError):
            raise error
        failures, noun, name = self._run.failures, self._job.noun, self._job.name(item)
        path = getattr(item, "path", None)
        place = {noun: name} if path is None else {noun: name, "path": str(path)}
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        failures.append({**place, **told, "details": error.details})
        if self._ranks.size > 1:
            log.append({"item": name, "failed": failures[-1]})
        self._run.reporter.warn(f"{noun}_failed", f"{name}: {error.message}")
        limit = self._options.max_failures
        if limit is not None and len(failures) > limit:
            raise DataError(
                f"{len(failures)} {noun}s failed, more than --max-failures allows",
                hint=error.message,
                code="data.too_many_failures",
                details={"failures": failures},
            )


@dataclass(frozen=True)
class _Part:
    """An item on its way to a worker, with what an earlier run says of it."""

    item: Any
    id: str
    known: Receipt | None


@dataclass(frozen=True)
class _Task:
    """What a worker does with an item: nothing, if an earlier run did it; picklable."""

    work: Any
    state: Any
    plan: str
    journal: Journal
    stored: bool

    def __call__(self, part: _Part) -> Receipt:
        """The receipt without its bulk, which is in the journal: answers stay small."""
        state = self.state(part.item)
        key = f"{self.plan} {state.digest}"
        before = self._before(part, key)
        if before is not None:
            return before.slim()
        receipt = replace(
            self.work(part.item),
            item=part.id,
            key=key,
            sizes=state.sizes,
            changed_ns=state.changed_ns,
        )
        if self.stored:
            self.journal.store(receipt)
        return receipt.slim()

    def _before(self, part: _Part, key: str) -> Receipt | None:
        known = self.journal.find(part.id, key) if self.stored else part.known
        if known is None or known.key != key:
            return None
        return intact(self.journal.output, known)


def _above(places: Sequence[Path]) -> list[str]:
    """The folders above places, longest first."""
    above = {f"{place.parent}/" for place in places} - {"./", "//"}
    return sorted(above, key=len, reverse=True)


def _receipt(row: dict[str, Any]) -> Receipt | None:
    try:
        return Receipt.of(row)
    except ValueError:
        return None


def _all_failed(failures: Sequence[dict[str, Any]], noun: str) -> VlatoolError:
    first = failures[0]
    is_bug = any(one["code"] == BugError.unexpected for one in failures)
    return (BugError if is_bug else DataError)(
        f"every {noun} failed; the first: {first['message']}",
        hint=str(first["hint"]),
        code=BugError.unexpected if is_bug else "data.all_failed",
        details={"failures": list(failures)},
    )
