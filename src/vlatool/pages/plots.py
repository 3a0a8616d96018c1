"""Sparklines, histograms and curves of metrics as inline SVG.

Legend of shapes: S steps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.events import counted
from vlatool.pages.charts import (
    HEIGHT,
    MAX_LINES,
    PER_SCREEN,
    WIDTH,
    Axis,
    Ticks,
    background,
    chart,
    left_labels,
    line,
    ticks_beside,
)
from vlatool.pages.layout import details, escape
from vlatool.pages.text import MAX_DRAWN

_SPARK = (130, 24)
_BINS = 24


def sparkline(mean: Array, std: Array) -> str:
    """Small line of a mean over the steps of a window [S] with a band of one std [S]."""
    width, height = _SPARK
    low = mean - std
    high = mean + std
    if not np.isfinite([low, high]).all() or len(mean) < 2:
        return ""
    bottom = float(low.min())
    span = float(high.max() - low.min())
    if span <= 1e-9 * max(1.0, abs(bottom)):
        bottom = bottom - 0.5
        span = 1.0
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


def histogram(values: Sequence[float], unit: str, counted_name: str = "episode") -> str:
    """Histogram of integers, with bins of integer width; empty without values."""
    numbers = np.asarray(values, np.int64)
    if not numbers.size:
        return ""
    low = int(numbers.min())
    high = int(numbers.max())
    step = -(-(high - low + 1) // _BINS)
    counts = np.bincount((numbers - low) // step)
    return bars(counts, low, step, unit, counted_name)


def bars(counts: Array, low: int, step: int, unit: str, counted_name: str) -> str:
    """Chart with a bar per range of integers; `counts`: height of each bar [B]."""
    ticks = ticks_beside(0.0, float(counts.max()), whole=True)
    axis = Axis(low - 0.5, low + step * len(counts) - 0.5, unit, whole=True)
    bar = WIDTH / len(counts)
    gap = min(1.0, bar / 8)
    tall = counts / ticks.values[-1] * HEIGHT
    drawn = "".join(
        f'<rect class="bar" x="{index * bar + gap:.1f}" y="{HEIGHT - tall[index]:.1f}" '
        f'width="{bar - 2 * gap:.1f}" height="{tall[index]:.1f}"><title>'
        f"{escape(f'{unit}: {_range_text(low + index * step, step)}')}: "
        f"{escape(counted(count, counted_name))}</title></rect>"
        for index, count in enumerate(counts.tolist())
        if count
    )
    label = escape(f"number of {counted_name}s")
    return f'<div class="charts">{chart(label, axis, drawn, left_labels(ticks))}</div>'


def _range_text(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first} to {first + count - 1}"


# Largest over smallest value from which the axis is logarithmic.
_WIDE_RATIO = 30.0
_MOST_DECADES = 5


@dataclass(frozen=True)
class Curve:
    """Values over steps."""

    name: str  # text of the legend; empty for none
    steps: Array  # steps in ascending order [S]
    values: Array  # numbers [S]; the line has gaps where they are not finite
    # Number of its color, below `MAX_LINES`; None: its position in the chart.
    color: int | None = None

    def finite(self) -> dict[int, float]:
        """Step to value where the value is finite."""
        pairs = zip(self.steps.tolist(), self.values.tolist(), strict=True)
        return {step: value for step, value in pairs if math.isfinite(value)}


def curve_charts(
    label: str, curves: Sequence[Curve], axis: Axis | None = None, *, dots: bool = False
) -> str:
    """Charts of curves over one axis, at most eight lines in each; empty without finite values.

    Without an `axis` it is that of the steps, and the vertical one is logarithmic if all values of
    a chart are positive and differ by orders.
    """
    shown = [curve for curve in curves if _is_drawable(curve.values).any()]
    if not shown:
        return ""
    steps = np.concatenate([curve.steps for curve in shown])
    low = float(steps.min())
    high = float(steps.max())
    margin = 0.5 if low == high else 0.0
    steps_axis = Axis(low - margin, high + margin, "step", whole=True)
    parts = [shown[start : start + MAX_LINES] for start in range(0, len(shown), MAX_LINES)]
    if axis is not None:
        return "".join(_chart(label, axis, part, wide=False, dots=dots) for part in parts)
    return "".join(_chart(label, steps_axis, part, wide=True, dots=dots) for part in parts)


def chart_grid(charts: str) -> str:
    """Charts side by side; empty without any."""
    return f'<div class="charts">{charts}</div>' if charts else ""


def chart_screens(charts: Iterable[str]) -> str:
    """Charts side by side; those after the first ten are collapsed."""
    drawn = [chart for chart in charts if chart]
    rest = drawn[PER_SCREEN:]
    return chart_grid("".join(drawn[:PER_SCREEN])) + details(
        f"{len(rest)} more", chart_grid("".join(rest))
    )


def _chart(label: str, axis: Axis, curves: Sequence[Curve], *, wide: bool, dots: bool) -> str:
    values = np.concatenate([curve.values[_is_drawable(curve.values)] for curve in curves])
    low = float(values.min())
    high = float(values.max())
    is_wide = wide and low > 0 and high / low >= _WIDE_RATIO
    ticks = _decades(low, high) if is_wide else _linear(low, high)
    bottom = ticks.values[0]
    top = ticks.values[-1]
    drawn = legend = ""
    for position, curve in enumerate(curves):
        color = position if curve.color is None else curve.color
        numbers = np.where(_is_drawable(curve.values), curve.values, np.nan)
        heights = np.log10(numbers) if is_wide else numbers
        ys = (top - heights) / (top - bottom) * HEIGHT
        drawn += line(axis.to_x(curve.steps), ys, color, dots=dots)
        key = f'<span class="key"><i class="f{color}"></i>{escape(curve.name)}</span>'
        legend += key * bool(curve.name)
    left = left_labels(ticks)
    base = f' <span class="quiet">+ {escape(ticks.base)}</span>' if ticks.base else ""
    base += ' <span class="quiet">logarithmic</span>' * is_wide
    rules = background(axis, [share * HEIGHT for share, _ in left])
    return chart(f"{escape(label)}{base}", axis, rules + drawn, left, legend)


def _decades(low: float, high: float) -> Ticks:
    """Exponents of ten that enclose two positive numbers, with the powers as labels."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    step = -(-(last - first) // _MOST_DECADES)
    exponents = range(first, last + step, step)
    return Ticks(tuple(map(float, exponents)), tuple(f"{10.0**power:g}" for power in exponents))


def _linear(low: float, high: float) -> Ticks:
    margin = 0.0 if high - low > 1e-9 * max(1.0, abs(low)) else 0.5 * max(1.0, abs(low))
    return ticks_beside(low - margin, high + margin)


def _is_drawable(values: Array) -> Array:
    """Flags [S] of numbers that are finite and not too large for differences."""
    with np.errstate(invalid="ignore"):
        return np.abs(values) < MAX_DRAWN
