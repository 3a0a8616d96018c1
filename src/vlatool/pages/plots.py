"""Charts as inline SVG: lines over a shared axis, sparklines, histograms, cells.

Legend of shapes: S positions along the axis (frames of an episode, steps of a window), C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlatool.episode import Array
from vlatool.pages.layout import escape

COLORS = 8
_WIDTH = 1000.0
_HEIGHT = 84.0
_MOST_POINTS = 600
# A field with more channels than a position has shows only those that move.
_MOST_CONSTANT = 3
_DASHES = ("", "5 3", "2 2", "8 3 2 3")
# Changes below this share of the largest value are rounding.
_STILL = 1e-9
_LARGEST = 1e300
_SPARK = (130, 24)


@dataclass(frozen=True)
class Axis:
    """What all charts of one time axis share.

    Attributes:
        low: Where the chart begins, in the axis' unit.
        high: Where it ends.
        marks: Places with a dashed line.
        now: Place with a solid line, such as the anchor.
        shaded: Ranges that lie in the shade, such as padding.
        width: Width of the drawing; what is drawn narrower on the page needs a smaller one.
    """

    low: float
    high: float
    marks: tuple[float, ...] = ()
    anchor: float | None = None
    shaded: tuple[tuple[float, float], ...] = ()
    width: float = _WIDTH

    def to_x(self, values: Array | float) -> Array:
        """Horizontal places in the drawing."""
        return (np.asarray(values, np.float64) - self.low) / (self.high - self.low) * self.width


@dataclass(frozen=True)
class Lines:
    """Lines of one chart.

    Attributes:
        positions: Where on the axis [S].
        values: Numbers [S, C]; gaps where they are not finite.
        names: C names.
        drawn: Channels that have a line, in order.
    """

    positions: Array
    values: Array
    names: Sequence[str]
    drawn: Sequence[int] = field(default=())


def field_lines(positions: Array, values: Array, names: Sequence[str]) -> Lines:
    """The lines of a field; constant channels have none where they would flatten the others."""
    moves = _moves(values)
    everything = range(values.shape[1])
    hides = values.shape[1] > _MOST_CONSTANT and bool(moves.any())
    return Lines(positions, values, names, [i for i in everything if moves[i] or not hides])


def legend(lines: Lines) -> str:
    """A colour and a name for each line; empty for a field of one channel."""
    if lines.values.shape[1] == 1:
        return ""
    keys = "".join(
        f'<span class="key"><i class="f{order % COLORS} d{order // COLORS % len(_DASHES)}"></i>'
        f"{escape(lines.names[channel])}</span>"
        for order, channel in enumerate(lines.drawn)
    )
    hidden = [name for i, name in enumerate(lines.names) if i not in set(lines.drawn)]
    told = f"{len(hidden)} constant channels"
    if len(hidden) <= COLORS:
        told = f"constant: {', '.join(hidden)}"
    return keys + (f'<span class="quiet">{escape(told)}</span>' if hidden else "")


def line_chart(axis: Axis, lines: Lines, *, dots: bool = False) -> str:
    """One line per drawn channel, with the extremes at the left; dots mark each position."""
    shown = _drawable(lines.values[:, list(lines.drawn)])
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    is_flat = high - low <= _STILL * max(1.0, abs(high))
    height = _HEIGHT if _moves(lines.values).any() else _HEIGHT / 2
    height = 2 * height if len(lines.drawn) > COLORS else height
    middle, half = (low + high) / 2, 1.0 if is_flat else (high - low) / 2
    top, bottom = 9.0, height - 9.0
    places = (top + bottom) / 2 - (shown - middle) / half * (bottom - top) / 2
    across = axis.to_x(lines.positions)
    drawn = "".join(
        _line(across, places[:, order], order, dots=dots) for order in range(places.shape[1])
    )
    labels = _label((top + bottom) / 2, high)
    if not is_flat:
        labels = _label(top, high) + _label(bottom, low)
    return _chart(axis.width, height, _background(axis, height) + drawn + labels)


def axis_chart(axis: Axis, ticks: Sequence[tuple[float, str]]) -> str:
    """The numbers under the charts of an axis."""
    texts = "".join(
        f'<text x="{float(axis.to_x(at)):.1f}" y="12" text-anchor="middle">{escape(text)}</text>'
        for at, text in ticks
    )
    return _chart(axis.width, 16, texts)


def cells(axis: Axis, positions: Array, flags: Array, label: str) -> str:
    """A row of cells [S], filled where true, with its label at the left."""
    gap = 1.5
    half = float(axis.to_x(0.5) - axis.to_x(0.0))
    drawn = "".join(
        f'<rect class="cell{"" if flag else " off"}" x="{place - half + gap:.1f}" y="2" '
        f'width="{2 * half - 2 * gap:.1f}" height="10" rx="2"/>'
        for place, flag in zip(axis.to_x(positions), flags, strict=True)
    )
    return _chart(axis.width, 14, f'<text x="0" y="11">{escape(label)}</text>{drawn}')


def sparkline(mean: Array, std: Array) -> str:
    """A mean over the steps of a window [S] with a band of one std [S] to each side."""
    width, height = _SPARK
    low, high = mean - std, mean + std
    if not np.isfinite([low, high]).all() or len(mean) < 2:
        return ""
    bottom, span = float(low.min()), float(high.max() - low.min())
    if span <= 1e-9 * max(1.0, abs(bottom)):
        bottom, span = bottom - 0.5, 1.0
    across = np.linspace(1, width - 1, len(mean))

    def points(values: Array) -> list[str]:
        down = height - 2 - (values - bottom) / span * (height - 4)
        return [f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True)]

    band = " ".join([*points(high), *reversed(points(low))])
    line = " ".join(points(mean))
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="per step">'
        f'<polygon class="band" points="{band}"/><polyline class="s0" points="{line}"/></svg>'
    )


def histogram(values: Sequence[float], unit: str, bins: int = 24, counted: str = "episodes") -> str:
    """How many values lie where; whole numbers get whole bins."""
    numbers = np.asarray(values, np.float64)
    if not numbers.size:
        return ""
    low, high = float(numbers.min()), float(numbers.max())
    step = max(1.0, float(np.ceil((high - low + 1) / bins)))
    edges = np.arange(low, high + step + 0.5, step)
    counts, _ = np.histogram(numbers, edges)
    width, height = 560.0, 120.0
    bar = width / len(counts)
    tall = height - 34
    drawn = "".join(
        f'<rect class="bar" x="{index * bar + 1:.1f}" y="{16 + tall * (1 - n / counts.max()):.1f}" '
        f'width="{max(bar - 2, 1):.1f}" height="{tall * n / counts.max():.1f}" rx="2">'
        f"<title>{_bin_text(edges, index, step)} {escape(unit)}: {n}</title></rect>"
        for index, n in enumerate(counts.tolist())
        if n
    )
    texts = (
        f'<text x="0" y="11">at most {counts.max()} {counted} per bar</text>'
        f'<text x="0" y="{height - 4}">{low:.0f}</text><text x="{width / 2}" y="{height - 4}" '
        f'text-anchor="middle">{escape(unit)}</text>'
        f'<text x="{width}" y="{height - 4}" text-anchor="end">{high:.0f}</text>'
    )
    rule = f'<line class="rule" x1="0" x2="{width}" y1="{height - 17}" y2="{height - 17}"/>'
    return (
        f'<div style="max-width:{width:.0f}px">{_chart(width, height, rule + drawn + texts)}</div>'
    )


def _drawable(values: Array) -> Array:
    """Numbers as float64, NaN for what is not finite or too large to subtract from another."""
    numbers = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(numbers) < _LARGEST, numbers, np.nan)


def _moves(values: Array) -> Array:
    """Channels that change, bool [C]."""
    finite = np.nan_to_num(_drawable(values))
    return np.ptp(finite, axis=0) > _STILL * np.maximum(1.0, np.abs(finite).max(axis=0))


def _bin_text(edges: Array, index: int, step: float) -> str:
    first, last = edges[index], edges[index] + step - 1
    return f"{first:.0f}" if first == last else f"{first:.0f} to {last:.0f}"


def _chart(width: float, height: float, content: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img">{content}</svg>'


def _background(axis: Axis, height: float) -> str:
    parts = [
        f'<rect class="shade" x="{float(axis.to_x(low)):.1f}" y="0" '
        f'width="{float(axis.to_x(high) - axis.to_x(low)):.1f}" height="{height:.0f}"/>'
        for low, high in axis.shaded
    ]
    parts.append(f'<line class="rule" x1="0" x2="{axis.width:.0f}" y1="{height}" y2="{height}"/>')
    places = [(place, "mark") for place in axis.marks]
    places += [] if axis.anchor is None else [(axis.anchor, "now")]
    for place, kind in places:
        x = float(axis.to_x(place))
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height:.0f}"/>')
    return "".join(parts)


def _line(across: Array, down: Array, order: int, *, dots: bool) -> str:
    """One channel; a new piece begins after each gap."""
    keep = _worth_drawing(down)
    across, down = across[keep], down[keep]
    finite = np.isfinite(down)
    pieces: list[str] = []
    for start, stop in _runs(finite):
        points = " L".join(
            f"{x:.1f} {y:.1f}" for x, y in zip(across[start:stop], down[start:stop], strict=True)
        )
        pieces.append(f"M{points}")
    if not pieces:
        return ""
    style = f"line s{order % COLORS}"
    dash = _DASHES[order // COLORS % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = f'<path class="{style}" d="{"".join(pieces)}"{dashed}/>'
    if dots:
        round_dots = "".join(
            f"M{x:.1f} {y:.1f}h0" for x, y in zip(across[finite], down[finite], strict=True)
        )
        path += (
            f'<path class="{style}" d="{round_dots}" style="stroke-width:4;stroke-linecap:round"/>'
        )
    return path


def _worth_drawing(values: Array) -> Array:
    """Indices of a long line that keep its peaks: the extremes of each of many short parts."""
    count = len(values)
    if count <= _MOST_POINTS:
        return np.arange(count)
    parts = np.array_split(np.arange(count), _MOST_POINTS // 2)
    kept: set[int] = {0, count - 1}
    for part in parts:
        numbers = np.nan_to_num(values[part])
        kept |= {int(part[numbers.argmin()]), int(part[numbers.argmax()])}
    return np.array(sorted(kept))


def _runs(flags: Array) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive true flags."""
    padded = np.concatenate([[False], flags, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _label(y: float, value: float) -> str:
    return f'<text x="0" y="{y + 4:.1f}">{_number(value)}</text>'


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.4g}"
