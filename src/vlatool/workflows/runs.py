"""List of training runs, and the comparison of two of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field

from vlatool.artifacts.run.summary import VALIDATION_LOSSES, RunSummary, find_runs, read_summary
from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.config.scalars import value_text
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.differences import differing_keys
from vlatool.jobs.downloads import require_input
from vlatool.pages.text import number_text, spark_text, text_table

_PAIR = 2
_VALUE_SHOWN = 48


class RunsConfig(ConfigModel):
    """Options of `vlatool runs`."""

    location: str = required_field("", "Folder with runs, or one run; any scheme.")
    compare: list[str] = Field(
        default=[], description="Two runs to compare, by their names in the list: NAME,NAME."
    )


@dataclass(frozen=True)
class Comparison:
    """Differences between two runs.

    Attributes:
        runs: The two runs.
        differences: Dotted key of the configuration, and the value in each run.
        metrics: Metric to the last step that both have, and the value of each run there.
    """

    runs: tuple[RunSummary, RunSummary]
    differences: Sequence[tuple[str, Any, Any]]
    metrics: dict[str, tuple[int, float, float]]

    def document(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        names = [run.name for run in self.runs]
        return {
            "runs": names,
            "differences": [
                {"key": key, "values": [first, second]} for key, first, second in self.differences
            ],
            "metrics": {
                name: {"step": step, "values": [first, second]}
                for name, (step, first, second) in self.metrics.items()
            },
        }

    def blocks(self) -> list[str]:
        """The comparison as blocks of text."""
        first, second = self.runs
        options = [
            (key, *(value_text(value)[:_VALUE_SHOWN] for value in values))
            for key, *values in self.differences
        ]
        rows = [
            (
                name,
                step,
                *map(number_text, values),
                *(spark_text(run.curves[name].values.tolist()) for run in self.runs),
            )
            for name, (step, *values) in self.metrics.items()
        ]
        header = ("metric", "step", first.name, second.name, "", "")
        return [
            text_table("Configuration", ("key", first.name, second.name), options)
            or "The configurations are equal.",
            text_table("Metrics at the last step of both", header, rows)
            or "No metric has a step in both runs.",
        ]


@dataclass(frozen=True)
class RunList:
    """Runs in a folder, and the comparison of two of them if it was requested."""

    location: str
    runs: Sequence[RunSummary]
    comparison: Comparison | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per run."""
        return (run.document() for run in self.runs)

    def document(self) -> dict[str, Any]:
        """All runs, and the comparison."""
        compared = {} if self.comparison is None else {"comparison": self.comparison.document()}
        return {"location": self.location, "runs": list(self.rows()), **compared}

    def text(self) -> str:
        """The list, or the comparison."""
        if self.comparison is not None:
            return "\n\n".join(self.comparison.blocks())
        header = ("name", "state", "step", "loss", "validation", "", "model", "changed")
        table = text_table(
            f"{self.location}: {counted(len(self.runs), 'run')}", header, map(_row, self.runs)
        )
        findings = [
            f"{run.name}: {finding['message']}" for run in self.runs for finding in run.findings
        ]
        return "\n".join([table, *findings])


def runs(config: RunsConfig, *, reporter: Reporter = NULL) -> RunList:
    """Lists the runs in a folder, up to two levels below it, and compares two of them.

    Raises:
        UsageError: No location is given, or `compare` does not name two runs.
        DataError: There is no run.
        StorageError: The storage fails.
    """
    check_required(config, "vlatool runs DIR, the folder of --output of several runs")
    folder = require_input(config.location)
    roots = find_runs(folder)
    if not roots:
        raise DataError(
            f"{folder}: no training run in this folder or two levels below",
            hint="give the folder in which `vlatool train --output FOLDER/NAME` writes its runs",
            code="data.no_run",
            details={"path": str(folder)},
        )
    summaries: list[RunSummary] = []
    with reporter.progress("runs", len(roots), "runs") as bar:
        for root in roots:
            summaries.append(read_summary(root, _name(root, folder)))
            bar.advance()
    return RunList(config.location, summaries, _comparison(config, summaries))


def _name(root: Path, folder: Path) -> str:
    return root.name if root == folder else root.relative_to(folder).as_posix()


def _comparison(config: RunsConfig, summaries: Sequence[RunSummary]) -> Comparison | None:
    if not config.compare:
        return None
    names = [name.strip("/") for name in config.compare]
    if len(names) != _PAIR:
        raise UsageError(
            f"--compare takes two runs, not {len(names)}",
            hint="give the names of two runs: --compare NAME,NAME",
            code="usage.compare",
        )
    by_name = {summary.name: summary for summary in summaries}
    for name in names:
        if name not in by_name:
            near = get_close_matches(name, by_name, 3) or list(by_name)[:3]
            raise UsageError(
                f"--compare: there is no run {name!r} in {config.location}",
                hint=f"runs there are {', '.join(near)}",
                code="usage.unknown_run",
                details={"name": name},
            )
    return compared(by_name[names[0]], by_name[names[1]])


def compared(first: RunSummary, second: RunSummary) -> Comparison:
    """Comparison of two runs."""
    differences = [*differing_keys(first.config, second.config)]
    metrics: dict[str, tuple[int, float, float]] = {}
    for name, curve in first.curves.items():
        if (other := second.curves.get(name)) is None:
            continue
        points, others = curve.finite(), other.finite()
        if steps := points.keys() & others.keys():
            metrics[name] = (max(steps), points[max(steps)], others[max(steps)])
    return Comparison((first, second), differences, metrics)


def _row(run: RunSummary) -> tuple[object, ...]:
    step = "-" if run.step is None else str(run.step)
    if run.total_steps is not None and run.state != "complete":
        step += f" / {run.total_steps}"
    curve = run.curves.get("loss")
    changed = "-" if run.changed is None else f"{run.changed:%Y-%m-%d %H:%M}"
    return (
        run.name,
        run.state,
        step,
        number_text(run.last("loss")),
        number_text(run.last(*VALIDATION_LOSSES)),
        "" if curve is None else spark_text(curve.values.tolist()),
        run.model_type,
        changed,
    )
