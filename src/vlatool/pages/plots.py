"""Sparklines and histograms as inline SVG."""

from collections.abc import Sequence

import numpy as np

from vlatool.episode import Array
from vlatool.events import counted
from vlatool.pages.charts import HEIGHT, WIDTH, Axis, chart, left_labels
from vlatool.pages.layout import escape
from vlatool.pages.ticks import ticks_beside

_SPARK = (130, 24)
_BINS = 24


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


def histogram(values: Sequence[float], unit: str, counted_name: str = "episode") -> str:
    """Histogram of integer values, with bins of integer width; `values`: numbers; empty for an
    empty result.
    """
    numbers = np.asarray(values, np.int64)
    if not numbers.size:
        return ""
    low, high = int(numbers.min()), int(numbers.max())
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
