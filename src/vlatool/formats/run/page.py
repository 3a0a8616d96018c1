"""HTML pages of training runs: one of several runs, and one of each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlatool.config.coerce import DEFAULT_ORIGIN, value_text
from vlatool.config.resolve import origin_of
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.formats.media.images import open_image
from vlatool.formats.run.checkpoint import CheckpointManifest, checkpoint_step
from vlatool.formats.run.layout import IMAGES, SUCCESS, VALIDATION, VALIDATION_LOSSES
from vlatool.formats.run.summary import RunSummary
from vlatool.pages import layout
from vlatool.pages.charts import MAX_LINES
from vlatool.pages.images import figure, image_placeholder, strip, thumbnail
from vlatool.pages.layout import code
from vlatool.pages.plots import Curve, chart_screens, curve_charts
from vlatool.pages.report import Problems, branch, finding_notes
from vlatool.pages.text import number_text
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


def overview(runs: Sequence[RunSummary], links: Mapping[str, str]) -> list[layout.Section]:
    """Sections of the page of several runs: their list, and the curves of all."""
    header = ("name", "state", "step", "loss", "validation", "model", "last change (UTC)")
    rows = [
        (
            layout.Html(
                f'<a href="{layout.escape(links[run.name])}">{layout.escape(run.name)}</a>'
            ),
            run.state,
            step_text(run),
            number_text(run.last("loss")),
            number_text(run.last(*VALIDATION_LOSSES)),
            run.model_type,
            changed_text(run),
        )
        for run in runs
    ]
    notes = "".join(finding_notes(run.findings) for run in runs)
    names = _ordered({name for run in runs for name in run.curves})
    charts = [
        curve_charts(
            name,
            [
                replace(run.curves[name], color=color)
                for color, run in enumerate(runs[start : start + MAX_LINES])
                if name in run.curves
            ],
        )
        for name in names
        for start in range(0, len(runs), MAX_LINES)
    ]
    return [
        layout.Section("Runs", layout.table(header, rows, (2, 3, 4)) + notes),
        layout.Section("Curves", chart_screens(charts)),
    ]


def run_page(run: RunSummary, overview_link: str) -> list[layout.Section]:
    """Sections of the page of a run: curves, images, checkpoints, data, configuration."""
    findings = Problems(run.findings)
    typed, others = _configuration(run)
    rows: list[tuple[object, ...]] = []
    for folder in run.run.checkpoint_folders():
        try:
            manifest = CheckpointManifest.read(folder)
        except DataError as error:
            findings.append({"code": error.code, "message": error.message})
            continue
        size = sum(entry.bytes for entry in (*manifest.files.values(), *manifest.beside.values()))
        step = checkpoint_step(folder.name)
        is_best = run.best is not None and step == run.best.step
        note = "best" if is_best else "of a stop" if manifest.stopped else ""
        rows.append((step, size_text(size), ", ".join(sorted(manifest.files)), note))
    checkpoints = layout.table(("step", "size", "files", ""), rows, (0, 1))
    validation = run.last(*VALIDATION_LOSSES)
    facts = {
        "state": run.state,
        "step": step_text(run),
        "loss": number_text(run.last("loss")),
        "validation loss": "" if validation is None else number_text(validation),
        "best checkpoint": "" if run.best is None else run.best.text(),
    }
    back = f'<p><a href="{layout.escape(overview_link)}">all runs</a></p>'
    labels = {"model": run.model_type, "folder": run.run.root, "last change": changed_text(run)}
    return [
        layout.Section(
            "Overview", layout.tiles(facts) + layout.tags(labels) + finding_notes(findings) + back
        ),
        layout.Section("Differs from the presets", typed),
        layout.Section("Curves", chart_screens(_charts_of(run))),
        layout.Section("Images", _images(run)),
        layout.Section("Checkpoints", checkpoints),
        layout.Section("Data", _data(run)),
        layout.Section("Configuration", others),
    ]


def step_text(run: RunSummary) -> str:
    """Last step, and the budget of a run that is not complete."""
    step = "-" if run.step is None else str(run.step)
    is_open = run.total_steps is not None and run.state != "complete"
    return f"{step} / {run.total_steps}" if is_open else step


def changed_text(run: RunSummary) -> str:
    """Time of the last change in UTC; `-` if it is unknown."""
    return "-" if run.changed is None else f"{run.changed:%Y-%m-%d %H:%M}"


def _ordered(names: set[str]) -> list[str]:
    """Names of metrics: losses and success first, then by name."""
    shown = names - {*_COUNTERS}
    first = [name for name in _PLOTTED_FIRST if name in shown]
    return [*first, *sorted(shown - {*first})]


def _charts_of(run: RunSummary) -> list[str]:
    """Chart of each metric, with those of the validation in the chart of the training."""
    groups: dict[str, list[Curve]] = {}
    for name in _ordered({*run.curves}):
        prefix = next((start for start in (_AVERAGED, VALIDATION) if name.startswith(start)), "")
        color, word = _SERIES[prefix]
        curve = replace(run.curves[name], name=word, color=color)
        groups.setdefault(name.removeprefix(prefix), []).append(curve)
    return [
        curve_charts(name, curves if len(curves) > 1 else [replace(curves[0], name="")])
        for name, curves in groups.items()
    ]


# Parts of each image of the sheets that the built-in model types log.
_LABELS = {"reconstruction": "each: image, reconstruction, absolute difference"}


def _images(run: RunSummary) -> str:
    """The newest sheets of images by name, evenly spaced over the steps."""
    folder = run.run.root / IMAGES
    by_name: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        number, _, name = path.stem.removeprefix("step_").partition("_")
        if path.suffix == ".png" and name and number.isdecimal():
            by_name.setdefault(name, []).append((int(number), path))
    blocks: list[str] = []
    for name, sheets in by_name.items():
        chosen = [sheets[index] for index in layout.evenly_spaced(len(sheets) - 1, _SHEETS - 1)]
        figures = [_sheet(step, path, name) for step, path in [*chosen, sheets[-1]]]
        blocks.append(layout.heading(name, strip(_LABELS.get(name, ""), figures, size="wide")))
    return "".join(blocks)


def _sheet(step: int, path: Path, name: str) -> str:
    try:
        data = read_byte_range(ByteRange(path, 0, _MAX_SHEET_BYTES + 1))
        if len(data) > _MAX_SHEET_BYTES:
            raise ValueError(f"more than {_MAX_SHEET_BYTES} bytes")
        with open_image(data) as image:
            drawn = thumbnail(image.convert("RGB"), f"{name}, step {step}", largest=_LARGEST_PX)
    except (OSError, ValueError) as error:
        drawn = image_placeholder(f"{path.name}: {error}")
    return figure(drawn, f"step {step}")


def _data(run: RunSummary) -> str:
    data = branch(run.config, "data")
    named = {
        key: value
        for key, value in data.items()
        if isinstance(value, str | list)
        and value
        and key.endswith(("manifest", "shards", "folders", "samples", "statistics", "weighting"))
    }
    options = {} if run.record is None else run.record.options
    digests = {
        key: value
        for key, value in options.items()
        if str(key).startswith(("data set", "statistics")) and isinstance(value, str)
    }
    rows = [
        (key, code(value if isinstance(value, str) else value_text(value)))
        for key, value in {**named, **digests}.items()
    ]
    return layout.table((), rows)


def _configuration(run: RunSummary) -> tuple[str, str]:
    """Table of the keys that differ from the presets, and a collapsed one of all others."""
    origins = run.run.read_origins()
    typed: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    for key, value in _leaves(run.config):
        origin = origin_of(key, origins) if origins else ""
        is_typed = origin and not origin.startswith(_NOT_TYPED)
        (typed if is_typed else others).append((code(key), code(value_text(value)), origin))
    header = ("key", "value", "origin")
    rest = f"{counted(len(others), 'key')} of presets, derived or with the default"
    return layout.table(header, typed), layout.details(rest, layout.table(header, others))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of a tree."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves
