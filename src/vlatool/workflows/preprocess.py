"""Raw episodes of any format to training shards."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.artifacts.provenance import write_preprocessing_config, write_processing_metadata
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, PartialFailure, StorageError, VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.jobs.files import changed_files
from vlatool.jobs.record import (
    OutputRecord,
    claim_output,
    known_output,
    read_record,
    remove_owned,
)
from vlatool.parallel.engines import make_executor
from vlatool.parallel.executor import Executor, Outcome
from vlatool.sinks.base import Receipt
from vlatool.sinks.lbm.shards import OWNED_FILES, ShardSink, ShardsSummary
from vlatool.storage.atomic import remove_empty, remove_partials, remove_tree
from vlatool.storage.background import in_parallel
from vlatool.storage.lock import Lock, output_lock
from vlatool.storage.uri import is_remote
from vlatool.transforms.windows import make_windows
from vlatool.workflows.preprocessing.config import PreprocessConfig
from vlatool.workflows.preprocessing.episode_task import kept_cameras
from vlatool.workflows.preprocessing.inputs import inputs_of, present_inputs
from vlatool.workflows.preprocessing.plan import PreprocessPlan, make_plan
from vlatool.workflows.preprocessing.record import data_options, run_record, without_places
from vlatool.workflows.preprocessing.result import PreprocessResult

__all__ = ["PreprocessConfig", "PreprocessResult", "preprocess"]

_LOADED_AHEAD = 4


def preprocess(config: PreprocessConfig, *, reporter: Reporter = NULL) -> PreprocessResult:
    """Reads episodes, cuts them into samples and writes shards.

    A run that was ended, however it was, goes on where it was; the bytes are those of a run that
    was not.

    Raises:
        UsageError: A needed key is missing, or the output belongs to another run.
        DataError: No episode can be used, or one cannot and `on_error` is `stop`.
        StorageError: Something cannot be read or written; what is written stays.
        PartialFailure: The shards are written, but without the episodes that failed.
    """
    with ExitStack() as stack:
        executor = stack.enter_context(_executor(config))
        plan = make_plan(config)
        run = _Run(config, plan, executor, reporter, run_record(config))
        _announce(plan, reporter)
        seen = read_record(run.output)
        before = run.before()  # refused before the lock leaves a trace
        if config.dry_run:
            return _planned(config, plan, before)
        with output_lock(run.output, f"vlatool preprocess {config.format}") as lock:
            if read_record(run.output) != seen:  # another run was here in the meantime
                before = run.before()
            try:
                with ExitStack() as ending:
                    ending.push(executor)  # workers end before the lock does
                    result = _finish(run, before, lock)
            except DataError:
                _remove_if_useless(plan)
                raise
            return _checked(result)


@dataclass(frozen=True)
class _Run:
    """What is done, by whom, who hears of it, and what is recorded of it."""

    config: PreprocessConfig
    plan: PreprocessPlan
    executor: Executor
    reporter: Reporter
    record: OutputRecord

    @property
    def sink(self) -> ShardSink:
        return self.plan.task.sink

    @property
    def output(self) -> Path:
        return self.sink.output

    def before(self) -> OutputRecord | None:
        """The record of the run that this one goes on with or repeats, if any."""
        return known_output(
            self.output,
            self.record,
            lambda: present_inputs(self.plan.refs),
            overwrite=self.config.overwrite,
        )


def _executor(config: PreprocessConfig) -> Executor:
    if config.dry_run:
        return make_executor(1)
    if config.engine == "ray":
        workers = config.ray_num_cpus or config.workers
        return make_executor(workers, engine="ray", ray_address=config.ray_address)
    return make_executor(config.workers, preload=("vlatool.workflows.preprocessing.episode_task",))


def _finish(run: _Run, before: OutputRecord | None, lock: Lock) -> PreprocessResult:
    """Does what is not done yet."""
    if before is not None and before.complete and before.result is not None:
        damaged = changed_files(run.output)
        if not damaged:
            run.sink.journal.remove()
            return PreprocessResult.known(run.config.output, before.result)
        message = f"{run.output}: {damaged[0]} is missing or was changed; the data are made anew"
        run.reporter.warn("output_damaged", message)
    if before is None:
        claim_output(run.output, run.record, OWNED_FILES)
    else:
        run.record.save(run.output)
    remove_partials(run.output)
    run.sink.begin()
    write_preprocessing_config(run.output / "shards", data_options(run.config, run.plan))
    result, inputs = _write(run, lock)
    remove_partials(run.output)  # of workers that died on the way
    complete = not result.failures
    told = without_places(run.config, result.document())
    replace(run.record, inputs=inputs, result=told, complete=complete).save(run.output)
    if complete:
        run.sink.journal.remove()
    return result


def _write(run: _Run, lock: Lock) -> tuple[PreprocessResult, dict[str, Any]]:
    """Episodes, shards, statistics, manifests and how they came about; the inputs it saw."""
    started, clock = datetime.now(UTC), time.monotonic()
    collected = _Collected()
    receipts = _held(lock, _receipts(run, collected))
    summary = run.sink.finish(receipts, run.executor, run.plan.widths, run.reporter)
    lock.check()
    write_processing_metadata(
        run.output / "shards",
        started=started,
        counts={
            "total_samples_created": summary.samples,
            "sample_counts": {"dropped": dict(summary.dropped)},
            "failures": without_places(run.config, collected.failures),
        },
        arguments=run.record.options,
        episodes=[ref.id for ref in run.plan.refs],
    )
    result = _result(run, summary, collected)
    seconds = round(time.monotonic() - clock, 2)
    on_disk = run.sink.seal(summary.files)
    inputs = inputs_of(collected.inputs)
    return replace(result, seconds=seconds, bytes_on_disk=on_disk), inputs


def _held(lock: Lock, receipts: Iterator[Receipt]) -> Iterator[Receipt]:
    """Receipts, as long as the output is still ours."""
    for receipt in receipts:
        lock.check()
        yield receipt


def _remove_if_useless(plan: PreprocessPlan) -> None:
    """Frees the output for a run with corrected options when not one episode was written."""
    output = plan.task.sink.output
    if not any((output / "episodes").glob("*.tar")):
        remove_owned(output, OWNED_FILES)
        remove_tree(output / ".vlatool/journal")
        remove_empty(output)


@dataclass
class _Collected:
    """What the driver learns while receipts pass by."""

    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    empty: list[str] = field(default_factory=list[str])
    inputs: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    samples: int = 0
    made_samples: int = 0
    made_bytes: int = 0
    resumed: int = 0

    def progress(self, seconds: float) -> dict[str, float | int | str]:
        """What is shown beside the bar."""
        shown: dict[str, float | int | str] = {
            "samples": self.samples,
            "samples/s": float(round(self.made_samples / seconds, 1)),
            "MB/s": float(round(self.made_bytes / 1e6 / seconds, 1)),
            "failed": len(self.failures),
        }
        return shown | self.reasons


def _announce(plan: PreprocessPlan, reporter: Reporter) -> None:
    for code, message in plan.warnings:
        reporter.warn(code, message)
    first = plan.first
    reporter.note(f"cameras: {', '.join(plan.task.cameras)}")
    reporter.note(f"action fields: {', '.join(first.action_fields) or 'none'}")
    reporter.note(f"proprioception fields: {', '.join(first.proprioception_fields) or 'none'}")
    for reason, count in plan.held_out.items():
        reporter.note(f"{count} episodes are left out: {reason}")


def _receipts(run: _Run, collected: _Collected) -> Iterator[Receipt]:
    """Receipts of the good episodes in order; failures and warnings are collected."""
    refs, clock = run.plan.refs, time.monotonic()
    with run.reporter.progress("episodes", len(refs), "episodes") as bar:
        for outcome in _with_bulk(run.sink, run.executor.map(run.plan.task, refs)):
            if outcome.error is not None:
                _fail(run, outcome.item, outcome.error, collected)
            elif outcome.value is not None:
                _collect(outcome.value, run.reporter, collected)
                yield outcome.value
            bar.advance(1, **collected.progress(max(time.monotonic() - clock, 1e-6)))
    if len(collected.failures) == len(refs):
        raise DataError(
            f"every episode failed; the first: {collected.failures[0]['message']}",
            hint=str(collected.failures[0]["hint"]),
            code="data.all_failed",
            details={"failures": collected.failures},
        )


def _with_bulk(
    sink: ShardSink, outcomes: Iterator[Outcome[EpisodeRef, Receipt]]
) -> Iterator[Outcome[EpisodeRef, Receipt]]:
    """Outcomes with whole receipts; those of a remote journal are fetched a few at a time."""
    load = partial(_whole, sink)
    if is_remote(sink.output):
        return in_parallel(load, outcomes, _LOADED_AHEAD)
    return map(load, outcomes)


def _whole(sink: ShardSink, outcome: Outcome[EpisodeRef, Receipt]) -> Outcome[EpisodeRef, Receipt]:
    """The outcome with the whole receipt of the journal."""
    if outcome.value is None:
        return outcome
    found = sink.journal.find(outcome.value.episode, outcome.value.key)
    if found is None:
        error = StorageError(
            f"{sink.journal.folder}: the entry of {outcome.value.episode} is gone",
            hint="something else removed it; run the same command again",
            code="storage.output_changed",
        )
        return Outcome(outcome.item, error=error)
    return Outcome(outcome.item, replace(found, resumed=outcome.value.resumed))


def _collect(receipt: Receipt, reporter: Reporter, collected: _Collected) -> None:
    """Counts what was written; tells each kind of warning once and counts the rest."""
    collected.samples += len(receipt.ranges)
    if receipt.resumed:
        collected.resumed += 1
    else:
        collected.made_samples += len(receipt.ranges)
        collected.made_bytes += receipt.bytes
    collected.inputs.append((receipt.episode, receipt.sizes, receipt.changed_ns))
    if not receipt.ranges:
        collected.empty.append(receipt.episode)
    for code, message in receipt.warnings:
        if code not in collected.warnings:
            reporter.warn(code, message)
        collected.warnings[code] = collected.warnings.get(code, 0) + 1


def _fail(run: _Run, ref: EpisodeRef, error: VlatoolError, collected: _Collected) -> None:
    if run.config.on_error == "stop" or not isinstance(error, DataError):
        raise error
    collected.failures.append(
        {
            "episode": ref.id,
            "path": str(ref.path),
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "details": error.details,
        }
    )
    collected.reasons[error.code] = collected.reasons.get(error.code, 0) + 1
    run.reporter.warn("episode_failed", f"{ref.id}: {error.message}")
    if run.config.max_failures is not None and len(collected.failures) > run.config.max_failures:
        raise DataError(
            f"{len(collected.failures)} episodes failed, more than --max-failures allows",
            hint=error.message,
            code="data.too_many_failures",
            details={"failures": collected.failures},
        )


def _result(run: _Run, summary: ShardsSummary, collected: _Collected) -> PreprocessResult:
    config, plan = run.config, run.plan
    failed, empty = len(collected.failures), len(collected.empty)
    return PreprocessResult(
        output=config.output,
        episodes=len(plan.refs) - failed - empty,
        empty_episodes=tuple(collected.empty),
        frames=summary.frames,
        samples=summary.samples,
        shards=summary.shards,
        bytes=summary.bytes,
        cameras=plan.task.cameras,
        action_fields=plan.first.action_fields,
        proprioception_fields=plan.first.proprioception_fields,
        dropped={**summary.dropped, **plan.held_out},
        failures=tuple(collected.failures),
        resumed=collected.resumed,
        warnings=tuple(f"{code}: {count} episodes" for code, count in collected.warnings.items()),
    )


def _planned(
    config: PreprocessConfig, plan: PreprocessPlan, before: OutputRecord | None
) -> PreprocessResult:
    """What a run would do, estimated from the first episode."""
    if before is not None and before.complete and before.result is not None:
        return PreprocessResult.known(config.output, before.result)
    first = plan.first
    per_episode = len(make_windows(first.num_frames, plan.task.spec.windows).anchors)
    samples = per_episode * len(plan.refs)
    return PreprocessResult(
        output=config.output,
        episodes=len(plan.refs),
        frames=first.num_frames * len(plan.refs),
        samples=samples,
        shards=-(-samples // config.samples_per_shard),
        bytes=0,
        cameras=kept_cameras(first, plan.task.cameras),
        action_fields=first.action_fields,
        proprioception_fields=first.proprioception_fields,
        dropped=dict(plan.held_out),
        status="planned",
        plan={"estimated_from": first.id},
    )


def _checked(result: PreprocessResult) -> PreprocessResult:
    if not result.failures:
        return result
    failed = ", ".join(str(one["episode"]) for one in result.failures[:5])
    problem = PartialFailure(
        f"{len(result.failures)} of {len(result.failures) + result.episodes} episodes failed: "
        f"{failed}{', ...' if len(result.failures) > 5 else ''}",
        hint="the others are written; reasons are listed in .vlatool/run.json; "
        "once repaired, run the same command again",
        code="partial.episodes_failed",
        details={"failures": list(result.failures)},
    )
    problem.result = result
    raise problem
