"""Computes the statistics of training shards that have none, and merges the statistics of data
sets.

Legend of shapes: N samples, T steps, C channels.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlatool.config.base import ConfigModel, check_required, execution_field, option, required_field
from vlatool.datasets.lbm.check_samples import numeric_fields
from vlatool.datasets.lbm.layout import MANIFEST_NAME, ShardFolder, ShardInfo, check_shards
from vlatool.datasets.stats import layout as stats_layout
from vlatool.datasets.stats.layout import compact
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import DRY_RUN_HELP, make_executor
from vlatool.jobs.files import FOLDER, read_file_list
from vlatool.jobs.job import digest_of, input_state
from vlatool.jobs.ownership import check_downloaded
from vlatool.media.tar import OpenShard, open_shard
from vlatool.media.tar_sample import MASKS
from vlatool.report.text import few_text
from vlatool.results import OPTIONAL, UNLISTED, Result, outcome
from vlatool.storage.atomic import remove_file, remove_partials_of
from vlatool.storage.tree import sha256_of
from vlatool.storage.uri import is_remote, location, pinned
from vlatool.transforms.statistics import (
    StatisticsAccumulator,
    WindowStatistics,
    field_entries,
    from_arrays,
    to_arrays,
    window_statistics,
)

_SAMPLES_AT_ONCE = 128


class StatsComputeConfig(ConfigModel):
    """Options of `vlatool stats compute`."""

    data: str = required_field("", "Folder or manifest of training shards.")
    output: str | None = option(
        None, "File for the statistics; null: stats.json next to the manifest."
    )
    workers: int | None = option(None, "Number of processes; null: one per processor.", ge=1)
    overwrite: bool = option(False, "Replace an existing file.")
    dry_run: bool = option(False, "Report the plan and write nothing.")


@dataclass(frozen=True)
class StatsComputeResult(Result):
    """Computed statistics."""

    data: str
    output: str
    samples: int
    shards: int
    steps: int
    fields: Mapping[str, int]  # each field and its number of dimensions
    status: str
    next: str = field(metadata=UNLISTED)

    def lines(self) -> list[str]:
        fields = counted(len(self.fields), "field")
        samples = counted(self.samples, "sample")
        content = f"{fields} of {samples}, windows of {counted(self.steps, 'step')}"
        lines = [outcome(self.output, self.status, content, f"would describe {content}")]
        if self.status != "written":
            return lines
        names = few_text([f"{name} ({width})" for name, width in self.fields.items()])
        return [*lines, f"fields: {names}"]


def stats_compute(config: StatsComputeConfig, *, reporter: Reporter = NULL) -> StatsComputeResult:
    """Computes the statistics of every numeric field; any number of workers gives the same bytes.

    An interrupted run is repeated by the same call.

    Raises:
        UsageError: The file exists, was computed from other shards, or belongs to an output that
            lists it.
        DataError: A shard or sample is missing or broken, or its fields differ from the first one.
    """
    check_required(config, "vlatool stats compute DIR")
    folder = ShardFolder.open(pinned(config.data))
    target = folder.statistics_file if config.output is None else location(config.output)
    _check_is_free(folder, target)
    shards = [shard for shard in folder.shards() if shard.size]
    if not is_remote(folder.manifest):
        check_shards(folder.manifest, shards)
    # Digest of names, sizes and sample counts of shards; the same for a copy of them.
    listed = [(shard.location.name, shard.size) for shard in shards]
    inputs = digest_of([listed, input_state([shard.location for shard in shards]).sizes])
    status = "planned" if config.dry_run else "written"
    if not config.overwrite and _is_complete(target, inputs, shards, config):
        status = "already complete"
    schema = _first_fields(folder, shards)
    following = ["vlatool", "train", "--preset", "policy-tiny", "--data", config.data]
    if config.output:
        following += ["--data.dataset_statistics", config.output]
    following += ["--output", f"runs/{location(config.data).name}"]
    result = StatsComputeResult(
        data=config.data,
        output=str(target),
        samples=sum(shard.size for shard in shards),
        shards=len(shards),
        steps=schema.steps,
        fields=schema.widths,
        status=status,
        next=shlex.join(following),
    )
    if status == "written":
        total = _total(shards, schema, config.workers, reporter)
        entries = dict(field_entries(total, schema.widths))
        stats_layout.write_recorded(target, entries, inputs, _contents(shards))
    return result


def _contents(shards: Sequence[ShardInfo]) -> str:
    """Digest of the contents of local shards; empty for remote shards, which are not read twice."""
    paths = [shard.location for shard in shards]
    if any(map(is_remote, paths)):
        return ""
    with ThreadPoolExecutor() as pool:
        return digest_of(list(pool.map(sha256_of, paths)))


def _has_changed(shards: Sequence[ShardInfo], stats: Path, contents: str) -> bool:
    """True if shards have changed since the statistics were computed; reads only newer shards."""
    if not contents or is_remote(shards[0].location):
        return False
    changed_ns = max(shard.location.stat().st_mtime_ns for shard in shards)
    return changed_ns > stats.stat().st_mtime_ns and _contents(shards) != contents


def _is_complete(
    target: Path, inputs: str, shards: Sequence[ShardInfo], config: StatsComputeConfig
) -> bool:
    """True if an earlier run has finished; False if one was interrupted or there is none."""
    record = stats_layout.read_stats_record(target)
    changed = [target] if record is None else record.changed(target)
    existing = next((path for path in changed if path.exists()), None)
    if existing is not None and not config.dry_run:
        raise UsageError(
            f"{existing}: already exists",
            hint="use this file, replace it with --overwrite, or give another --output",
            code="usage.output_exists",
        )
    if record is None or changed:
        return False
    if record.inputs != inputs or _has_changed(shards, target, record.contents):
        raise UsageError(
            f"{target}: these statistics were computed from other shards",
            hint="add --overwrite to replace it, or give another --output",
            code="usage.output_differs",
        )
    return True


def _check_is_free(folder: ShardFolder, target: Path) -> None:
    """Raises a UsageError if the target is a folder or belongs to the output of the shards."""
    if target.is_dir():
        raise UsageError(
            f"{target}: is a folder",
            hint="give the name of a file, such as stats.json",
            code="usage.output_exists",
        )
    entries = read_file_list(folder.output) or ()
    if any((folder.output / entry.path).resolve() == target.resolve() for entry in entries):
        raise UsageError(
            f"{target}: belongs to the output of `vlatool preprocess`",
            hint="give another --output, and train with --data.dataset_statistics FILE",
            code="usage.output_exists",
        )


@dataclass(frozen=True)
class _Fields:
    """Number of steps T, and of dimensions C of each field; both are equal in all samples."""

    steps: int
    widths: Mapping[str, int]

    @classmethod
    def of_sample(cls, arrays: Mapping[str, Array]) -> "_Fields":
        kinds: dict[str, tuple[tuple[int, ...], str]] = {}
        steps = 0
        for name, array in arrays.items():
            if array.ndim:
                is_text = array.dtype.kind in "USO"
                kinds[name] = array.shape, "text" if is_text else array.dtype.str
                steps = max(steps, len(array))
        masks = [arrays[name] for name in MASKS if name in arrays]
        if masks:
            steps = len(masks[0])
        widths: dict[str, int] = {}
        for name in numeric_fields(kinds):
            width = int(np.prod(arrays[name].shape[1:]))
            if len(arrays[name]) == steps and width:
                widths[name] = width
        return cls(steps, widths)


def _first_fields(folder: ShardFolder, shards: Sequence[ShardInfo]) -> _Fields:
    if shards:
        with open_shard(shards[0].location) as tar:
            for key in tar.keys[:1]:
                with tar.reading(key) as sample:
                    fields = _Fields.of_sample(sample.arrays())
                if fields.widths:
                    return fields
    raise DataError.at(
        folder.manifest,
        "has no samples, or the first one has no numeric field",
        hint="`vlatool inspect` shows which fields the shards hold",
        code="data.no_samples",
    )


def _total(
    shards: Sequence[ShardInfo], schema: _Fields, workers: int | None, reporter: Reporter
) -> WindowStatistics:
    """Computes the statistics of all shards, added in the order of the manifest."""
    total = StatisticsAccumulator()
    with (
        make_executor(workers) as executor,
        reporter.progress("statistics", len(shards), "shards") as bar,
    ):
        for outcome in executor.map(_ShardStatistics(schema), shards):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            total.add(from_arrays(outcome.value))
            bar.advance(1)
    statistics = total.total()
    assert statistics is not None, "there is a shard"
    return statistics


@dataclass(frozen=True)
class _ShardStatistics:
    """Picklable function that computes the statistics of one shard as arrays."""

    schema: _Fields

    def __call__(self, shard: ShardInfo) -> dict[str, Array]:
        total = StatisticsAccumulator()
        with open_shard(shard.location) as tar:
            if len(tar.keys) != shard.size or tar.damage:
                problem = tar.damage or f"has {counted(len(tar.keys), 'sample')}"
                raise DataError.at(
                    shard.location,
                    f"{problem}, but the manifest says {counted(shard.size, 'sample')}",
                    hint="copy the shard and its manifest again",
                    code="data.mismatch",
                )
            for start in range(0, len(tar.keys), _SAMPLES_AT_ONCE):
                samples = list(self._samples(tar, tar.keys[start : start + _SAMPLES_AT_ONCE]))
                fields: list[Array] = []
                for name in self.schema.widths:
                    fields.append(np.stack([arrays[name] for arrays, _ in samples]))
                total.add(window_statistics(fields, np.stack([valid for _, valid in samples])))
        statistics = total.total()
        assert statistics is not None, "shards without samples are left out"
        return to_arrays(statistics)

    def _samples(
        self, tar: OpenShard, keys: Sequence[str]
    ) -> Iterator[tuple[Mapping[str, Array], Array]]:
        """Yields the fields [T, C] of each sample and a mask, bool [T], of its unpadded steps."""
        for key in keys:
            with tar.reading(key) as sample:
                present = sample.array_headers()
                masks = [name for name in MASKS if name in present]
                arrays = sample.arrays([*self.schema.widths, *masks])
            steps = self.schema.steps
            widths = self.schema.widths
            for name, array in arrays.items():
                shape = (steps,) if name in MASKS else (steps, widths[name])
                if array.shape[:1] != shape[:1] or array.size != np.prod(shape):
                    raise DataError.at(
                        tar.path,
                        f"sample {key}: {name!r} has the shape {list(array.shape)}, "
                        f"but {list(shape)} in the first sample",
                        hint="the shards belong to different data: copy them again",
                        code="data.mismatch",
                        sample=key,
                        field=name,
                    )
            masks = [arrays[name].astype(bool) for name in MASKS if name in arrays]
            yield arrays, np.logical_or.reduce(masks) if masks else np.ones(steps, bool)


class StatsMergeConfig(ConfigModel):
    """Options of `vlatool stats merge`."""

    sources: list[str] = required_field([], "Folders of training data, or stats.json files.")
    weights: list[float] | None = option(
        None, "Weight of each data set in the training mixture; null: every row counts once."
    )
    output: str | None = option(None, "File for the merged statistics; null: print them.")
    compact: bool = option(False, "Leave out the t-digests, which only a later merge needs.")
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)


@dataclass(frozen=True)
class StatsMergeResult(Result):
    """Merged statistics and their sources."""

    sources: tuple[str, ...]
    output: str | None
    fields: int
    steps: int
    left_out: Mapping[str, str]  # map from field to reason
    status: str  # `written`, `printed` or `planned`
    # The statistics; None if they were not printed.
    statistics: stats_layout.Statistics | None = field(metadata=OPTIONAL)

    def lines(self) -> list[str]:
        if self.status == "printed":
            return [json.dumps(self.statistics, allow_nan=False)]
        fields = counted(self.fields, "field")
        sources = counted(len(self.sources), "data set")
        summary = f"{fields} of {sources}, windows of {counted(self.steps, 'step')}"
        lines = [f"would print {summary}; nothing was written"]
        if self.output is not None:
            lines = [outcome(self.output, self.status, summary, f"would describe {summary}")]
        for name, reason in self.left_out.items():
            lines.append(f"left out {name}: {reason}")
        return lines


def stats_merge(config: StatsMergeConfig, *, reporter: Reporter = NULL) -> StatsMergeResult:
    """Merges statistics; windows of different lengths are aligned at their anchors.

    Raises:
        UsageError: There are fewer than two sources, or the weights do not match them.
        DataError: Statistics are missing or cannot be merged.
    """
    if len(config.sources) < 2:
        raise UsageError(
            "stats merge needs at least two data sets",
            hint="run vlatool stats merge A B --output merged.json",
            code="usage.missing_key",
        )
    weights = _weights(config)
    parts = [_part(source, weight) for source, weight in zip(config.sources, weights, strict=True)]
    merged = stats_layout.merge_parts(parts)
    for name, reason in merged.left_out.items():
        reporter.warn("field_left_out", f"field {name!r} is left out: {reason}")
    statistics = merged.statistics
    status = "planned" if config.dry_run else "printed"
    if config.output is not None:
        target = location(config.output)
        _check_target_free(target, config.sources)
        if not config.dry_run:
            _write(target, statistics, config)
            status = "written"
    return StatsMergeResult(
        sources=tuple(config.sources),
        output=config.output,
        fields=len(statistics),
        steps=merged.steps,
        left_out=merged.left_out,
        status=status,
        statistics=statistics if status == "printed" else None,
    )


def _write(target: Path, statistics: stats_layout.Statistics, config: StatsMergeConfig) -> None:
    for path in (target, stats_layout.digests_path(target)):
        remove_partials_of(path)
    if config.compact or config.weights is not None:
        remove_file(stats_layout.digests_path(target))
        stats_layout.write_stats(
            target,
            compact(statistics) if config.compact else stats_layout.without_digests(statistics),
        )
    else:
        stats_layout.write_with_digests(target, statistics)


def _check_target_free(target: Path, sources: Sequence[str]) -> None:
    """Checks that the target does not exist or holds earlier merged statistics."""
    if not target.exists() and not stats_layout.digests_path(target).exists():
        return
    inputs = {_stats_file(location(source)).resolve() for source in sources}
    is_part = any((target.parent / name).exists() for name in (MANIFEST_NAME, FOLDER))
    if target.resolve() not in inputs and not is_part:
        with suppress(DataError):
            entries = stats_layout.read_stats(target).values()
            if entries and all("mean_per_timestep" in entry for entry in entries):
                return
    raise UsageError(
        f"{target}: exists, and `stats merge` has not written it",
        hint="choose another --output",
        code="usage.output_exists",
    )


def _weights(config: StatsMergeConfig) -> list[float | None]:
    if config.weights is None:
        return [None] * len(config.sources)
    if len(config.weights) != len(config.sources) or min(config.weights) <= 0:
        values = ",".join(f"{weight:g}" for weight in config.weights)
        raise UsageError(
            f"--weights {values} does not fit: there are {len(config.sources)} data sets",
            hint="give one positive number per data set, such as --weights 1,3",
            code="usage.bad_value",
        )
    return list(config.weights)


def _part(source: str, weight: float | None) -> stats_layout.StatsPart:
    data = pinned(source)
    check_downloaded(data)
    path = _stats_file(data)
    folder = ShardFolder(path.parent / MANIFEST_NAME)
    past = folder.options().get("past_lowdim_steps") if folder.options_file.is_file() else None
    return stats_layout.StatsPart(
        stats_layout.read_mergeable(path), past if isinstance(past, int) else None, weight
    )


def _stats_file(path: Path) -> Path:
    """Path of the statistics of training data, of a folder with only statistics, or of a file."""
    data = ShardFolder.find(path) or ShardFolder(path / MANIFEST_NAME)
    for candidate in (data.statistics_file, path):
        if candidate.is_file():
            return candidate
    raise DataError.at(
        path,
        "holds no statistics",
        hint="give a folder that `vlatool preprocess` wrote, or a stats.json file",
        code="data.missing",
    )
