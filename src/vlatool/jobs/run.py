"""The one loop over items in which every long command runs.

A job says what its items are, how one is done and how the whole is finished; the loop sees to whose
output it is, to the lock, the journal, failures, progress, the list of files and the record.
"""

import json
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from vlatool.errors import BugError, DataError, VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.jobs.append_log import AppendLog
from vlatool.jobs.files import (
    changed_files,
    remove_owned,
    remove_partial_files,
    write_file_list,
)
from vlatool.jobs.inputs import inputs_of
from vlatool.jobs.items import Items
from vlatool.jobs.job import Job, JobOptions, JobRun, Ranks
from vlatool.jobs.journal import Journal, Receipt, remove_journal
from vlatool.jobs.record import (
    OutputRecord,
    claim_output,
    output_lock,
    parent_of,
    read_record,
    resumable_record,
    resume_output,
)
from vlatool.parallel.executor import Executor
from vlatool.storage.atomic import remove_empty
from vlatool.storage.lock import Lock


def run_job(
    job: Job[Any],
    executor: Executor,
    *,
    options: JobOptions | None = None,
    reporter: Reporter = NULL,
    ranks: Ranks | None = None,
) -> JobRun:
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
    ranks = ranks or Ranks()
    try:
        return _Loop(job, options or JobOptions(), executor, reporter, ranks).run()
    except BaseException:
        ranks.abort()
        raise


