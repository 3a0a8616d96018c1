"""Content of evaluation pages: figures beside baselines, curves, images, videos, contact sheets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlatool.episode import Array, UInt8Array
from vlatool.events import counted
from vlatool.recordings.field_summary import unit
from vlatool.report.charts import FieldValues, prediction_charts
from vlatool.report.facts import (
    Axis,
    Chart,
    Curve,
    Figure,
    Figures,
    Fold,
    Part,
    Section,
    Share,
    Table,
    Text,
    Tiles,
    Titled,
    Video,
    Videos,
)
from vlatool.report.page import MAX_VIDEO_BYTES
from vlatool.report.text import number_text
from vlatool.storage.atomic import open_atomic

REPORT_PAGE = "report.html"

# Curves of at most this many points show each point: the lines between them are not recorded.
_MAX_DOTS = 60
_TILE_PX = 128
_LABEL_PX = 18
_BACKGROUND = (250, 250, 248)
_INK = (40, 40, 40)
_GOOD = (46, 125, 50)
_BAD = (198, 40, 40)
_BASELINES = {"policy": "policy", "mean_action": "mean action", "copy_last": "copy last"}
_FRAME_PX = 160


def command_section(command: str) -> Section:
    return Section("Command", [Text(command, "verbatim")])


def action_charts(curves: Mapping[str, tuple[Array, Array]], seconds: Array) -> list[Part]:
    """Charts of recorded [F] and predicted [F] actions by dimension at ascending times [F]."""
    first = float(seconds[0])
    last = float(seconds[-1])
    axis = Axis(first, last if last > first else first + 1.0)
    fields: dict[str, dict[str, tuple[Array, Array]]] = {}
    for label, pair in curves.items():
        field = label.partition(": ")[0].partition("[")[0]
        name = label.removeprefix(field).removeprefix(": ").strip("[]")
        fields.setdefault(field, {})[name] = pair
    shown: list[tuple[FieldValues, Array]] = []
    for field, pairs in fields.items():
        recorded = np.stack([pair[0] for pair in pairs.values()], axis=1)
        predicted = np.stack([pair[1] for pair in pairs.values()], axis=1)
        shown.append((FieldValues(field, recorded, [*pairs], unit(field)), predicted))
    return prediction_charts(axis, seconds, shown, has_dots=len(seconds) <= _MAX_DOTS)


def error_sections(
    overall: Mapping[str, float | None],
    by_step: Mapping[str, Sequence[float | None]],
    fields: Mapping[str, Mapping[str, Any]],
    samples: int,
) -> list[Section]:
    """Errors of an open-loop evaluation, beside the errors of the baselines."""
    predictors = [name for name in _BASELINES if name in overall]
    tiles: dict[str, object] = {}
    curves: list[Curve] = []
    for predictor in predictors:
        label = _BASELINES[predictor]
        tiles[label] = number_text(overall[predictor])
        errors = np.array(by_step[predictor], np.float64)  # None becomes NaN
        curves.append(Curve(label, np.arange(1, len(errors) + 1), errors))
    tiles["chunks"] = samples
    steps = max(len(curve.x) for curve in curves)
    axis = Axis(0.5, steps + 0.5, "step of a chunk", whole=True)
    chart = Chart("error, in standard deviations", curves, axis, has_dots=True)
    text = "Errors in standard deviations of the training data; the baselines are the mean action "
    text += "and the last action before the chunk."
    rows: list[Sequence[object]] = []
    details: list[Part] = []
    for field, metrics in fields.items():
        row = [f"{field} [{unit(field)}]" if unit(field) else field]
        for predictor in predictors:
            row.append(number_text(metrics.get(predictor, {}).get("mae")))
        if metrics["moving_dimensions"]:
            better = metrics["dimensions_better_than_mean"]
            row.append(f"{better} of {metrics['moving_dimensions']}")
        else:
            row.append("constant")
        rows.append(row)
        details.append(Titled(field, [_dimension_table(metrics, predictors)]))
    header = ["field", *(_BASELINES[predictor] for predictor in predictors), "better than mean"]
    by_dimension = Fold("mean absolute error of each dimension", details)
    return [
        Section("Errors", [Tiles(tiles), Text(text, "quiet"), chart]),
        Section("Fields", [Table(header, rows), by_dimension]),
    ]


def _dimension_table(metrics: Mapping[str, Any], predictors: Sequence[str]) -> Table:
    names = [name for name in predictors if name in metrics]
    constant = {*metrics["constant_dimensions"]}
    rows: list[tuple[object, ...]] = []
    for index, dimension in enumerate(metrics["names"]):
        errors = [number_text(metrics[name]["mae_per_dimension"][index]) for name in names]
        rows.append((dimension, *errors, "constant" if index in constant else ""))
    return Table(("dimension", *(_BASELINES[name] for name in names), ""), rows)


def image_strips(cameras: Mapping[str, Sequence[tuple[str, UInt8Array]]]) -> list[Part]:
    """Row of images uint8 [H, W, 3] per camera, each with its caption."""
    strips: list[Part] = []
    for camera, images in cameras.items():
        figures: list[Figure] = []
        for text, image in images:
            figures.append(Figure(Image.fromarray(image), text, f"{camera}, {text}"))
        strips.append(Figures(figures, camera, size="tight" if len(images) > 1 else ""))
    return strips


def saved_image(path: Path, description: str) -> Figures:
    """A contact sheet in its own size."""
    with Image.open(path) as image:
        largest = max(image.size)
        shown = Figure(image.convert("RGB"), "", description, largest=largest)
    return Figures([shown], size="sheet")


def videos(folder: Path, captions: Mapping[str, str]) -> Videos:
    """Videos by their paths below the folder of the page: embedded up to 50 MB in all."""
    size = sum((folder / name).stat().st_size for name in captions)
    clips: list[Video] = []
    for name, caption in captions.items():
        source = (folder / name).read_bytes() if size <= MAX_VIDEO_BYTES else name
        clips.append(Video(source, caption))
    return Videos(clips)


def rate_table(rows: Iterable[tuple[str, float, str]]) -> Table:
    """Table of rates from 0 to 1, each with a label and a remark."""
    return Table((), [(label, Share(rate), remark) for label, rate, remark in rows])


def counts_rows(
    report: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, float, str]]:
    """Rows of `rate_table` for a success report: all episodes, then each group if there are
    several.
    """
    rows = [("all", report["success_rate"], counts_text(report))]
    if len(groups) > 1:
        for name, counts in groups.items():
            label = name or "(no instruction)"
            rows.append((label, counts["success_rate"], counts_text(counts)))
    return rows


def counts_text(counts: Mapping[str, Any]) -> str:
    low, high = counts["confidence_95"]
    share = f"{counts['successes']} of {counts['episodes']}"
    return f"{share}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"


def rollout_sections(
    report: Mapping[str, Any], rows: "Sequence[SheetRow]", clips: Videos
) -> list[Section]:
    """Sections of a report of rollouts: rates, images of episodes, videos, all starts."""
    groups = report.get("per_task") or report["per_instruction"]
    strips: list[Part] = []
    for row in sorted(rows, key=lambda row: row.is_good):
        figures: list[Figure] = []
        for frame in row.frames:
            figures.append(Figure(Image.fromarray(frame), "", row.label, largest=_FRAME_PX))
        strips.append(Figures(figures, row.label, row.verdict, "tight"))
    tiles = {
        "episodes": report["episodes"],
        "errors": report["errors"] or "",
        "steps on average": number_text(report["mean_steps"]),
        "highest reward on average": number_text(report["mean_max_reward"]),
    }
    rollouts = report["rollouts"]
    columns: list[str] = []
    for name in ("task", "seed", "instruction", "success", "steps", "max_reward", "error"):
        if any(rollout.get(name) not in ("", None) for rollout in rollouts):
            columns.append(name)
    starts: list[Sequence[object]] = []
    for rollout in rollouts:
        starts.append([_cell(rollout.get(name)) for name in columns])
    table = Table(columns, starts)
    return [
        Section("Success", [Tiles(tiles), rate_table(counts_rows(report, groups))]),
        Section("Videos", [clips]),
        Section("Episodes, failures first", strips),
        Section("Starts", [Fold(counted(len(starts), "start"), [table])]),
    ]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@dataclass(frozen=True)
class SheetRow:
    """Row of a contact sheet: label, verdict and images uint8 [H, W, 3] of one episode."""

    label: str
    verdict: str
    is_good: bool
    frames: Sequence[UInt8Array]


def save_contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Saves a PNG with one row per episode; without rows, writes no file."""
    if not rows:
        return
    columns = max(len(row.frames) for row in rows)
    height = _TILE_PX + _LABEL_PX
    sheet = Image.new("RGB", (columns * (_TILE_PX + 4) + 4, len(rows) * height + 4), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height + 4
        draw.text((6, top), row.label, fill=_INK)
        corner = (sheet.width - 8 - draw.textlength(row.verdict), top)
        draw.text(corner, row.verdict, fill=_GOOD if row.is_good else _BAD)
        for column, frame in enumerate(row.frames):
            tile = Image.fromarray(frame).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
            sheet.paste(tile, (column * (_TILE_PX + 4) + 4, top + _LABEL_PX - 4))
    with open_atomic(path) as file:
        sheet.save(file, format="PNG", optimize=True)
