"""Mergeable statistics of windowed fields, one vectorized pass per episode.

The dimensions of all fields of an episode are concatenated. Only valid (unpadded, finite) rows
count. Merging parts in a fixed order gives equal bits in any process.

Legend of shapes: N windows, T steps, C dimensions of all fields. Source: formats/lbm 4.1, 4.4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.transforms.quantiles import (
    MAX_BUFFER,
    Digest,
    digest_of,
    merge_digests,
    pool_cells,
    quantile,
    to_state,
)

PERCENTILES = (1, 2, 5, 95, 98, 99)
_MOMENTS = ("count", "mean", "m2", "minimum", "maximum")
_CELLS = ("cell_means", "cell_weights")


@dataclass(frozen=True)
class WindowStatistics:
    """Partial statistics of concatenated fields."""

    count: Array  # number of valid rows, int64 [T, C]; equal for the dimensions of a field
    mean: Array  # float64 [T, C]
    m2: Array  # sum of squared deviations from the mean, float64 [T, C]
    minimum: Array  # float64 [T, C], +inf where `count` is 0
    maximum: Array  # float64 [T, C], -inf where `count` is 0
    digest: Digest  # quantile digest of T*C cells

    @property
    def shape(self) -> tuple[int, int]:
        """(T, C)."""
        return self.mean.shape[0], self.mean.shape[1]

    def dimensions(self, start: int, stop: int) -> "WindowStatistics":
        return self._part((slice(None), slice(start, stop)))

    def steps(self, start: int, stop: int) -> "WindowStatistics":
        return self._part((slice(start, stop), slice(None)))

    def _part(self, span: tuple[slice, slice]) -> "WindowStatistics":
        cells = np.arange(self.mean.size).reshape(self.shape)[span].ravel()
        moments = {name: getattr(self, name)[span] for name in _MOMENTS}
        return WindowStatistics(**moments, digest=self.digest.rows(cells))


def window_statistics(fields: Sequence[Array], valid: Array) -> WindowStatistics:
    """Statistics of windows [N, T, C_i] of several fields, concatenated.

    `fields`: windows of each field; those of shape [N, T] have one dimension; `valid`: bool [N, T],
    false for padded steps. Rows of a field with a value that is not finite do not count for that
    field.
    """
    wide = [np.asarray(array, np.float64).reshape(*valid.shape, -1) for array in fields]
    values = np.concatenate(wide, axis=2)
    weight = np.broadcast_to(valid[..., None], values.shape)
    if not np.isfinite(values).all():
        rows = [np.isfinite(array).all(axis=2, keepdims=True) for array in wide]
        finite = [np.broadcast_to(row, array.shape) for row, array in zip(rows, wide, strict=True)]
        weight = weight & np.concatenate(finite, axis=2)
    counted = np.where(weight, values, 0.0)
    count = weight.sum(axis=0)
    with np.errstate(over="ignore"):
        mean = counted.sum(axis=0) / np.maximum(count, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = np.where(weight, values - mean, 0.0)
        m2 = np.einsum("ntc,ntc->tc", deviation, deviation)
    cells = values.transpose(1, 2, 0).reshape(-1, len(values))
    cell_valid = weight.transpose(1, 2, 0).reshape(-1, len(values))
    return WindowStatistics(
        count=count,
        mean=mean,
        m2=m2,
        minimum=np.where(weight, values, np.inf).min(axis=0, initial=np.inf),
        maximum=np.where(weight, values, -np.inf).max(axis=0, initial=-np.inf),
        digest=digest_of(cells, cell_valid),
    )


def to_arrays(stats: WindowStatistics) -> dict[str, Array]:
    """Partial statistics as named arrays, those of the digest as [C, T, K].

    Neighboring steps have nearly the same values. With steps beside each other arrays compress to
    a twenty-ninth, in the order of the digest to a tenth (measured for windows of 16 steps).
    """
    arrays = {name: getattr(stats, name) for name in _MOMENTS}
    for name, part in zip(_CELLS, (stats.digest.means, stats.digest.weights), strict=True):
        if part is not None:
            by_step = part.reshape(*stats.shape, part.shape[1])
            arrays[name] = np.ascontiguousarray(by_step.transpose(1, 0, 2))
    return arrays


def from_arrays(arrays: Mapping[str, Array]) -> WindowStatistics:
    """Partial statistics from named arrays."""
    moments = {name: arrays[name] for name in _MOMENTS}
    parts = (arrays[name] for name in _CELLS if name in arrays)
    cells = (part.transpose(1, 0, 2).reshape(-1, part.shape[2]) for part in parts)
    return WindowStatistics(**moments, digest=Digest(*cells))


class StatisticsAccumulator:
    """Accumulator of partial statistics; memory does not depend on their number."""

    def __init__(self) -> None:
        self._moments: WindowStatistics | None = None
        self._digests: list[Digest] = []

    def add(self, part: WindowStatistics) -> None:
        """Adds a part; its dimensions must be those of earlier parts."""
        self._moments = part if self._moments is None else merge_moments(self._moments, part)
        self._digests.append(part.digest)
        # Sorting a few thousand values at once is faster than sorting for every episode.
        if sum(digest.width for digest in self._digests) > 2 * MAX_BUFFER:
            self._digests = [merge_digests(self._digests)]

    def total(self) -> WindowStatistics | None:
        """Statistics of all parts; None if none was added."""
        if self._moments is None:
            return None
        self._digests = [merge_digests(self._digests)]
        return replace(self._moments, digest=self._digests[0])


def merge(left: WindowStatistics, right: WindowStatistics) -> WindowStatistics:
    """Statistics of the values of both sides."""
    digest = merge_digests([left.digest, right.digest])
    return replace(merge_moments(left, right), digest=digest)


def merge_moments(left: WindowStatistics, right: WindowStatistics) -> WindowStatistics:
    """Merged statistics except for the digest, which is that of `left`."""
    total = left.count + right.count
    divisor = np.maximum(total, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = right.mean - left.mean
        m2 = left.m2 + right.m2 + delta**2 * (left.count * right.count) / divisor
    return WindowStatistics(
        count=total,
        mean=left.mean + delta * (right.count / divisor),
        m2=m2,
        minimum=np.minimum(left.minimum, right.minimum),
        maximum=np.maximum(left.maximum, right.maximum),
        digest=left.digest,
    )


def field_entries(
    stats: WindowStatistics, widths: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, published entry) of each field; `widths` maps fields to dimensions, in order."""
    start = 0
    for name, width in widths.items():
        yield name, summary(stats.dimensions(start, start + width))
        start += width


