"""Raw episodes of any format to training shards."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlatool.artifacts.output_record import OutputRecord, claim_output
from vlatool.artifacts.provenance import write_preprocessing_config, write_processing_metadata
from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError, PartialFailure, UsageError, VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.parallel.executor import default_workers, make_executor
from vlatool.plugins import FORMATS
from vlatool.sinks.base import Receipt
from vlatool.sinks.shards import ShardSink, ShardsSummary
from vlatool.sources.base import FormatReader
from vlatool.sources.order import select
from vlatool.storage.atomic import remove_partials
from vlatool.storage.lock import output_lock
from vlatool.storage.uri import local_path
from vlatool.transforms.sampling import SampleSpec
from vlatool.transforms.windows import WindowSpec, make_windows
from vlatool.workflows.episode_task import (
    EpisodeTask,
    check_cameras,
    first_readable,
    kept_cameras,
)
from vlatool.workflows.preprocess_config import PreprocessConfig, PreprocessResult

__all__ = ["PreprocessConfig", "PreprocessResult", "preprocess"]


def preprocess(config: PreprocessConfig, *, reporter: Reporter = NULL) -> PreprocessResult:
    """Reads episodes, cuts them into samples and writes shards.

    Raises:
        UsageError: A needed key is missing, or the output belongs to another run.
        DataError: No episode can be used, or one cannot and `on_error` is `stop`.
        PartialFailure: The shards are written, but without the episodes that failed.
    """
    reader = _reader(config)
    refs = _discover(config, reader)
    for code, message in reader.warnings:
        reporter.warn(code, message)
    first = first_readable(reader, refs)
    check_cameras(config.camera_names or (), reader, refs, first)
    task = _task(config, first)
    _announce(task, first, reporter)
    for name in task.cameras:
        if name != name.lower():
            reporter.warn("upper_case_camera", f"camera {name!r}: other loaders want lower case")
    if config.dry_run:
        return _planned(config, task, refs, first)
    output = local_path(config.output)
    record = _record(config, refs)
    parts = ("shards", "episodes")
    with output_lock(output, f"vlatool preprocess {config.format}"):
        done = claim_output(output, record, overwrite=config.overwrite, parts=parts)
        if done is not None and done.result is not None:
            return _checked(PreprocessResult(**{**done.result, "status": "already complete"}))
        remove_partials(output)
        write_preprocessing_config(output / "shards", _data_options(config, task, first))
        try:
            result = _write(config, task, refs, record, reporter)
        except DataError:
            _remove_if_useless(output, parts)
            raise
        OutputRecord(record.command, record.options, record.inputs, result.document()).save(output)
    return _checked(result)


def _write(
    config: PreprocessConfig,
    task: EpisodeTask,
    refs: Sequence[EpisodeRef],
    record: OutputRecord,
    reporter: Reporter,
) -> PreprocessResult:
    """Episodes, shards, statistics, manifests and how they came about."""
    started, clock = datetime.now(UTC), time.monotonic()
    collected = _Collected()
    summary = task.sink.finish(_receipts(config, task, refs, reporter, collected))
    write_processing_metadata(
        task.sink.output / "shards",
        started=started,
        counts={
            "total_samples_created": summary.samples,
            "sample_counts": {"dropped": dict(summary.dropped)},
            "failures": collected.failures,
        },
        arguments=record.options,
        episodes=[ref.id for ref in refs],
    )
    seconds = round(time.monotonic() - clock, 2)
    return replace(_result(config, task, summary, collected, len(refs)), seconds=seconds)


def _remove_if_useless(output: Path, parts: Sequence[str]) -> None:
    """Frees the output for a run with corrected options when not one episode was written."""
    if not any((output / "episodes").glob("*.tar")):
        for part in parts:
            shutil.rmtree(output / part, ignore_errors=True)


@dataclass
class _Collected:
    """What the driver learns while receipts pass by."""

    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    empty: list[str] = field(default_factory=list[str])


def _reader(config: PreprocessConfig) -> FormatReader:
    for key in ("format", "sources", "output"):
        if not getattr(config, key):
            raise UsageError(
                f"preprocess needs a value for {key!r}",
                hint="vlatool preprocess FORMAT SOURCE... --output DIR",
                code="usage.missing_key",
            )
    return FORMATS.get(config.format)(_section(config))


def _section(config: PreprocessConfig) -> ConfigModel:
    """The reader's keys; the defaults where the config was built without them."""
    kind = FORMATS.get(config.format).Config
    return config.source if isinstance(config.source, kind) else kind()


def _discover(config: PreprocessConfig, reader: FormatReader) -> list[EpisodeRef]:
    sources = [local_path(source) for source in config.sources]
    for source in sources:
        if not source.exists():
            raise DataError(
                f"{source}: does not exist",
                hint="check the path of the source",
                code="data.no_source",
                details={"source": str(source)},
            )
    refs = select(list(reader.discover(sources)), config.episodes)
    if not refs:
        raise DataError(
            f"{', '.join(config.sources)}: no episode found",
            hint=f"is this {config.format} data? `vlatool inspect` says what it is",
            code="data.no_episodes",
        )
    limit = config.max_episodes
    return refs if limit is None or limit < 0 else refs[:limit]


def _task(config: PreprocessConfig, first: Episode) -> EpisodeTask:
    size = config.resize_images_size
    spec = SampleSpec(
        windows=WindowSpec(
            past=config.past_lowdim_steps,
            future=config.future_lowdim_steps,
            stride=config.stride,
            max_padding_left=config.max_padding_left,
            max_padding_right=config.max_padding_right,
            padding=config.padding_strategy,
        ),
        image_offsets=tuple(config.image_indices),
        image_size=None if size is None else (size[1], size[0]),
        resize_method=config.image_resizing_method,
        compat=config.compat,
    )
    sink = ShardSink(
        output=local_path(config.output),
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
        executor=make_executor(config.workers or default_workers()),
    )
    return EpisodeTask.for_dataset(
        config.format,
        _section(config),
        spec,
        sink,
        first,
        cameras=config.camera_names,
        skip_missing_cameras=config.skip_episodes_missing_cameras,
        jpeg_quality=config.jpeg_quality,
    )


