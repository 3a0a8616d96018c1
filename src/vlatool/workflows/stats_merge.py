"""Merged statistics of several data sets, for training on all of them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vlatool.artifacts.shards.format import MANIFEST_NAME, ShardFolder
from vlatool.artifacts.stats.format import (
    MergedStats,
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
from vlatool.jobs.files import FOLDER
from vlatool.jobs.ownership import check_downloaded
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
class StatsMergeResult:
    """Merged statistics and their sources; `status` is `written`, `printed` or `planned`."""

    sources: tuple[str, ...]
    output: str | None
    merged: MergedStats
    statistics: Statistics
    status: str = "written"

    def document(self) -> dict[str, Any]:
        """The result as a mapping; includes the statistics if they were not written to a file."""
        info: dict[str, Any] = {
            "sources": list(self.sources),
            "output": self.output,
            "fields": len(self.statistics),
            "steps": self.merged.steps,
            "left_out": dict(self.merged.left_out),
            "status": self.status,
        }
        return {**info, "statistics": self.statistics} if self.status == "printed" else info

    def text(self) -> str:
        """The result as text; the statistics themselves if they were not written to a file."""
        if self.status == "printed":
            return json.dumps(self.statistics, allow_nan=False)
        summary = (
            f"{counted(len(self.statistics), 'field')} of "
            f"{counted(len(self.sources), 'data set')}, "
            f"windows of {counted(self.merged.steps, 'step')}"
        )
        if self.status == "planned":
            target = f"{self.output}: would describe" if self.output else "would print"
            summary = f"{target} {summary}; nothing was written"
        else:
            summary = f"{self.output}: {summary}"
        left_out = (f"left out {name}: {reason}" for name, reason in self.merged.left_out.items())
        return "\n".join([summary, *left_out])


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
    return StatsMergeResult(tuple(config.sources), config.output, merged, statistics, status)


def _write(target: Path, statistics: Statistics, config: StatsMergeConfig) -> None:
    for path in (target, digests_path(target)):
        remove_partials_of(path)
    if config.compact or config.weights is not None:
        remove_file(digests_path(target))
        write_stats(target, compact(statistics) if config.compact else without_digests(statistics))
    else:
        write_with_digests(target, statistics)


def _check_target_free(target: Path, sources: Sequence[str]) -> None:
    """Checks that the target does not exist or holds earlier merged statistics.

    Raises:
        UsageError: The target is an input, is in a folder of training data, or is another file.
    """
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
