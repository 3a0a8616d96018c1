"""Plots of an evaluation: action curves and contact sheets of episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from vlatool.episode import Array, UInt8Array
from vlatool.storage.atomic import open_atomic

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
    """Saves one panel per dimension: recorded values in gray, predicted ones in blue.

    `curves`: map from name of a dimension to (recorded [F], predicted [F]); `seconds`: time of each
    point in the episode, ascending [F].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5.5 * columns, 1.0 + 1.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    dots = "." if len(seconds) <= _MAX_DOTS else ""
    for axis, (name, (recorded, predicted)) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(seconds, recorded, color="0.45", linewidth=1.6, marker=dots, label="recorded")
        axis.plot(
            seconds, predicted, color="tab:blue", linewidth=1.1, marker=dots, label="predicted"
        )
        axis.set_title(name, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(curves) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("time in the episode (s)", fontsize=9)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    with open_atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)


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
