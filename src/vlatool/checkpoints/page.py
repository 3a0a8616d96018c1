"""Pages of training runs: one of several runs, and one of each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlatool.checkpoints.checkpoint import CheckpointManifest, checkpoint_step
from vlatool.checkpoints.layout import IMAGES, SUCCESS, VALIDATION, VALIDATION_LOSSES
from vlatool.checkpoints.summary import RunSummary
from vlatool.config.coerce import DEFAULT_ORIGIN, value_text
from vlatool.config.yaml_text import origin_of
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.media.images import open_image
from vlatool.report.charts import metric_charts, screens
from vlatool.report.facts import (
    Chart,
    Code,
    Curve,
    Figure,
    Figures,
    Fold,
    Link,
    Part,
    Problems,
    Section,
    Table,
    Tags,
    Tiles,
    Titled,
    branch,
    evenly_spaced,
    notes,
)
from vlatool.report.page import NUM_COLORS
from vlatool.report.text import number_text
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.tree import size_text

_AVERAGED = f"{VALIDATION}ema/"
# Color and word of the series with each prefix of metrics.
_SERIES: Mapping[str, tuple[int, str]] = {
    "": (0, "training"),
    VALIDATION: (1, "validation"),
    _AVERAGED: (2, "averaged"),
}
# Origins of keys that nobody typed.
_NOT_TYPED = ("presets/", "derived", DEFAULT_ORIGIN)
# Metrics that count progress; a curve of them says nothing.
_COUNTERS = ("samples",)
_PLOTTED_FIRST = ("loss", *VALIDATION_LOSSES, SUCCESS, "lr", "grad_norm")
_SHEETS = 4
_MAX_SHEET_BYTES = 2**26
_LARGEST_PX = 720


def overview(runs: Sequence[RunSummary], links: Mapping[str, str]) -> list[Section]:
    """Sections of the page of several runs: their list, and the curves of all."""
    header = ("name", "state", "step", "loss", "validation", "model", "last change (UTC)")
    rows: list[tuple[object, ...]] = []
    problems: list[Part] = []
    metrics: set[str] = set()
    for run in runs:
        losses = (number_text(run.last("loss")), number_text(run.last(*VALIDATION_LOSSES)))
        state = (run.state, step_text(run))
        name = Link(run.name, links[run.name])
        rows.append((name, *state, *losses, run.model_type, changed_text(run)))
        problems += notes(run.findings)
        metrics.update(run.curves)
    charts: list[Chart] = []
    for name in _ordered(metrics):
        for start in range(0, len(runs), NUM_COLORS):
            curves: list[Curve] = []
            for color, run in enumerate(runs[start : start + NUM_COLORS]):
                if name in run.curves:
                    curves.append(replace(run.curves[name], color=color))
            charts += metric_charts(name, curves)
    return [Section("Runs", [Table(header, rows), *problems]), Section("Curves", screens(charts))]


def run_page(run: RunSummary, overview_link: str) -> list[Section]:
    """Sections of the page of a run: curves, images, checkpoints, data, configuration."""
    findings = Problems(run.findings)
    checkpoints = _checkpoints(run, findings)
    typed, others = _configuration(run)
    validation = run.last(*VALIDATION_LOSSES)
    facts = {
        "state": run.state,
        "step": step_text(run),
        "loss": number_text(run.last("loss")),
        "validation loss": "" if validation is None else number_text(validation),
        "best checkpoint": "" if run.best is None else run.best.text(),
    }
    labels = {"model": run.model_type, "folder": run.run.root, "last change": changed_text(run)}
    back = Table((), [(Link("all runs", overview_link),)])
    return [
        Section("Overview", [Tiles(facts), Tags(labels), *notes(findings), back]),
        Section("Differs from the presets", [typed]),
        Section("Curves", screens(_charts_of(run))),
        Section("Images", _images(run)),
        Section("Checkpoints", [checkpoints]),
        Section("Data", [_data(run)]),
        Section("Configuration", [others]),
    ]


def _checkpoints(run: RunSummary, findings: Problems) -> Table:
    """Table of the checkpoints; those that cannot be read are added to `findings`."""
    rows: list[tuple[object, ...]] = []
    for folder in run.run.checkpoint_folders():
        try:
            manifest = CheckpointManifest.read(folder)
        except DataError as error:
            findings.append({"code": error.code, "message": error.message})
            continue
        size = 0
        for entry in (*manifest.files.values(), *manifest.beside.values()):
            size += entry.bytes
        step = checkpoint_step(folder.name)
        note = ""
        if run.best is not None and step == run.best.step:
            note = "best"
        elif manifest.stopped:
            note = "of a stop"
        rows.append((step, size_text(size), ", ".join(sorted(manifest.files)), note))
    return Table(("step", "size", "files", ""), rows)


def step_text(run: RunSummary) -> str:
    """Last step, and the budget of a run that is not complete."""
    step = "-" if run.step is None else str(run.step)
    if run.total_steps is None or run.state == "complete":
        return step
    return f"{step} / {run.total_steps}"


def changed_text(run: RunSummary) -> str:
    """Time of the last change in UTC; `-` if it is unknown."""
    return "-" if run.changed is None else f"{run.changed:%Y-%m-%d %H:%M}"


def _ordered(names: set[str]) -> list[str]:
    """Names of metrics: losses and success first, then by name."""
    shown = names - {*_COUNTERS}
    first = [name for name in _PLOTTED_FIRST if name in shown]
    return [*first, *sorted(shown - {*first})]


def _charts_of(run: RunSummary) -> list[Chart]:
    """Chart of each metric; metrics of the validation are in the chart of the training."""
    groups: dict[str, list[Curve]] = {}
    for name in _ordered({*run.curves}):
        prefix = ""
        if name.startswith(_AVERAGED):
            prefix = _AVERAGED
        elif name.startswith(VALIDATION):
            prefix = VALIDATION
        color, word = _SERIES[prefix]
        curve = replace(run.curves[name], name=word, color=color)
        groups.setdefault(name.removeprefix(prefix), []).append(curve)
    charts: list[Chart] = []
    for name, curves in groups.items():
        if len(curves) == 1:
            curves = [replace(curves[0], name="")]
        charts += metric_charts(name, curves)
    return charts


# Parts of each image of the sheets that the built-in model types log.
_LABELS = {"reconstruction": "each: image, reconstruction, absolute difference"}
# Ends of the keys of the configuration that are locations of data, or weights of them.
_DATA_KEYS = ("manifest", "shards", "folders", "samples", "statistics", "weighting")


def _images(run: RunSummary) -> list[Part]:
    """The newest sheets of images by name, evenly spaced over the steps."""
    folder = run.run.root / IMAGES
    by_name: dict[str, list[tuple[int, Path]]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            number, _, name = path.stem.removeprefix("step_").partition("_")
            if path.suffix == ".png" and name and number.isdecimal():
                by_name.setdefault(name, []).append((int(number), path))
    parts: list[Part] = []
    for name, sheets in by_name.items():
        positions = [*evenly_spaced(len(sheets) - 1, _SHEETS - 1), -1]
        figures = [_sheet(*sheets[position], name) for position in positions]
        parts.append(Titled(name, [Figures(figures, _LABELS.get(name, ""), size="wide")]))
    return parts


def _sheet(step: int, path: Path, name: str) -> Figure:
    caption = f"step {step}"
    try:
        data = read_byte_range(ByteRange(path, 0, _MAX_SHEET_BYTES + 1))
        if len(data) > _MAX_SHEET_BYTES:
            raise ValueError(f"more than {_MAX_SHEET_BYTES} bytes")
        with open_image(data) as image:
            shown = image.convert("RGB")
    except (OSError, ValueError) as error:
        return Figure(None, caption, problem=f"{path.name}: {error}")
    return Figure(shown, caption, f"{name}, {caption}", largest=_LARGEST_PX)


def _data(run: RunSummary) -> Table:
    """Locations of the data, by the configuration and the record of the run."""
    rows: list[tuple[object, ...]] = []
    for key, value in branch(run.config, "data").items():
        if not value or not key.endswith(_DATA_KEYS):
            continue
        if isinstance(value, str):
            rows.append((key, Code(value)))
        elif isinstance(value, list):
            rows.append((key, Code(value_text(value))))
    if run.record is not None:
        for key, value in run.record.options.items():
            if str(key).startswith(("data set", "statistics")) and isinstance(value, str):
                rows.append((key, Code(value)))
    return Table((), rows)


def _configuration(run: RunSummary) -> tuple[Table, Fold]:
    """Table of the keys that differ from the presets, and a collapsed one of all others."""
    origins = run.run.read_origins()
    typed: list[tuple[object, ...]] = []
    others: list[tuple[object, ...]] = []
    for key, value in _leaves(run.config):
        origin = origin_of(key, origins) if origins else ""
        row = (Code(key), Code(value_text(value)), origin)
        if origin and not origin.startswith(_NOT_TYPED):
            typed.append(row)
        else:
            others.append(row)
    header = ("key", "value", "origin")
    rest = f"{counted(len(others), 'key')} of presets, derived or with the default"
    return Table(header, typed), Fold(rest, [Table(header, others)])


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of a tree."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves
