"""Merged statistics of several data sets, for training on all of them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from vlatool.artifacts.shards.format import MANIFEST_NAME, ShardFolder
from vlatool.artifacts.stats.format import (
    Statistics,
    StatsPart,
    compact,
    digests_path,
    merge_parts,
    read_mergeable,
    read_stats,
    without_digests,
    write_stats,
    write_with_digests,
)
from vlatool.config.base import ConfigModel, execution_field, required_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import DRY_RUN_HELP
from vlatool.jobs.downloads import check_downloaded
from vlatool.jobs.files import FOLDER
from vlatool.results import OPTIONAL, Result, outcome
from vlatool.storage.atomic import remove_file, remove_partials_of
from vlatool.storage.uri import location, pinned


class StatsMergeConfig(ConfigModel):
    """Options of `vlatool stats merge`."""

    sources: list[str] = required_field([], "Folders of training data, or stats.json files.")
    weights: list[float] | None = Field(
        default=None,
        description="Weight of each data set in the training mixture; null: every row counts once.",
    )
    output: str | None = Field(
        default=None, description="File for the merged statistics; null: print them."
    )
    compact: bool = Field(
        default=False, description="Do not write the t-digests, which only a further merge needs."
    )
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
    statistics: Statistics | None = field(metadata=OPTIONAL)

    def lines(self) -> list[str]:
        if self.status == "printed":
            return [json.dumps(self.statistics, allow_nan=False)]
        fields, sources = counted(self.fields, "field"), counted(len(self.sources), "data set")
        summary = f"{fields} of {sources}, windows of {counted(self.steps, 'step')}"
        line = f"would print {summary}; nothing was written"
        if self.output is not None:
            line = outcome(self.output, self.status, summary, f"would describe {summary}")
        return [
            line,
            *(f"left out {name}: {reason}" for name, reason in self.left_out.items()),
        ]


def stats_merge(config: StatsMergeConfig, *, reporter: Reporter = NULL) -> StatsMergeResult:
    """Merges statistics; windows of different lengths are aligned at their anchors.

    Raises:
        UsageError: There are fewer than two sources, or the weights do not match them.
        DataError: Statistics are missing or cannot be merged.
    """
    if len(config.sources) < 2:
        raise UsageError(
            "stats merge requires at least two data sets",
            hint="run vlatool stats merge A B --output merged.json",
            code="usage.missing_key",
        )
    weights = _weights(config)
    parts = [_part(source, weight) for source, weight in zip(config.sources, weights, strict=True)]
    merged = merge_parts(parts)
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


def _write(target: Path, statistics: Statistics, config: StatsMergeConfig) -> None:
    for path in (target, digests_path(target)):
        remove_partials_of(path)
    if config.compact or config.weights is not None:
        remove_file(digests_path(target))
        write_stats(target, compact(statistics) if config.compact else without_digests(statistics))
    else:
        write_with_digests(target, statistics)


def _check_target_free(target: Path, sources: Sequence[str]) -> None:
    """Checks that the target does not exist or holds earlier merged statistics."""
    if not target.exists() and not digests_path(target).exists():
        return
    inputs = {_stats_file(location(source)).resolve() for source in sources}
    is_part = any((target.parent / name).exists() for name in (MANIFEST_NAME, FOLDER))
    if target.resolve() not in inputs and not is_part:
        with suppress(DataError):
            entries = read_stats(target).values()
            if entries and all("mean_per_timestep" in entry for entry in entries):
                return
    raise UsageError(
        f"{target}: exists and is not the output of an earlier merge",
        hint="choose another --output",
        code="usage.output_exists",
    )


def _weights(config: StatsMergeConfig) -> list[float | None]:
    if config.weights is None:
        return [None] * len(config.sources)
    if len(config.weights) != len(config.sources) or min(config.weights) <= 0:
        values = ",".join(f"{weight:g}" for weight in config.weights)
        raise UsageError(
            f"--weights {values} does not fit {len(config.sources)} data sets",
            hint="give one positive number per data set, such as --weights 1,3",
            code="usage.bad_weights",
        )
    return list(config.weights)


def _part(source: str, weight: float | None) -> StatsPart:
    data = pinned(source)
    check_downloaded(data)
    path = _stats_file(data)
    folder = ShardFolder(path.parent / MANIFEST_NAME)
    past = folder.options().get("past_lowdim_steps") if folder.options_file.is_file() else None
    return StatsPart(read_mergeable(path), past if isinstance(past, int) else None, weight)


def _stats_file(path: Path) -> Path:
    """Path of the statistics of training data, of a folder with only statistics, or of a file."""
    data = ShardFolder.find(path) or ShardFolder(path / MANIFEST_NAME)
    for candidate in (data.statistics_file, path):
        if candidate.is_file():
            return candidate
    raise DataError.at(
        path,
        "contains no statistics",
        hint="give a folder that `vlatool preprocess` wrote, or a stats.json file",
        code="data.no_statistics",
    )