class _Loop:
    def __init__(
        self,
        job: Job[Any],
        options: JobOptions,
        executor: Executor,
        reporter: Reporter,
        ranks: Ranks,
    ) -> None:
        spec = job.spec
        self._job, self._spec = job, spec
        self._options = options
        self._ranks = ranks
        self._journal = Journal(spec.output)
        record = replace(
            spec.record,
            owned=tuple(spec.owned),
            volatile=tuple(spec.volatile),
            parent=parent_of(spec.output),
        )
        self._run = JobRun(
            "written", record, executor, reporter, parent_folders=_parent_folders(spec.locations)
        )
        self._todo = Items(job, self._journal, executor)
        self._input_states: list[tuple[str, str, int]] = []

    def run(self) -> JobRun:
        output = self._spec.output
        if self._ranks.rank and not self._options.dry_run:
            return self._run_rank()
        seen = read_record(output)
        before = self._previous_record()  # refused before the lock leaves a trace
        if self._options.dry_run:
            return self._plan(before)
        with output_lock(output, f"vlatool {self._spec.title}") as lock:
            if read_record(output) != seen:  # another run was here in the meantime
                before = self._previous_record()
            try:
                with ExitStack() as ending:
                    ending.push(self._run.executor)  # workers end before the lock does
                    self._execute(before, lock)
            except (DataError, BugError):
                self._release_if_empty()
                raise
        return self._run

    def _previous_record(self) -> OutputRecord | None:
        """The record of the run that this one goes on with or repeats, if any."""
        return resumable_record(
            self._spec.output,
            self._run.record,
            None if self._spec.grows else self._job.inputs,
            overwrite=self._options.overwrite,
            # Who cannot ask for it does not replace what happens to have the same names.
            owned=self._spec.owned if self._spec.can_overwrite else (),
            **({} if self._spec.can_overwrite else {"hint": "choose another --output"}),
        )

    def _plan(self, before: OutputRecord | None) -> JobRun:
        self._run.status = "planned"
        if before is not None:
            if before.complete and self._has_all_items(before):
                self._report_complete(before)
            self._run.resumed = self._journal.count()
        return self._run

    def _has_all_items(self, before: OutputRecord) -> bool:
        """Whether a complete output has every item; one that cannot grow was compared before."""
        return not self._spec.grows or before.inputs == self._job.inputs()

    def _report_complete(self, before: OutputRecord) -> None:
        self._run.status, self._run.record = "already complete", before

    def _execute(self, before: OutputRecord | None, lock: Lock) -> None:
        job, spec, run = self._job, self._spec, self._run
        if before is not None and before.complete and self._has_all_items(before):
            # Before there were versions there were no lists either: such an output is believed.
            damaged = changed_files(spec.output) if before.version else []
            if not damaged:
                self._clean_up()
                self._report_complete(before)
                self._ranks.barrier()
                return
            message = f"{spec.output}: {damaged[0]} is missing or was changed; it is made anew"
            run.reporter.warn("output_damaged", message)
        run.is_fresh = before is None
        made = secrets.token_hex(4) if before is None else before.run_id
        run.record = replace(run.record, run_id=made)
        if before is None:
            claim_output(spec.output, run.record, self._files_removed_first)
        else:
            resume_output(spec.output, run.record)
        remove_partial_files(spec.output)
        job.begin()
        self._ranks.barrier()
        self._finish(lock)
        self._ranks.barrier()

    def _finish(self, lock: Lock) -> None:
        """Items, what they share, the list of files and, last, the record."""
        job, spec, run = self._job, self._spec, self._run
        clock = time.monotonic()
        with closing(
            self._locked_receipts(lock)
        ) as receipts:  # the log is left even where finish fails
            entries = job.finish(receipts, run)
        lock.check()
        run.seconds = round(time.monotonic() - clock, 2)
        write_file_list(spec.output, entries)
        run.bytes_on_disk = sum(entry.bytes for entry in entries)
        remove_partial_files(spec.output)  # of workers that died on the way
        has_inputs = spec.grows or any(sizes for _, sizes, _ in self._input_states)
        run.record = replace(
            run.record,
            inputs=inputs_of(self._input_states, spec.item_name) if has_inputs else {},
            result=run.redact_paths(job.result(run)),
            complete=not run.failures,
        )
        run.record.save(spec.output)
        if run.record.complete:
            self._clean_up()

    @property
    def _files_removed_first(self) -> Sequence[str]:
        """What of an earlier run does not stay until it is replaced."""
        return () if self._spec.is_replaced_last else self._spec.owned

    def _clean_up(self) -> None:
        """Removes what only an incomplete output needs; a killed run leaves it to the next one."""
        remove_owned(self._spec.output, self._spec.temporary)
        for folder in {
            PurePosixPath(pattern).parent.as_posix() for pattern in self._spec.temporary
        }:
            remove_empty(self._spec.output / folder)
        if not self._spec.grows:
            remove_journal(self._spec.output)

    def _release_if_empty(self) -> None:
        """Frees the output for a run with corrected options when nothing is worth keeping."""
        if self._run.is_fresh and not self._journal.holds_work():
            remove_owned(self._spec.output, self._files_removed_first)
            remove_journal(self._spec.output)
            remove_empty(self._spec.output)

    def _locked_receipts(self, lock: Lock) -> Generator[Receipt]:
        """Receipts of all items in order, as long as the output is still ours."""
        receipts = self._receipts(self._job.items)
        if self._ranks.size > 1:
            for _ in self._rank_items():
                lock.check()
            self._ranks.barrier()
            self._run.reset_counts()
            receipts = self._receipts_of_all_ranks()
        for receipt in receipts:
            lock.check()
            self._input_states.append((receipt.item, receipt.sizes, receipt.changed_ns))
            yield receipt
        if self._run.failures and len(self._run.failures) == len(self._job.items):
            raise _all_failed_error(self._run.failures, self._spec.item_name)

    def _run_rank(self) -> JobRun:
        """The work of a rank that is not the first, which has claimed the output meanwhile."""
        self._ranks.barrier()
        before = read_record(self._spec.output)
        if before is not None and before.complete:
            self._report_complete(before)
            return self._run
        for _ in self._rank_items():
            pass
        self._ranks.barrier()
        self._ranks.barrier()
        self._run.status = "shared"
        return self._run

    def _rank_items(self) -> Iterator[Receipt]:
        return self._receipts(self._job.items[self._ranks.rank :: self._ranks.size])

    def _receipts_of_all_ranks(self) -> Iterator[Receipt]:
        """What all ranks did, in the order of the items; each tells of its own share."""
        size = self._ranks.size
        rows = [{row.get("item"): row for row in self._journal.rows(one)} for one in range(size)]
        for number, item in enumerate(self._job.items):
            row = rows[number % size].get(self._job.name(item), {})
            if "failed" in row:
                self._run.fail(row["failed"])
                continue
            receipt = self._todo.with_arrays(Receipt.of(row))
            self._run.add_receipt(receipt)
            yield receipt

    def _receipts(self, items: Sequence[Any]) -> Iterator[Receipt]:
        """Receipts of the good items in order; failures and findings are collected."""
        spec, run, clock = self._spec, self._run, time.monotonic()
        with (
            run.reporter.progress(f"{spec.item_name}s", len(items), f"{spec.item_name}s") as bar,
            AppendLog(self._journal.log(self._ranks.rank)) as log,
        ):
            for outcome in self._todo.outcomes(items):
                if outcome.error is not None:
                    self._fail(outcome.item, outcome.error, log)
                elif outcome.value is not None:
                    self._add_receipt(outcome.value, log)
                    yield outcome.value
                bar.advance(1, **run.progress_fields(spec.progress_count, time.monotonic() - clock))

    def _add_receipt(self, receipt: Receipt, log: AppendLog) -> None:
        self._run.add_receipt(receipt)
        if self._ranks.size > 1 or not (self._spec.has_arrays or receipt.resumed):
            log.append(receipt.row())

    def _fail(self, item: Any, error: VlatoolError, log: AppendLog) -> None:
        if self._options.on_error == "stop" or not isinstance(error, DataError | BugError):
            raise error
        failures, noun, name = self._run.failures, self._spec.item_name, self._job.name(item)
        path = getattr(item, "path", None)
        place = {noun: name} if path is None else {noun: name, "path": str(path)}
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        self._run.fail({**place, **told, "details": _as_json(error.details)})
        if self._ranks.size > 1:
            log.append({"item": name, "failed": failures[-1]})
        self._run.reporter.warn(f"{noun}_failed", f"{name}: {error.message}")
        limit = self._options.max_failures
        if limit is not None and len(failures) > limit:
            is_bug = any(one["code"] == BugError.unexpected for one in failures)
            raise (BugError if is_bug else DataError)(
                f"{len(failures)} {noun}s failed, more than --max-failures allows",
                hint=error.message,
                code=BugError.unexpected if is_bug else "data.too_many_failures",
                details={"failures": failures},
            )


def _as_json(details: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it; a plugin's error may hold anything."""
    return json.loads(json.dumps(details, default=str))


def _parent_folders(places: Sequence[Path]) -> list[str]:
    """The folders above places, longest first."""
    above = {f"{place.parent}/" for place in places} - {"./", "//"}
    return sorted(above, key=len, reverse=True)


def _all_failed_error(failures: Sequence[dict[str, Any]], noun: str) -> VlatoolError:
    first = failures[0]
    is_bug = any(one["code"] == BugError.unexpected for one in failures)
    return (BugError if is_bug else DataError)(
        f"every {noun} failed; the first: {first['message']}",
        hint=str(first["hint"]),
        code=BugError.unexpected if is_bug else "data.all_failed",
        details={"failures": list(failures)},
    )
