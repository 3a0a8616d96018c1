"""Charts as inline SVG: lines over a shared axis, sparklines, histograms, cells.

Legend of shapes: S positions along the axis (frames of an episode, steps of a window), C dimensions
of a field.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.pages.layout import escape, label_with_unit

COLORS = 8
_WIDTH = 1000.0
_HEIGHT = 84.0
_MAX_POINTS = 600
# Of a field with more dimensions than a position, constant ones are not drawn.
_MAX_CONSTANT = 3
_DASHES = ("", "5 3", "2 2", "8 3 2 3")
# Changes below this share of the largest value are rounding errors.
_ROUNDING = 1e-9
_MAX_VALUE = 1e300
_SPARK = (130, 24)


@dataclass(frozen=True)
class Axis:
    """Horizontal axis that several charts share.

    Attributes:
        low: Value at the left end of the chart.
        high: Value at the right end.
        marks: Values with a dashed line.
        anchor: Value with a solid line; None without one.
        shaded: Shaded ranges, such as padding.
        width: Width of the drawing; a chart that is narrow on the page needs a smaller one.
    """

    low: float
    high: float
    marks: tuple[float, ...] = ()
    anchor: float | None = None
    shaded: tuple[tuple[float, float], ...] = ()
    width: float = _WIDTH

    def to_x(self, values: Array | float) -> Array:
        """Horizontal positions of values in the drawing."""
        return (np.asarray(values, np.float64) - self.low) / (self.high - self.low) * self.width


@dataclass(frozen=True)
class FieldValues:
    """Values of a field to draw.

    Attributes:
        name: Name of the field.
        values: Numbers [S, C]; a line has gaps where they are not finite.
        names: C names of its dimensions.
        unit: Unit of its values; empty if unknown.
    """

    name: str
    values: Array
    names: Sequence[str]
    unit: str = ""


def field_chart(axis: Axis, positions: Array, field: FieldValues, *, dots: bool = False) -> str:
    """Chart of a field under its name, its unit and the names of its lines.

    Of a wide field, constant dimensions have no line if others vary.

    Args:
        axis: Axis of the chart.
        positions: Values of the axis [S].
        field: Values.
        dots: Mark the positions.
    """
    varies = _varies(field.values)
    hides = field.values.shape[1] > _MAX_CONSTANT and bool(varies.any())
    drawn = [index for index in range(len(varies)) if varies[index] or not hides]
    label = f"{label_with_unit(field.name, field.unit)} &ensp;{_legend(field, drawn)}"
    chart = _line_chart(axis, positions, field.values, drawn, dots=dots)
    return f'<div class="label">{label}</div>{chart}'


def _legend(field: FieldValues, drawn: Sequence[int]) -> str:
    """Color and name of each line; empty for a field of one dimension."""
    if field.values.shape[1] == 1:
        return ""
    keys = "".join(
        f'<span class="key"><i class="f{order % COLORS} d{order // COLORS % len(_DASHES)}"></i>'
        f"{escape(field.names[dimension])}</span>"
        for order, dimension in enumerate(drawn)
    )
    hidden = [name for i, name in enumerate(field.names) if i not in set(drawn)]
    text = f"{len(hidden)} constant dimensions"
    if len(hidden) <= COLORS:
        text = f"constant: {', '.join(hidden)}"
    return keys + (f'<span class="quiet">{escape(text)}</span>' if hidden else "")


def _line_chart(
    axis: Axis, positions: Array, values: Array, drawn: Sequence[int], *, dots: bool
) -> str:
    """Chart with a line per drawn dimension and the range at the left."""
    shown = _drawable(values[:, list(drawn)])
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    is_flat = high - low <= _ROUNDING * max(1.0, abs(high))
    height = _HEIGHT if _varies(values).any() else _HEIGHT / 2
    height = 2 * height if len(drawn) > COLORS else height
    middle, half = (low + high) / 2, 1.0 if is_flat else (high - low) / 2
    top, bottom = 9.0, height - 9.0
    y = (top + bottom) / 2 - (shown - middle) / half * (bottom - top) / 2
    x = axis.to_x(positions)
    lines = "".join(_line(x, y[:, order], order, dots=dots) for order in range(y.shape[1]))
    labels = _label((top + bottom) / 2, high)
    if not is_flat:
        labels = _label(top, high) + _label(bottom, low)
    return _chart(axis.width, height, _background(axis, height) + lines + labels)


def axis_chart(axis: Axis, ticks: Sequence[tuple[float, str]]) -> str:
    """Labels of the axis, shown under its charts."""
    texts = "".join(
        f'<text x="{float(axis.to_x(value)):.1f}" y="12" text-anchor="middle">{escape(text)}</text>'
        for value, text in ticks
    )
    return _chart(axis.width, 16, texts)


def cells(axis: Axis, positions: Array, flags: Array, label: str) -> str:
    """Row of cells [S], filled where true, with its label at the left."""
    gap = 1.5
    half = float(axis.to_x(0.5) - axis.to_x(0.0))
    drawn = "".join(
        f'<rect class="cell{"" if flag else " off"}" x="{x - half + gap:.1f}" y="2" '
        f'width="{2 * half - 2 * gap:.1f}" height="10" rx="2"/>'
        for x, flag in zip(axis.to_x(positions), flags, strict=True)
    )
    return _chart(axis.width, 14, f'<text x="0" y="11">{escape(label)}</text>{drawn}')


def sparkline(mean: Array, std: Array) -> str:
    """Small line of a mean over the steps of a window [S] with a band of one std [S]."""
    width, height = _SPARK
    low, high = mean - std, mean + std
    if not np.isfinite([low, high]).all() or len(mean) < 2:
        return ""
    bottom, span = float(low.min()), float(high.max() - low.min())
    if span <= 1e-9 * max(1.0, abs(bottom)):
        bottom, span = bottom - 0.5, 1.0
    xs = np.linspace(1, width - 1, len(mean))

    def points(values: Array) -> list[str]:
        ys = height - 2 - (values - bottom) / span * (height - 4)
        return [f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True)]

    band = " ".join([*points(high), *reversed(points(low))])
    line = " ".join(points(mean))
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="per step">'
        f'<polygon class="band" points="{band}"/><polyline class="s0" points="{line}"/></svg>'
    )


def histogram(values: Sequence[float], unit: str, bins: int = 24, counted: str = "episodes") -> str:
    """Histogram of integer values, with bins of integer width."""
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
    """Numbers as float64; NaN for those that are not finite or too large for differences."""
    numbers = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(numbers) < _MAX_VALUE, numbers, np.nan)


def _varies(values: Array) -> Array:
    """Dimensions that change, bool [C]."""
    finite = np.nan_to_num(_drawable(values))
    return np.ptp(finite, axis=0) > _ROUNDING * np.maximum(1.0, np.abs(finite).max(axis=0))


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
    rules = [(value, "mark") for value in axis.marks]
    rules += [] if axis.anchor is None else [(axis.anchor, "anchor")]
    for value, kind in rules:
        x = float(axis.to_x(value))
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height:.0f}"/>')
    return "".join(parts)


def _line(xs: Array, ys: Array, order: int, *, dots: bool) -> str:
    """Line of one dimension, in segments between gaps."""
    indices = _downsampled(ys)
    xs, ys = xs[indices], ys[indices]
    finite = np.isfinite(ys)
    segments: list[str] = []
    for start, stop in _runs(finite):
        points = " L".join(
            f"{x:.1f} {y:.1f}" for x, y in zip(xs[start:stop], ys[start:stop], strict=True)
        )
        segments.append(f"M{points}")
    if not segments:
        return ""
    style = f"line s{order % COLORS}"
    dash = _DASHES[order // COLORS % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = f'<path class="{style}" d="{"".join(segments)}"{dashed}/>'
    if dots:
        round_dots = "".join(
            f"M{x:.1f} {y:.1f}h0" for x, y in zip(xs[finite], ys[finite], strict=True)
        )
        path += (
            f'<path class="{style}" d="{round_dots}" style="stroke-width:4;stroke-linecap:round"/>'
        )
    return path


def _downsampled(values: Array) -> Array:
    """Indices of points that keep the peaks of a long line: minimum and maximum of short parts."""
    count = len(values)
    if count <= _MAX_POINTS:
        return np.arange(count)
    parts = np.array_split(np.arange(count), _MAX_POINTS // 2)
    indices: set[int] = {0, count - 1}
    for part in parts:
        numbers = np.nan_to_num(values[part])
        indices |= {int(part[numbers.argmin()]), int(part[numbers.argmax()])}
    return np.array(sorted(indices))


def _runs(flags: Array) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive true flags."""
    padded = np.concatenate([[False], flags, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _label(y: float, value: float) -> str:
    return f'<text x="0" y="{y + 4:.1f}">{_number(value)}</text>'


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.4g}"