def summary(stats: WindowStatistics) -> dict[str, Any]:
    """Published JSON entry of a field: nested lists, null for missing values."""
    steps, dimensions = stats.shape
    count = stats.count
    total = np.maximum(count.sum(axis=0), 1)
    with np.errstate(over="ignore", invalid="ignore"):  # finite values may be too large to square
        variance = stats.m2 / np.maximum(count - 1, 1)
        mean = (stats.mean * count).sum(axis=0) / total
        squared_deviations = (variance * count).sum(axis=0) + (
            count * (stats.mean - mean) ** 2
        ).sum(axis=0)
    pooled = pool_cells(stats.digest, dimensions)
    rows = np.rint(count[:, 0]).astype(np.int64).tolist()  # fractions in a weighted mixture
    entry: dict[str, Any] = {
        "count": rows,
        "mean": finite_lists(mean),
        "std": finite_lists(np.sqrt(squared_deviations / total)),
        "min": finite_lists(stats.minimum.min(axis=0)),
        "max": finite_lists(stats.maximum.max(axis=0)),
        "mean_per_timestep": finite_lists(stats.mean),
        "std_per_timestep": finite_lists(np.sqrt(variance)),
        "min_per_timestep": finite_lists(stats.minimum),
        "max_per_timestep": finite_lists(stats.maximum),
    }
    for percent in PERCENTILES:
        entry[f"percentile_{percent}"] = finite_lists(quantile(pooled, percent / 100))
        per_step = quantile(stats.digest, percent / 100).reshape(steps, dimensions)
        entry[f"percentile_{percent}_per_timestep"] = finite_lists(per_step)
    # A weighted mixture has shares, not counts, and cannot be merged any further.
    is_mergeable = not stats.digest.is_weighted
    entry["percentile_sample_count"] = rows if is_mergeable else None
    entry["tdigest_state"] = to_state(pooled, (dimensions,)) if is_mergeable else None
    per_step = to_state(stats.digest, (steps, dimensions)) if is_mergeable else None
    entry["tdigest_state_per_timestep"] = per_step
    return entry


def finite_lists(values: Array) -> list[Any]:
    """Nested lists with None instead of NaN and infinities, for strict JSON."""
    if np.isfinite(values).all():
        return values.tolist()
    boxed = values.astype(object)
    boxed[~np.isfinite(values)] = None
    return boxed.tolist()
