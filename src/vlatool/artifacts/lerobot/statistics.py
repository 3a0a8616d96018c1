"""Statistics of LeRobot data sets: of columns from all rows, of cameras from sampled images.

Legend of shapes: F frames, C dimensions, N images. Source: formats/lerobot 9.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.transforms.statistics import (
    WindowStatistics,
    finite_lists,
    quantile,
    window_statistics,
)

Stats = dict[str, Any]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_MOMENTS = ("min", "max", "mean", "std")
_IMAGE_ROWS = (*_MOMENTS, *QUANTILES, "count")
_MOST_IMAGES = 100
# Larger images are thinned to about this many pixels per side. Source: formats/lerobot 9
_THINNED_SIDE = 150
_THIN_FROM = 300


def rows_statistics(columns: Sequence[Array]) -> WindowStatistics:
    """Partial statistics of columns [F, C], concatenated; rows that are not finite do not count."""
    return window_statistics(
        [values[:, None] for values in columns], np.ones((len(columns[0]), 1), bool)
    )


def column_entries(
    stats: WindowStatistics, widths: Mapping[str, int]
) -> Iterator[tuple[str, Stats]]:
    """(column, statistics) of each column; `widths` maps columns to dimensions, in order."""
    start = 0
    for name, width in widths.items():
        yield name, _entry(stats.dimensions(start, start + width))
        start += width


def _entry(stats: WindowStatistics) -> Stats:
    count = stats.count[0]
    variance = stats.m2[0] / np.maximum(count, 1)
    values = {
        "min": stats.minimum[0],
        "max": stats.maximum[0],
        "mean": stats.mean[0],
        "std": np.sqrt(variance),
    }
    values |= {name: quantile(stats.digest, share) for name, share in QUANTILES.items()}
    entry: Stats = {name: finite_lists(value) for name, value in values.items()}
    return {**entry, "count": [int(count.max(initial=0))]}


def sampled_frames(num_frames: int) -> list[int]:
    """Evenly spaced frames, at most 100, of which camera statistics are made."""
    count = min(num_frames, _MOST_IMAGES)
    return sorted({*np.linspace(0, num_frames - 1, count).round().astype(int).tolist()})


class ImageStatistics:
    """Accumulator of the values of sampled images of a camera, per channel, exact."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0

    def add(self, image: UInt8Array) -> None:
        """Adds an image [H, W, 3]."""
        height, width = image.shape[:2]
        step = 1 if max(height, width) < _THIN_FROM else max(height, width) // _THINNED_SIDE
        thinned = image[::step, ::step]
        for channel in range(3):
            self._counts[channel] += np.bincount(thinned[..., channel].ravel(), minlength=256)
        self._images += 1

    def entry(self) -> Stats:
        """Statistics in 0..1, with the shape (3, 1, 1) of the format."""
        levels = np.arange(256) / 255.0
        shares = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = shares @ levels
        deviations = (levels - mean[:, None]) ** 2
        present = self._counts > 0
        values = {
            "min": levels[present.argmax(axis=1)],
            "max": levels[255 - present[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt((shares * deviations).sum(axis=1)),
        }
        below = np.cumsum(shares, axis=1)
        for name, share in QUANTILES.items():
            values[name] = levels[(below < share - 1e-12).sum(axis=1)]
        entry: Stats = {name: value.reshape(3, 1, 1).tolist() for name, value in values.items()}
        return {**entry, "count": [self._images]}


def camera_entry(published: Mapping[str, Any]) -> Stats | None:
    """Published statistics of a camera in the form of the format; None if they are incomplete.

    Quantiles are optional; those that are not finite numbers of three channels are left out.
    """
    values = {name: _channels(published.get(name)) for name in (*_MOMENTS, *QUANTILES)}
    count = _numbers(published.get("count"))
    if count is None or count.size != 1 or not count[0] > 0:
        return None
    if any(values[name] is None for name in _MOMENTS):
        return None
    entry: Stats = {name: value for name, value in values.items() if value is not None}
    return {**entry, "count": [int(count[0])]}


def _channels(value: Any) -> list[Any] | None:
    """Finite numbers of three channels with the shape (3, 1, 1); None for others."""
    numbers = _numbers(value)
    return None if numbers is None or numbers.size != 3 else numbers.reshape(3, 1, 1).tolist()


def _numbers(value: Any) -> Array | None:
    """Finite numbers as float64 [N]; None if there are others."""
    try:
        numbers = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def entry_values(entry: Stats) -> Array:
    """Statistics of a camera as float64 [10, 3], which is small; NaN for those that it lacks."""
    rows = [np.ravel(entry.get(name, np.nan)) for name in _IMAGE_ROWS]
    return np.array([np.broadcast_to(row, 3) for row in rows], np.float64)


def merged_images(parts: Sequence[Array]) -> Stats:
    """Statistics of a camera from those of its episodes, as `entry_values` returns them.

    Quantiles are means of those of the episodes, weighted by their images; left out where an
    episode has none.
    """
    columns = np.ascontiguousarray(np.stack(parts, axis=1))
    values = dict(zip(_IMAGE_ROWS, columns, strict=True))
    counts = values["count"][:, 0]
    weights = counts / counts.sum()
    mean = weights @ values["mean"]
    variance = weights @ (values["std"] ** 2 + (values["mean"] - mean) ** 2)
    merged = {
        "min": values["min"].min(axis=0),
        "max": values["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
    }
    for name in QUANTILES:
        if not np.isnan(values[name]).any():
            merged[name] = weights @ values[name]
    entry: Stats = {name: value.reshape(3, 1, 1).tolist() for name, value in merged.items()}
    return {**entry, "count": [int(counts.sum())]}
