"""Pictures of an evaluation: curves of actions, sheets of episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from vlatool.episode import Array, UInt8Array
from vlatool.storage.atomic import open_atomic

# So few points are marked: lines between them are no recording.
_MOST_DOTS = 60
_TILE_PX = 128
_LABEL_PX = 18
_BACKGROUND = (250, 250, 248)
_INK = (40, 40, 40)
_GOOD, _BAD = (46, 125, 50), (198, 40, 40)


def save_curves(
    path: Path, title: str, curves: Mapping[str, tuple[Array, Array]], seconds: Array
) -> None:
    """One panel per dimension: recorded [F] in grey, predicted chunks [F] in colour.

    Args:
        path: PNG file.
        title: Above the panels.
        curves: Name of a dimension to (recorded, predicted).
        seconds: Time of each point in the recording, ascending [F].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5.5 * columns, 1.0 + 1.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    dots = "." if len(seconds) <= _MOST_DOTS else ""
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
        axis.set_xlabel("seconds of the recording", fontsize=9)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    with open_atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)


@dataclass(frozen=True)
class SheetRow:
    """One episode: a label, a verdict, pictures uint8 [H, W, 3] from start to end."""

    label: str
    verdict: str
    is_good: bool
    frames: Sequence[UInt8Array]


def save_contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Writes one row per episode; nothing without rows."""
    if not rows:
        return
    columns = max(len(row.frames) for row in rows)
    height = _TILE_PX + _LABEL_PX
    sheet = Image.new("RGB", (columns * (_TILE_PX + 4) + 4, len(rows) * height + 4), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height + 4
        draw.text((6, top), row.label, fill=_INK)
        place = (sheet.width - 8 - draw.textlength(row.verdict), top)
        draw.text(place, row.verdict, fill=_GOOD if row.is_good else _BAD)
        for column, frame in enumerate(row.frames):
            tile = Image.fromarray(frame).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
            sheet.paste(tile, (column * (_TILE_PX + 4) + 4, top + _LABEL_PX - 4))
    with open_atomic(path) as file:
        sheet.save(file, format="PNG", optimize=True)
