"""Plots of an evaluation: action curves and contact sheets of episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from vlatool.episode import Array, UInt8Array
from vlatool.pages import layout
from vlatool.pages.charts import Axis
from vlatool.pages.plots import Curve, chart_grid, curve_charts
from vlatool.storage.atomic import open_atomic, write_text

# Curves of at most this many points show each point: the lines between them are not recorded.
_MAX_DOTS = 60
_TILE_PX = 128
_LABEL_PX = 18
_BACKGROUND = (250, 250, 248)
_INK = (40, 40, 40)
_GOOD, _BAD = (46, 125, 50), (198, 40, 40)


def save_curves(
    path: Path, title: str, curves: Mapping[str, tuple[Array, Array]], seconds: Array
) -> None:
    """Saves an HTML page with a chart per dimension.

    `curves`: map from name of a dimension to (recorded [F], predicted [F]); `seconds`: time of each
    point in the episode, ascending [F].
    """
    first, last = float(seconds[0]), float(seconds[-1])
    axis = Axis(first, last if last > first else first + 1.0)
    dots = len(seconds) <= _MAX_DOTS
    charts = "".join(
        curve_charts(
            name,
            [Curve("recorded", seconds, recorded), Curve("predicted", seconds, predicted)],
            axis,
            dots=dots,
        )
        for name, (recorded, predicted) in curves.items()
    )
    section = layout.Section("Actions", chart_grid(charts))
    write_text(path, layout.page(title, "recorded and predicted actions", [section]))


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
