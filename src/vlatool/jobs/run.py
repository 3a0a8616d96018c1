"""Loop over the items of a job, shared by all commands with many items.

A job defines its items, the work on one of them and how the output is finished. The loop handles
ownership of the output, the lock, the journal, failures, progress, the file list and the record.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from vlatool.errors import BugError, DataError, PartialFailure, StorageError, VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.jobs import files
from vlatool.jobs.command import JobConfig, OutputResult
from vlatool.jobs.executor import Executor
from vlatool.jobs.job import Job, JobRun, JobSpec, current_states, inputs_of, job_outcomes
from vlatool.jobs.journal import Journal, Receipt, remove_journal
from vlatool.jobs.ownership import OTHER_OUTPUT, claim_output, is_whole, plan_output, resume_output
from vlatool.jobs.record import OutputRecord, output_lock, parent_of, read_record, record_file
from vlatool.results import Result
from vlatool.storage.append_log import AppendLog
from vlatool.storage.atomic import remove_empty
from vlatool.storage.lock import Lock
from vlatool.storage.transfer import NOT_REQUESTED

_NAMED = 5


def _error_of(
    failures: Sequence[Mapping[str, Any]],
    message: str,
    hint: str,
    error_class: type[VlatoolError] = DataError,
    code: str = "data.incomplete",
) -> VlatoolError:
    """Error for failed items; of another class for bugs, and if the storage alone failed."""
    codes = [str(failure["code"]) for failure in failures]
    if BugError.unexpected in codes:
        error_class = BugError
        code = BugError.unexpected
    elif all(code.startswith("storage.") for code in codes):
        error_class = StorageError
        code = "storage.failed"
    return error_class(message, hint=hint, code=code, details={"failures": list(failures)})


def failure_of(run: JobRun, spec: JobSpec[Any], done: int) -> VlatoolError | None:
    """Error of a finished run with failed items; None if nothing failed."""
    if not run.failures:
        return None
    count = len(run.failures)
    record = record_file(spec.output)
    names = ", ".join(str(failure[spec.item_name]) for failure in run.failures[:_NAMED])
    message = f"{count} of {count + done} {spec.item_name}s failed: {names}"
    message += ", ..." if count > _NAMED else ""
    hint = f"the others are written; {record} lists the reasons; once they are fixed, run the same"
    hint += " command again"
    bugs = run.reasons.get(BugError.unexpected, 0)
    if bugs:
        message += f"; {bugs} because of a bug in vlatool or in a plugin"
        hint = f"the others are written; report the tracebacks in {record}"
    return _error_of(run.failures, message, hint, PartialFailure, "partial.failed")


R = TypeVar("R", bound=OutputResult)


def run_command(
    job: Job[Any],
    result_type: type[R],  # class of its result
    config: JobConfig,  # execution options
    executor: Executor,  # runs the work on items
    *,
    reporter: Reporter = NULL,  # receives progress and warnings
) -> R:
    """Runs the job of a command, as `run_job` does; returns its result.

    The result of an output that is already complete comes from its record.
    """
    run = run_job(job, executor, options=config, reporter=reporter)
    if run.status == "already complete":
        return result_type.of_record(run.record.result, job.spec.shown)
    result = run.result or _completed_result(job, run)
    assert isinstance(result, result_type)
    problem = failure_of(run, job.spec, _num_done(job, run))
    if problem is not None and run.status != "planned":
        problem.result = result
        raise problem
    return result


def run_job(
    job: Job[Any],
    executor: Executor,  # runs the work on items; closed before the lock is released
    *,
    options: JobConfig | None = None,
    reporter: Reporter = NULL,  # receives progress and warnings
) -> JobRun:
    """Processes the items of a job that are not finished yet.

    A run that was interrupted or killed resumes, and writes the same bytes as one that was not.
    Failed items are in `JobRun.failures`; `failure_of` returns the error for them.
    """
    return _Loop(job, options or JobConfig(), executor, reporter).run()


class _Loop:
    def __init__(
        self, job: Job[Any], options: JobConfig, executor: Executor, reporter: Reporter
    ) -> None:
        spec = job.spec
        self._job = job
        self._spec = spec
        self._options = options
        self._journal = Journal(spec.output)
        record = replace(
            spec.record,
            owned=tuple(spec.owned),
            volatile=tuple(spec.volatile),
            parent=parent_of(spec.output),
        )
        parents = {f"{path.parent}/" for path in spec.locations} - {"./", "//"}
        longest_first = sorted(parents, key=len, reverse=True)
        self._run = JobRun("written", record, executor, reporter, parent_folders=longest_first)
        self._input_states: list[tuple[str, str, int]] = []

    def run(self) -> JobRun:
        output = self._spec.output
        seen = read_record(output)
        before = self._previous_record()  # raises before the lock file is written
        if self._options.dry_run:
            return self._plan(before)
        with output_lock(output, f"vlatool {self._spec.record.command}") as lock:
            if read_record(output) != seen:  # another run changed it in the meantime
                before = self._previous_record()
            try:
                with ExitStack() as stack:
                    stack.push(self._run.executor)  # workers end before the lock is released
                    self._execute(before, lock)
            except (DataError, BugError):
                # Removes an output without any finished item, so that other options can be used.
                if self._run.is_fresh and not self._journal.holds_work():
                    files.remove_owned(self._spec.output, self._files_removed_first)
                    remove_journal(self._spec.output)
                    remove_empty(self._spec.output)
                raise
        return self._run

    def _previous_record(self) -> OutputRecord | None:
        """Record of the run that this one resumes or repeats; None without one."""
        has_option = self._spec.replaced == "first"
        return plan_output(
            self._spec.output,
            self._run.record,
            None if self._spec.is_download else self._inputs,
            overwrite=self._options.overwrite,
            # A command without --overwrite never replaces files that happen to match.
            owned=self._spec.owned if has_option else (),
            hint=OTHER_OUTPUT if has_option else "choose another --output",
        )

    def _plan(self, before: OutputRecord | None) -> JobRun:
        self._run.status = "planned"
        if before is not None:
            if before.complete and self._has_all_items(before):
                self._report_complete(before)
            self._run.resumed = self._journal.count([*map(self._job.name, self._job.items)])
        if self._run.status == "planned" and self._spec.check is not None:
            self._check(self._spec.check)
        return self._run

    def _check(self, check: Callable[[Any], Receipt]) -> None:
        """Reads all items without writing: counts those that would fail or be dropped."""
        spec = self._spec
        items = self._job.items
        with self._run.reporter.progress("checks", len(items), f"{spec.item_name}s") as bar:
            for outcome in self._run.executor.map(check, items):
                if outcome.error is not None:
                    self._fail(outcome.item, outcome.error)
                elif outcome.value is not None:
                    self._run.add_checked(outcome.value)
                bar.advance(1, failed=len(self._run.failures))
        self._check_any_is_good()

    def _has_all_items(self, before: OutputRecord) -> bool:
        """True if a complete output has all items. Only a download can lack some."""
        return not self._spec.is_download or before.inputs == self._inputs()

    def _inputs(self) -> dict[str, Any]:
        """Inputs from the current state of every item."""
        return self._inputs_of(current_states(self._job.items, self._job.name, self._spec.state))

    def _inputs_of(self, states: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
        """Inputs for the record: empty if no item has input files."""
        has_files = any(sizes for _, sizes, _ in states)
        if not (has_files or self._spec.is_download):
            return {}
        return inputs_of(states, self._spec.item_name)

    def _report_complete(self, before: OutputRecord) -> None:
        self._run.status = "already complete"
        self._run.record = before

    def _execute(self, before: OutputRecord | None, lock: Lock) -> None:
        job = self._job
        spec = self._spec
        run = self._run
        if (
            before is not None
            and (not before.complete or self._has_all_items(before))
            and is_whole(spec.output, before, run.reporter)
        ):
            self._clean_up()
            self._report_complete(before)
            return
        run.is_fresh = before is None
        run.record = run.record.after(before)
        if before is None:
            claim_output(spec.output, run.record, self._files_removed_first)
        else:
            resume_output(spec.output, run.record)
        files.remove_partial_files(spec.output)
        job.begin()
        self._finish(lock)

    def _finish(self, lock: Lock) -> None:
        """Processes the items, writes the shared files and the file list and, last, the record."""
        job = self._job
        spec = self._spec
        run = self._run
        clock = time.monotonic()
        # Closed even if `finish` fails, so that the log is closed.
        with closing(self._locked_receipts(lock)) as receipts:
            entries = job.finish(receipts, run)
        # In the order of the items; an executor may yield another one.
        states = {state[0]: state for state in self._input_states}
        names = map(job.name, job.items)
        inputs = self._inputs_of([states[name] for name in names if name in states])
        if inputs and not (run.is_fresh or spec.is_download):  # the input may have lost items since
            unlisted = (*spec.volatile, *spec.temporary)
            files.remove_stale_files(spec.output, spec.owned, unlisted, entries)
        lock.check()
        run.seconds = round(time.monotonic() - clock, 2)
        files.write_file_list(spec.output, entries)
        run.bytes_on_disk = sum(entry.bytes for entry in entries)
        files.remove_partial_files(spec.output)  # of workers that died
        run.result = _completed_result(job, run)
        result = run.redact_paths(run.result.document())
        run.record = run.record.finished(inputs, result, has_failures=bool(run.failures))
        run.record.save(spec.output)
        if run.record.complete:
            self._clean_up()

    @property
    def _files_removed_first(self) -> Sequence[str]:
        """Patterns of the files of an earlier run that are removed before items are processed."""
        return () if self._spec.replaced == "last" else self._spec.owned

    def _clean_up(self) -> None:
        """Removes the journal and temporary files of a complete output.

        If the run is killed before, the next run removes them.
        """
        files.remove_owned(self._spec.output, self._spec.temporary)
        for folder in {PurePosixPath(pattern).parent for pattern in self._spec.temporary}:
            remove_empty(self._spec.output / folder)
        if not self._spec.is_download:
            remove_journal(self._spec.output)

    def _locked_receipts(self, lock: Lock) -> Generator[Receipt]:
        """Receipts of all items in order; checks before each that the lock is still held."""
        for receipt in self._receipts():
            lock.check()
            self._input_states.append((receipt.item, receipt.sizes, receipt.changed_ns))
            yield receipt
        self._check_any_is_good()

    def _check_any_is_good(self) -> None:
        if self._run.failures and len(self._run.failures) == len(self._job.items):
            message = str(self._run.failures[0]["message"])
            if len(self._run.failures) > 1:
                message = f"all {self._spec.item_name}s failed; the first: {message}"
            raise _error_of(self._run.failures, message, str(self._run.failures[0]["hint"]))

    def _receipts(self) -> Iterator[Receipt]:
        """Receipts of the finished items in order; collects failures and findings."""
        spec = self._spec
        run = self._run
        clock = time.monotonic()
        unit = f"{spec.item_name}s"
        reporter = NULL if spec.is_download else run.reporter
        with (
            reporter.progress(unit, len(self._job.items), unit) as bar,
            AppendLog(self._journal.log) as log,
        ):
            for outcome in job_outcomes(self._job, self._journal, run.executor):
                if outcome.error is not None:
                    self._fail(outcome.item, outcome.error)
                elif outcome.value is not None:
                    run.add_receipt(outcome.value)
                    if not (spec.has_arrays or outcome.value.resumed):
                        log.append(outcome.value.row())
                    yield outcome.value
                seconds = time.monotonic() - clock
                bar.advance(1, **run.progress_fields(spec.progress_count, seconds))
            log.sync()

    def _fail(self, item: Any, error: VlatoolError) -> None:
        skipped = DataError | BugError
        if self._spec.is_download:
            skipped |= StorageError
        if self._options.on_error == "stop" or not isinstance(error, skipped):
            raise error
        failures = self._run.failures
        item_name = self._spec.item_name
        name = self._job.name(item)
        path = getattr(item, "path", None)
        location = {} if path is None else {"path": str(path)}
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        row = {item_name: name, **location, **body, "details": error.details}
        # The error of a plugin may hold anything, and a path bytes that are not UTF-8.
        text = json.dumps(row, default=str, ensure_ascii=False)
        self._run.fail(json.loads(text.encode("utf-8", "replace")))
        if error.code != NOT_REQUESTED:  # one note tells about all of these
            self._run.reporter.warn(f"{item_name}_failed", f"{name}: {error.message}")
        limit = self._options.max_failures
        if limit is not None and len(failures) > limit:
            message = f"{len(failures)} {item_name}s failed, more than --max-failures allows"
            raise _error_of(failures, message, error.message)


def _num_done(job: Job[Any], run: JobRun) -> int:
    return len(job.items) - len(run.failures) - len(run.empty)


def _completed_result(job: Job[Any], run: JobRun) -> Result:
    """Result of a job, with the values of the loop that its class has."""
    result = job.result(run)
    values = {
        **job.spec.shown,
        "episodes": _num_done(job, run),
        f"{job.spec.item_name}s": _num_done(job, run),
        "failures": tuple(run.failures),
        "resumed": run.resumed,
        "seconds": run.seconds,
        "status": run.status,
    }
    names = {field.name for field in fields(result)}
    return replace(result, **{name: value for name, value in values.items() if name in names})
