"""Charts of the metrics of runs: lines over steps, each with positions of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.pages.charts import HEIGHT, MAX_LINES, Axis, background, chart, left_labels, line
from vlatool.pages.layout import escape
from vlatool.pages.text import MAX_DRAWN
from vlatool.pages.ticks import Ticks, ticks_beside

# From this ratio of the largest to the smallest value on, the axis is logarithmic.
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


def curve_charts(label: str, curves: Sequence[Curve]) -> str:
    """Charts of curves over one axis, at most eight lines in each; empty without finite values.

    The vertical axis is logarithmic if all values of a chart are positive and differ by orders.
    """
    shown = [curve for curve in curves if _is_drawable(curve.values).any()]
    if not shown:
        return ""
    steps = np.concatenate([curve.steps for curve in shown])
    low, high = float(steps.min()), float(steps.max())
    margin = 0.5 if low == high else 0.0
    axis = Axis(low - margin, high + margin, "step", whole=True)
    parts = range(0, len(shown), MAX_LINES)
    return "".join(_chart(label, axis, shown[start : start + MAX_LINES]) for start in parts)


def chart_grid(charts: str) -> str:
    """Charts side by side; empty without any."""
    return f'<div class="charts">{charts}</div>' if charts else ""


def _chart(label: str, axis: Axis, curves: Sequence[Curve]) -> str:
    values = np.concatenate([curve.values[_is_drawable(curve.values)] for curve in curves])
    low, high = float(values.min()), float(values.max())
    is_wide = low > 0 and high / low >= _WIDE_RATIO
    ticks = _decades(low, high) if is_wide else _linear(low, high)
    bottom, top = ticks.values[0], ticks.values[-1]
    drawn = legend = ""
    for position, curve in enumerate(curves):
        color = position if curve.color is None else curve.color
        numbers = np.where(_is_drawable(curve.values), curve.values, np.nan)
        heights = np.log10(numbers) if is_wide else numbers
        drawn += line(axis.to_x(curve.steps), (top - heights) / (top - bottom) * HEIGHT, color)
        key = f'<span class="key"><i class="f{color}"></i>{escape(curve.name)}</span>'
        legend += key * bool(curve.name)
    left = left_labels(ticks)
    base = f' <span class="quiet">+ {escape(ticks.base)}</span>' if ticks.base else ""
    rules = background(axis, [share * HEIGHT for share, _ in left])
    return chart(f"{escape(label)}{base}", axis, rules + drawn, left, legend)


def _decades(low: float, high: float) -> Ticks:
    """Exponents of ten that enclose two positive numbers, with the powers as labels."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
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
