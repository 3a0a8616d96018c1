"""Pages and contact sheets of evaluations: figures beside baselines, curves, images, videos."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlatool.episode import Array, UInt8Array
from vlatool.events import counted
from vlatool.formats.field_summary import unit
from vlatool.pages import layout
from vlatool.pages.charts import Axis
from vlatool.pages.images import (
    MAX_VIDEO_BYTES,
    FrameView,
    figure,
    frame_figure,
    strip,
    thumbnail,
    video,
)
from vlatool.pages.plots import Curve, chart_grid, chart_screens, curve_charts
from vlatool.pages.text import number_text
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


def command_section(command: str) -> layout.Section:
    return layout.Section("Command", layout.text_block(command))


def action_charts(curves: Mapping[str, tuple[Array, Array]], seconds: Array) -> str:
    """Chart per dimension of recorded [F] and predicted [F] actions at ascending times [F]."""
    first = float(seconds[0])
    last = float(seconds[-1])
    axis = Axis(first, last if last > first else first + 1.0)
    dots = len(seconds) <= _MAX_DOTS
    return chart_screens(
        curve_charts(
            _with_unit(name),
            [Curve("recorded", seconds, recorded), Curve("predicted", seconds, predicted)],
            axis,
            dots=dots,
        )
        for name, (recorded, predicted) in curves.items()
    )


def _with_unit(dimension: str) -> str:
    """Label of a dimension with the unit of its field, if that is known."""
    known = unit(dimension.partition(": ")[0].partition("[")[0])
    return f"{dimension} [{known}]" if known else dimension


def error_sections(
    overall: Mapping[str, float | None],
    by_step: Mapping[str, Sequence[float | None]],
    fields: Mapping[str, Mapping[str, Any]],
    samples: int,
) -> list[layout.Section]:
    """Errors of an open-loop evaluation beside those of the baselines."""
    names = [name for name in _BASELINES if name in overall]
    shown = {_BASELINES[name]: number_text(overall[name]) for name in names}
    curves = [
        Curve(
            _BASELINES[name],
            np.arange(1, len(by_step[name]) + 1),
            np.array([np.nan if value is None else value for value in by_step[name]]),
        )
        for name in names
    ]
    steps = max(len(curve.steps) for curve in curves)
    axis = Axis(0.5, steps + 0.5, "step of a chunk", whole=True)
    charts = chart_grid(curve_charts("error, in standard deviations", curves, axis, dots=True))
    header = ("field", *(_BASELINES[name] for name in names), "better than mean")
    rows: list[Sequence[object]] = []
    details = ""
    for field, metrics in fields.items():
        varying = metrics["moving_dimensions"]
        means = [number_text(metrics[n]["mae"]) if n in metrics else "-" for n in names]
        better = f"{metrics['dimensions_better_than_mean']} of {varying}" if varying else "constant"
        rows.append((layout.label_with_unit(field, unit(field)), *means, better))
        details += layout.heading(field, _dimension_table(metrics, names))
    numbers = range(1, len(names) + 2)
    every = layout.details("mean absolute error of each dimension", details)
    text = (
        "<p class=quiet>Errors in standard deviations of the training data; the baselines are the "
    )
    text += "mean action and the last action before the chunk.</p>"
    return [
        layout.Section("Errors", layout.tiles({**shown, "chunks": samples}) + text + charts),
        layout.Section("Fields", layout.table(header, rows, [*numbers]) + every),
    ]


def _dimension_table(metrics: Mapping[str, Any], predictors: Sequence[str]) -> str:
    names = [name for name in predictors if name in metrics]
    columns = [map(number_text, metrics[name]["mae_per_dimension"]) for name in names]
    constant = {*metrics["constant_dimensions"]}
    marks = ("constant" if index in constant else "" for index in range(len(metrics["names"])))
    header = ("dimension", *(_BASELINES[name] for name in names), "")
    rows = zip(metrics["names"], *columns, marks, strict=True)
    return layout.table(header, rows, [*range(1, len(names) + 1)])


def image_strips(cameras: Mapping[str, Sequence[tuple[str, UInt8Array]]]) -> str:
    """Row of images uint8 [H, W, 3] per camera, each with its caption."""
    return "".join(
        strip(
            layout.escape(camera),
            (
                frame_figure(FrameView(Image.fromarray(image)), f"{camera}, {text}", text)
                for text, image in images
            ),
            size="tight" if len(images) > 1 else "",
        )
        for camera, images in cameras.items()
    )


def saved_image(path: Path, description: str) -> str:
    """A contact sheet in its own size."""
    with Image.open(path) as image:
        drawn = thumbnail(image.convert("RGB"), description, largest=max(image.size))
    return f'<div class="sheet">{drawn}</div>'


def videos(folder: Path, captions: Mapping[str, str]) -> str:
    """Videos by their paths below the folder of the page: embedded up to 50 MB in all."""
    size = sum((folder / name).stat().st_size for name in captions)
    figures = [
        video((folder / name).read_bytes() if size <= MAX_VIDEO_BYTES else name, caption)
        for name, caption in captions.items()
    ]
    return strip("", figures, size="wide")


def rate_table(rows: Iterable[tuple[str, float, str]]) -> str:
    """Rates from 0 to 1 with a label and a remark, as numbers and bars."""
    cells = [
        (
            label,
            f"{100 * rate:.0f} %",
            layout.Html(f'<div class="rate"><i style="width:{100 * rate:.0f}%"></i></div>'),
            remark,
        )
        for label, rate, remark in rows
    ]
    return layout.table((), cells, numbers=(1,))


def counts_rows(
    report: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, float, str]]:
    """Rows of `rate_table` for success reports: of all episodes, and of groups if several."""
    named = {"all": report, **(groups if len(groups) > 1 else {})}
    return [
        (name or "(no instruction)", each["success_rate"], counts_text(each))
        for name, each in named.items()
    ]


def counts_text(counts: Mapping[str, Any]) -> str:
    low, high = counts["confidence_95"]
    share = f"{counts['successes']} of {counts['episodes']}"
    return f"{share}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"


def rollout_sections(
    report: Mapping[str, Any], rows: "Sequence[SheetRow]", clips: str
) -> list[layout.Section]:
    """Sections of a report of rollouts: rates, images of episodes, videos, all starts."""
    groups = report.get("per_task") or report["per_instruction"]
    shown = sorted(rows, key=lambda row: row.is_good)
    strips = "".join(
        strip(
            f"{layout.escape(row.label)} <b>{layout.escape(row.verdict)}</b>",
            [
                figure(thumbnail(Image.fromarray(frame), row.label, largest=_FRAME_PX), "")
                for frame in row.frames
            ],
            size="tight",
        )
        for row in shown
    )
    tiles = {"episodes": report["episodes"], "errors": report["errors"] or ""}
    tiles |= {"steps on average": number_text(report["mean_steps"])}
    tiles |= {"greatest reward on average": number_text(report["mean_max_reward"])}
    names = ("task", "seed", "instruction", "success", "steps", "max_reward", "error")
    present = [
        name for name in names if any(row.get(name) not in ("", None) for row in report["rollouts"])
    ]
    starts = [[_start_text(row.get(name)) for name in present] for row in report["rollouts"]]
    table = layout.table(present, starts)
    return [
        layout.Section("Success", layout.tiles(tiles) + rate_table(counts_rows(report, groups))),
        layout.Section("Videos", clips),
        layout.Section("Episodes, failures first", strips),
        layout.Section("Starts", layout.details(counted(len(starts), "start"), table)),
    ]


def _start_text(value: object) -> str:
    return (
        {True: "yes", False: "no", None: ""}[value]
        if isinstance(value, bool | None)
        else str(value)
    )


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
