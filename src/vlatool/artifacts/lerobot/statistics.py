"""Statistics of LeRobot data sets: of columns from all rows, of cameras from sampled images.

Legend of shapes: F frames, C dimensions, N images. Source: formats/lerobot 9.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.transforms.quantiles import quantile
from vlatool.transforms.statistics import WindowStatistics, finite_lists, window_statistics

Stats = dict[str, Any]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_MOMENTS = ("min", "max", "mean", "std")
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


def is_camera_entry(entry: Mapping[str, Any]) -> bool:
    """True if published statistics of a camera are complete: finite, of three channels."""
    try:
        numbers = [np.asarray(entry[name], np.float64) for name in _MOMENTS]
        count = float(np.asarray(entry["count"], np.float64).reshape(1)[0])
    except (KeyError, TypeError, ValueError):
        return False
    return count > 0 and all(part.size == 3 and np.isfinite(part).all() for part in numbers)


def merged_images(parts: Sequence[Stats]) -> Stats:
    """Statistics of a camera from those of its episodes.

    Quantiles are means of those of the episodes, weighted by their images; left out where an
    episode has none.
    """
    counts = np.array([float(np.asarray(part["count"]).reshape(1)[0]) for part in parts])
    weights = counts / counts.sum()

    def values(name: str) -> Array:
        return np.array([np.asarray(part[name], np.float64).ravel() for part in parts])

    mean = weights @ values("mean")
    variance = weights @ (values("std") ** 2 + (values("mean") - mean) ** 2)
    merged = {
        "min": values("min").min(axis=0),
        "max": values("max").max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
    }
    for name in QUANTILES:
        if all(name in part for part in parts):
            merged[name] = weights @ values(name)
    entry: Stats = {name: value.reshape(3, 1, 1).tolist() for name, value in merged.items()}
    return {**entry, "count": [int(counts.sum())]}
