"""List of training runs, and the comparison of two of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from vlatool.checkpoints.layout import VALIDATION_LOSSES, is_run
from vlatool.checkpoints.page import changed_text, overview, run_page, step_text
from vlatool.checkpoints.summary import RunSummary, find_runs, read_summary
from vlatool.config.base import ConfigModel, option
from vlatool.config.coerce import value_text
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.inspection import check_target
from vlatool.jobs.ownership import differing_keys, require_input
from vlatool.report.charts import metric_charts
from vlatool.report.facts import Chart, Code, Section, Table, Text, Titled
from vlatool.report.page import page
from vlatool.report.text import number_text, spark_text, text_table
from vlatool.results import OPTIONAL, UNLISTED, Result
from vlatool.storage.atomic import remove_partials_of, write_text
from vlatool.storage.uri import location

# Command that writes the pages, as they name it.
GENERATOR = "vlatool runs"
_PAIR = 2
_VALUE_SHOWN = 48


class RunsConfig(ConfigModel):
    """Options of `vlatool runs`."""

    location: str = option("runs", "Folder with runs, or one run; local, s3://, gs:// or hf://.")
    other: str = option("", "A second run, with which the run at `location` is compared.")
    compare: list[str] = option([], "Two runs to compare, by their names in the list: NAME,NAME.")
    html: str | None = option(
        None,
        "HTML file to write, with the curves of all runs; a page for each run is in the folder "
        "NAME_files beside it.",
    )


@dataclass(frozen=True)
class Comparison:
    runs: Sequence[str]  # their names
    summaries: tuple[RunSummary, RunSummary] = field(metadata=UNLISTED)
    # `key` of the configuration, and the `values` in each run.
    differences: Sequence[Mapping[str, Any]]
    # Metric to the last `step` that both have, and the `values` of each run there.
    metrics: Mapping[str, Mapping[str, Any]]

    def section(self) -> Section:
        """The comparison as a section of a page, with the curves of both runs."""
        rows: list[tuple[object, ...]] = []
        for row in self.differences:
            values = [Code(value_text(value)) for value in row["values"]]
            rows.append((Code(row["key"]), *values))
        charts: list[Chart] = []
        for name in self.metrics:
            charts += metric_charts(name, [run.curves[name] for run in self.summaries])
        equal = Text("" if rows else "The configurations are equal.")
        return Section(
            "Comparison", [Table(("key", *self.runs), rows), equal, Titled("curves", charts)]
        )

    def blocks(self) -> list[str]:
        options: list[list[str]] = []
        for row in self.differences:
            values = [value_text(value)[:_VALUE_SHOWN] for value in row["values"]]
            options.append([row["key"], *values])
        metrics: list[list[object]] = []
        for name, row in self.metrics.items():
            curves = [spark_text(run.curves[name].y.tolist()) for run in self.summaries]
            metrics.append([name, row["step"], *map(number_text, row["values"]), *curves])
        configuration = text_table("Configuration", ("key", *self.runs), options)
        header = ("metric", "step", *self.runs, "", "")
        last_step = text_table("Metrics at the last step of both", header, metrics)
        return [
            configuration or "The configurations are equal.",
            last_step or "No metric has a step in both runs.",
        ]


@dataclass(frozen=True)
class RunList(Result):
    """Runs in a folder, and the comparison of two of them if it was requested."""

    rows_key: ClassVar[str] = "runs"

    location: str
    runs: Sequence[RunSummary]
    comparison: Comparison | None = field(default=None, metadata=OPTIONAL)
    html: str | None = field(default=None, metadata=OPTIONAL)  # page that was written

    def lines(self) -> list[str]:
        page = [] if self.html is None else [f"page: {self.html}"]
        if self.comparison is not None:
            return ["\n\n".join([*self.comparison.blocks(), *page])]
        header = ("name", "state", "step", "loss", "validation", "", "model", "changed")
        title = f"{self.location}: {counted(len(self.runs), 'run')}"
        lines = [text_table(title, header, map(_row, self.runs))]
        for run in self.runs:
            for finding in run.findings:
                lines.append(f"{run.name}: {finding['message']}")
        return [*lines, *page]


def runs(config: RunsConfig, *, reporter: Reporter = NULL) -> RunList:
    """Lists the runs in a folder, up to two levels below it, and compares two of them.

    With `other`, only the runs at these two locations are read, and compared.

    Raises:
        UsageError: `compare` does not name two runs, or comes with `other`.
        DataError: There is no run.
        StorageError: The storage fails.
    """
    target = None if config.html is None else location(config.html)
    if target is not None:
        check_target(target, GENERATOR)
    roots = _runs_at(config)
    summaries: list[RunSummary] = []
    with reporter.progress("runs", len(roots), "runs") as bar:
        for name, root in roots:
            summaries.append(read_summary(root, name))
            bar.advance()
    comparison = compared(*summaries) if config.other else _comparison(config, summaries)
    if target is not None:
        _write_pages(
            target,
            f"{config.location}, {config.other}".removesuffix(", "),
            summaries,
            comparison,
            reporter,
        )
    return RunList(config.location, summaries, comparison, config.html)


def _runs_at(config: RunsConfig) -> list[tuple[str, Path]]:
    """Names and folders of the runs to list: those in a folder, or two at given locations."""
    if config.other and config.compare:
        raise UsageError(
            "--compare names two runs of one folder, but you also give a second location",
            hint=f"vlatool runs {config.location} {config.other}",
            code="usage.conflict",
        )
    if config.other:
        pair: list[tuple[str, Path]] = []
        for text in (config.location, config.other):
            root = require_input(text)
            if not is_run(root):
                raise DataError.at(
                    root,
                    "is not a training run",
                    hint="give two folders that `vlatool train` wrote",
                    code="data.no_source",
                )
            pair.append((text.rstrip("/"), root))
        return pair
    folder = require_input(config.location)
    roots = [(_name(root, folder), root) for root in find_runs(folder)]
    if not roots:
        raise DataError(
            f"{folder}: no training run in this folder, or up to two levels below",
            hint="give the folder in which `vlatool train --output FOLDER/NAME` writes its runs",
            code="data.no_source",
            details={"path": str(folder)},
        )
    return roots


def _write_pages(
    target: Path,
    title: str,
    summaries: Sequence[RunSummary],
    comparison: Comparison | None,
    reporter: Reporter,
) -> None:
    """Writes a page for each run into the folder beside the target, then the page of all runs."""
    folder = target.parent / f"{target.stem}_files"
    files = {run.name: folder / f"{run.name}.html" for run in summaries}
    for file in files.values():
        check_target(file, GENERATOR)
    with reporter.progress("pages", len(files), "pages") as bar:
        for run in summaries:
            subtitle = f"run of {run.model_type or 'an unknown model type'}, {run.state}"
            back = quote(os.fsencode("../" * (run.name.count("/") + 1) + target.name))
            shown = page(run.name, subtitle, run_page(run, back), generator=GENERATOR)
            _write_page(files[run.name], shown)
            bar.advance()
    links = {name: quote(os.fsencode(f"{folder.name}/{name}.html")) for name in files}
    first, *others = overview(summaries, links)
    compared_section = [] if comparison is None else [comparison.section()]
    subtitle = counted(len(summaries), "run")
    sections = [first, *compared_section, *others]
    _write_page(target, page(title, subtitle, sections, generator=GENERATOR))


def _write_page(path: Path, text: str) -> None:
    remove_partials_of(path)
    write_text(path, text)


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
            code="usage.bad_value",
        )
    by_name = {summary.name: summary for summary in summaries}
    for name in names:
        if name not in by_name:
            near = get_close_matches(name, by_name, 3) or list(by_name)[:3]
            raise UsageError(
                f"--compare: there is no run {name!r} in {config.location}",
                hint=f"there are, for example, {', '.join(near)}",
                code="usage.unknown_name",
                details={"name": name},
            )
    return compared(by_name[names[0]], by_name[names[1]])


def compared(first: RunSummary, second: RunSummary) -> Comparison:
    differences = [
        {"key": key, "values": [old, new]}
        for key, old, new in differing_keys(first.config, second.config)
    ]
    metrics: dict[str, Mapping[str, Any]] = {}
    for name, curve in first.curves.items():
        if (other := second.curves.get(name)) is None:
            continue
        points = curve.finite()
        others = other.finite()
        if steps := points.keys() & others.keys():
            last = max(steps)
            metrics[name] = {"step": last, "values": [points[last], others[last]]}
    return Comparison([first.name, second.name], (first, second), differences, metrics)


def _row(run: RunSummary) -> tuple[object, ...]:
    curve = run.curves.get("loss")
    return (
        run.name,
        run.state,
        step_text(run),
        number_text(run.last("loss")),
        number_text(run.last(*VALIDATION_LOSSES)),
        "" if curve is None else spark_text(curve.y.tolist()),
        run.model_type,
        changed_text(run),
    )