def _announce(task: EpisodeTask, first: Episode, reporter: Reporter) -> None:
    reporter.note(f"cameras: {', '.join(task.cameras)}")
    reporter.note(f"action fields: {', '.join(first.action_fields) or 'none'}")
    reporter.note(f"proprioception fields: {', '.join(first.proprioception_fields) or 'none'}")


def _receipts(
    config: PreprocessConfig,
    task: EpisodeTask,
    refs: Sequence[EpisodeRef],
    reporter: Reporter,
    collected: _Collected,
) -> Iterator[Receipt]:
    """Receipts of the good episodes in order; failures and warnings are collected."""
    with reporter.progress("episodes", len(refs), "episode") as bar:
        samples = 0
        for outcome in task.sink.executor.map(task, refs):
            if outcome.error is not None:
                _fail(config, outcome.item, outcome.error, reporter, collected)
            elif outcome.value is not None:
                samples += len(outcome.value.ranges)
                if not outcome.value.ranges:
                    collected.empty.append(outcome.item.id)
                _warn(outcome.value, reporter, collected)
                yield outcome.value
            bar.advance(samples=samples, failed=len(collected.failures))
    if len(collected.failures) == len(refs):
        raise DataError(
            f"every episode failed; the first: {collected.failures[0]['message']}",
            hint=str(collected.failures[0]["hint"]),
            code="data.all_failed",
            details={"failures": collected.failures},
        )


def _fail(
    config: PreprocessConfig,
    ref: EpisodeRef,
    error: VlatoolError,
    reporter: Reporter,
    collected: _Collected,
) -> None:
    if config.on_error == "stop" or not isinstance(error, DataError):
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
    reporter.warn("episode_failed", f"{ref.id}: {error.message}")
    if config.max_failures is not None and len(collected.failures) > config.max_failures:
        raise DataError(
            f"{len(collected.failures)} episodes failed, more than --max-failures allows",
            hint=error.message,
            code="data.too_many_failures",
            details={"failures": collected.failures},
        )


def _warn(receipt: Receipt, reporter: Reporter, collected: _Collected) -> None:
    """Tells each kind of warning once and counts the rest."""
    for code, message in receipt.warnings:
        if code not in collected.warnings:
            reporter.warn(code, message)
        collected.warnings[code] = collected.warnings.get(code, 0) + 1


def _record(config: PreprocessConfig, refs: Sequence[EpisodeRef]) -> OutputRecord:
    options = config.model_dump(mode="json", exclude=set(config.no_effect_on_output))
    sizes = {ref.id: [_bytes_below(path) for path in (ref.path, *ref.files)] for ref in refs}
    digest = hashlib.blake2b(json.dumps(sizes).encode(), digest_size=8).hexdigest()
    return OutputRecord("preprocess", options, {"episodes": len(refs), "fingerprint": digest})


def _bytes_below(path: Path) -> int:
    """Size of an episode's files: tells whether the input is still the same."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _data_options(config: PreprocessConfig, task: EpisodeTask, first: Episode) -> dict[str, Any]:
    """preprocessing_config.yaml: what shaped the data and what training needs to know of them."""
    section = config.source.model_dump(mode="json")
    own = config.model_dump(
        mode="json", exclude={*config.no_effect_on_output, "source", "format", "episodes"}
    )
    return {
        **section,
        **own,
        "type": config.format,
        "source_episodes": [Path(source).name for source in config.sources],
        "image_resizing_method": config.image_resizing_method.upper(),
        "camera_names": list(task.cameras),
        "action_fields": list(first.action_fields),
        "proprioception_fields": list(first.proprioception_fields),
        "fps": first.fps,
        "output_dir": None,
    }


def _result(
    config: PreprocessConfig,
    task: EpisodeTask,
    summary: ShardsSummary,
    collected: _Collected,
    episodes: int,
) -> PreprocessResult:
    return PreprocessResult(
        output=config.output,
        episodes=episodes - len(collected.failures) - len(collected.empty),
        empty_episodes=tuple(collected.empty),
        frames=summary.frames,
        samples=summary.samples,
        shards=summary.shards,
        bytes=summary.bytes,
        cameras=task.cameras,
        action_fields=task.action_fields,
        proprioception_fields=task.proprioception_fields,
        dropped=summary.dropped,
        failures=tuple(collected.failures),
        warnings=tuple(f"{code}: {count} episodes" for code, count in collected.warnings.items()),
    )


def _planned(
    config: PreprocessConfig, task: EpisodeTask, refs: Sequence[EpisodeRef], first: Episode
) -> PreprocessResult:
    """What a run would do, estimated from the first episode."""
    per_episode = len(make_windows(first.num_frames, task.spec.windows).anchors)
    samples = per_episode * len(refs)
    return PreprocessResult(
        output=config.output,
        episodes=len(refs),
        frames=first.num_frames * len(refs),
        samples=samples,
        shards=-(-samples // config.samples_per_shard),
        bytes=0,
        cameras=kept_cameras(first, task.cameras),
        action_fields=first.action_fields,
        proprioception_fields=first.proprioception_fields,
        dropped={},
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
        "once repaired, run again with --overwrite",
        code="partial.episodes_failed",
        details={"failures": list(result.failures)},
    )
    problem.result = result
    raise problem
