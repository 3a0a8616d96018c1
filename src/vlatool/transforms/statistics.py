"""Mergeable statistics of windowed fields, one vectorized pass per episode.

`window_statistics` measures the windows of one episode. The dimensions of its fields are
concatenated, and only valid (unpadded, finite) rows count. `StatisticsAccumulator` merges the
episodes; `summary` is what stats.json shows of a field. Percentiles come from a `Digest` for each
step and dimension (a cell): all values as long as they are few, then a t-digest. Merging in a fixed
order gives equal bits in any process.

Legend of shapes: N windows, T steps, C dimensions of all fields, G cells (T * C), K centroids.
Source: formats/lbm 4.1, 4.4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlatool.episode import Array

MAX_BUFFER = 1000
COMPRESSION = 100
# Compressing at every merge would blur the digest: it is deferred up to this many centroids.
_MAX_CENTROIDS = 5 * COMPRESSION
_CELLS_AT_ONCE = 256
PERCENTILES = (1, 2, 5, 95, 98, 99)


@dataclass(frozen=True)
class Digest:
    """Centroids of the values of each cell."""

    means: Array  # float64 [G, K], ascending per cell, +inf where unused
    # int64 [G, K], 0 where unused; float64 for a weighted mixture; None if every finite mean is a
    # single value
    weights: Array | None = None

    @property
    def is_weighted(self) -> bool:
        """True if weights are the shares of a mixture instead of counts."""
        return self.weights is not None and self.weights.dtype.kind == "f"

    @property
    def all_weights(self) -> Array:
        """Weights [G, K]; 1 for single values."""
        if self.weights is None:
            return np.isfinite(self.means).astype(np.int64)
        return self.weights

    @property
    def counts(self) -> Array:
        """Number of values of each cell, int64 [G]."""
        return np.rint(self.all_weights.sum(axis=1)).astype(np.int64)

    @property
    def width(self) -> int:
        """Number of centroids K."""
        return self.means.shape[1]

    def rows(self, cells: Array | slice) -> "Digest":
        """Digest of the selected cells."""
        weights = None if self.weights is None else self.weights[cells]
        return Digest(self.means[cells], weights)


def digest_of(values: Array, valid: Array) -> Digest:
    """Digest of the values [G, N] for which `valid` [G, N] is true."""
    means = np.sort(np.where(valid, values, np.inf), axis=1)
    return _compress(Digest(means))


def merge_digests(digests: Sequence[Digest]) -> Digest:
    """Digest of the values of all digests, cell by cell.

    Cells are processed in blocks, because temporary arrays are several times as large.
    """
    blocks: list[Digest] = []
    cells = len(digests[0].means)
    for start in range(0, max(cells, 1), _CELLS_AT_ONCE):
        rows = slice(start, start + _CELLS_AT_ONCE)
        blocks.append(_compress(_join([digest.rows(rows) for digest in digests])))
    width = max(block.width for block in blocks)
    means = np.concatenate([_widened(block.means, width, np.inf) for block in blocks])
    if all(block.weights is None for block in blocks):
        return Digest(means)
    weights = [_widened(block.all_weights, width, 0) for block in blocks]
    return Digest(means, np.concatenate(weights))


def _join(digests: Sequence[Digest]) -> Digest:
    """Concatenated digests, cell by cell, not compressed."""
    means = np.concatenate([digest.means for digest in digests], axis=1)
    if all(digest.weights is None for digest in digests):
        return Digest(np.sort(means, axis=1))
    return _sorted(means, np.concatenate([digest.all_weights for digest in digests], axis=1))


def _widened(values: Array, width: int, fill: float) -> Array:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


def _sorted(means: Array, weights: Array) -> Digest:
    order = np.argsort(means, axis=1, kind="stable")
    return Digest(
        np.take_along_axis(means, order, axis=1), np.take_along_axis(weights, order, axis=1)
    )


def _compress(digest: Digest) -> Digest:
    """Digest with neighbors joined by the arcsine scale if it exceeds the buffer."""
    used = int(np.isfinite(digest.means).sum(axis=1).max(initial=0))
    means = digest.means[:, :used]
    if digest.weights is None:
        trimmed = Digest(means)
        is_small = used <= MAX_BUFFER
    else:
        trimmed = Digest(means, digest.weights[:, :used])
        is_small = used <= _MAX_CENTROIDS or digest.counts.max() <= MAX_BUFFER
    if is_small:
        return trimmed

    weights = trimmed.all_weights
    total = np.maximum(trimmed.counts, 1)[:, None]
    middle = (np.cumsum(weights, axis=1) - weights / 2) / total
    scale = np.arcsin(np.clip(2 * middle - 1, -1, 1)) / np.pi + 0.5
    bins = np.minimum((scale * COMPRESSION).astype(np.int64), COMPRESSION - 1)
    cells = len(bins)
    flat = (bins + np.arange(cells)[:, None] * COMPRESSION).ravel()
    size = cells * COMPRESSION
    joined = np.bincount(flat, weights.ravel(), size).reshape(cells, COMPRESSION)
    weighted = np.where(weights > 0, means, 0.0) * weights
    sums = np.bincount(flat, weighted.ravel(), size).reshape(cells, COMPRESSION)
    centers = np.where(joined == 0, np.inf, sums / np.maximum(joined, 1))
    return _sorted(centers, joined.astype(weights.dtype))


def scaled(digest: Digest, factor: float) -> Digest:
    """Digest as if every value occurred `factor` times; weights become fractions."""
    return Digest(digest.means, digest.all_weights * factor)


def quantile(digest: Digest, q: float) -> Array:
    """q-quantile of each cell, float64 [G]; NaN for empty cells.

    Linear interpolation between order statistics while values are exact, else between centroid
    centers, never outside the smallest and largest centroid.
    """
    if digest.weights is None:
        return _exact_quantile(digest.means, q)
    result = np.full(len(digest.means), np.nan)
    for cell, cell_weights in enumerate(digest.weights):
        used = cell_weights > 0
        means = digest.means[cell][used]
        weights = cell_weights[used]
        if len(means):
            # With weights of one these are the order statistics, so the rule is numpy's.
            centers = np.cumsum(weights) - (weights + 1) / 2
            result[cell] = np.interp(q * (weights.sum() - 1), centers, means)
    return result


def _exact_quantile(means: Array, q: float) -> Array:
    """Quantile by numpy's linear rule for sorted rows that are padded with +inf."""
    if means.shape[1] == 0:
        return np.full(len(means), np.nan)
    counts = np.isfinite(means).sum(axis=1)
    last = np.maximum(counts - 1, 0)
    position = q * last
    low = np.floor(position).astype(np.int64)
    rows = np.arange(len(means))
    below = means[rows, low]
    above = means[rows, np.minimum(low + 1, last)]
    with np.errstate(invalid="ignore"):  # inf - inf in empty cells
        values = below + (above - below) * (position - low)
    return np.where(counts == 0, np.nan, values)


def to_state(digest: Digest, shape: tuple[int, ...]) -> dict[str, Any]:
    """JSON form that the published merge reads; for digests of counts, not of shares."""
    assert not digest.is_weighted
    digest = _compress(digest)
    all_weights = digest.all_weights
    buffers: dict[str, list[Any]] = {"indices": [], "data": []}
    digests: dict[str, list[Any]] = {"indices": [], "means": [], "weights": []}
    for cell, index in enumerate(np.ndindex(*shape)):
        used = all_weights[cell] > 0
        means = digest.means[cell][used]
        weights = all_weights[cell][used]
        if digest.weights is None or weights.max(initial=0) == 1:
            buffers["indices"].append(list(index))
            buffers["data"].append(means.tolist())
        else:
            digests["indices"].append(list(index))
            digests["means"].append(_single_precision(means))
            digests["weights"].append(weights.tolist())
    return {
        "shape": list(shape),
        "counts": digest.counts.reshape(shape).tolist(),
        "max_buffer": MAX_BUFFER,
        "compression": COMPRESSION,
        "buffers": buffers,
        "digests": digests,
    }


def _single_precision(means: Array) -> list[float]:
    """Means in single precision, as in the published form, unless they overflow."""
    with np.errstate(over="ignore"):
        single = means.astype(np.float32)
    if not np.isfinite(single).all():
        return means.tolist()
    return single.tolist()


def from_state(state: dict[str, Any]) -> Digest:
    """Digest from its JSON form, older forms included.

    Older writers used the text of the index tuple as key of buffers and digests, or stored one
    `buffer` array [N, *shape] for the whole grid. Source: formats/lbm 4.2.
    """
    shape = tuple(state["shape"])
    buffers = state.get("buffers") or {}
    if "buffer" in state:
        rows = np.asarray(state["buffer"], np.float64)
        indices = list(np.ndindex(*shape))
        data = rows.reshape(len(rows), -1).T.tolist()
        buffers = {"indices": indices, "data": data}
    elif "indices" not in buffers:
        buffers = {"indices": map(_index, buffers), "data": buffers.values()}
    digests = state.get("digests") or {}
    if "indices" not in digests:
        digests = {
            "indices": map(_index, digests),
            "means": [entry["means"] for entry in digests.values()],
            "weights": [np.rint(entry["weights"]) for entry in digests.values()],
        }

    cells = int(np.prod(shape))
    means: list[Sequence[float]] = [()] * cells
    weights: list[Sequence[float]] = [()] * cells
    for index, values in zip(buffers["indices"], buffers["data"], strict=True):
        cell = int(np.ravel_multi_index(tuple(index), shape))
        means[cell] = sorted(map(float, values))
        weights[cell] = [1] * len(values)
    stored = zip(digests["indices"], digests["means"], digests["weights"], strict=True)
    for index, centers, counts in stored:
        cell = int(np.ravel_multi_index(tuple(index), shape))
        means[cell] = centers
        weights[cell] = counts

    width = max(map(len, means), default=0)
    all_means = np.full((cells, width), np.inf)
    all_weights = np.zeros((cells, width), np.int64)
    for cell in range(cells):
        all_means[cell, : len(means[cell])] = means[cell]
        all_weights[cell, : len(weights[cell])] = weights[cell]
    if all_weights.max(initial=0) <= 1:
        return Digest(all_means)
    return Digest(all_means, all_weights)


def _index(text: str) -> tuple[int, ...]:
    """`(3, 1)` or `3,1` as numbers."""
    return tuple(int(part) for part in text.strip("()[] ").split(",") if part.strip())


@dataclass(frozen=True)
class WindowStatistics:
    """Partial statistics of concatenated fields."""

    count: Array  # number of valid rows, int64 [T, C]; equal for the dimensions of a field
    mean: Array  # float64 [T, C]
    m2: Array  # sum of squared deviations from the mean, float64 [T, C]
    minimum: Array  # float64 [T, C], +inf where `count` is 0
    maximum: Array  # float64 [T, C], -inf where `count` is 0
    digest: Digest  # of the T * C cells

    @property
    def shape(self) -> tuple[int, int]:
        """(T, C)."""
        return self.mean.shape[0], self.mean.shape[1]

    def dimensions(self, start: int, stop: int) -> "WindowStatistics":
        return self._part((slice(None), slice(start, stop)))

    def steps(self, start: int, stop: int) -> "WindowStatistics":
        return self._part((slice(start, stop), slice(None)))

    def _part(self, span: tuple[slice, slice]) -> "WindowStatistics":
        cells = np.arange(self.mean.size).reshape(self.shape)
        return WindowStatistics(
            count=self.count[span],
            mean=self.mean[span],
            m2=self.m2[span],
            minimum=self.minimum[span],
            maximum=self.maximum[span],
            digest=self.digest.rows(cells[span].ravel()),
        )


def window_statistics(fields: Sequence[Array], valid: Array) -> WindowStatistics:
    """Statistics of windows [N, T, C_i] of several fields, concatenated.

    Rows of a field with a value that is not finite do not count for that field.

    Args:
        fields: Windows of each field; windows of shape [N, T] have one dimension.
        valid: Bool [N, T], false for padded steps.
    """
    wide = [np.asarray(array, np.float64).reshape(*valid.shape, -1) for array in fields]
    values = np.concatenate(wide, axis=2)
    counts = np.broadcast_to(valid[..., None], values.shape)
    if not np.isfinite(values).all():
        finite: list[Array] = []
        for array in wide:
            finite_rows = np.isfinite(array).all(axis=2, keepdims=True)
            finite.append(np.broadcast_to(finite_rows, array.shape))
        counts = counts & np.concatenate(finite, axis=2)

    count = counts.sum(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.where(counts, values, 0.0).sum(axis=0) / np.maximum(count, 1)
        deviation = np.where(counts, values - mean, 0.0)
        m2 = np.einsum("ntc,ntc->tc", deviation, deviation)
    return WindowStatistics(
        count=count,
        mean=mean,
        m2=m2,
        minimum=np.where(counts, values, np.inf).min(axis=0, initial=np.inf),
        maximum=np.where(counts, values, -np.inf).max(axis=0, initial=-np.inf),
        digest=digest_of(
            values.transpose(1, 2, 0).reshape(-1, len(values)),
            counts.transpose(1, 2, 0).reshape(-1, len(values)),
        ),
    )


_MOMENTS = ("count", "mean", "m2", "minimum", "maximum")


def to_arrays(stats: WindowStatistics) -> dict[str, Array]:
    """Partial statistics as named arrays; arrays of the digest are [C, T, K].

    Neighboring steps have nearly the same values. With steps beside each other arrays compress to
    a twenty-ninth, in the order of the digest to a tenth (measured for windows of 16 steps).
    """
    arrays = {name: getattr(stats, name) for name in _MOMENTS}
    arrays["cell_means"] = _by_dimension(stats.digest.means, stats.shape)
    if stats.digest.weights is not None:
        arrays["cell_weights"] = _by_dimension(stats.digest.weights, stats.shape)
    return arrays


def from_arrays(arrays: Mapping[str, Array]) -> WindowStatistics:
    """Partial statistics from named arrays."""
    weights = arrays.get("cell_weights")
    digest = Digest(_by_cell(arrays["cell_means"]), None if weights is None else _by_cell(weights))
    moments = {name: arrays[name] for name in _MOMENTS}
    return WindowStatistics(**moments, digest=digest)


def _by_dimension(cells: Array, shape: tuple[int, int]) -> Array:
    """Cells [T * C, K] as [C, T, K]."""
    by_step = cells.reshape(*shape, cells.shape[1])
    return np.ascontiguousarray(by_step.transpose(1, 0, 2))


def _by_cell(by_dimension: Array) -> Array:
    """The inverse of `_by_dimension`."""
    return by_dimension.transpose(1, 0, 2).reshape(-1, by_dimension.shape[2])


class StatisticsAccumulator:
    """Accumulator of partial statistics; memory does not depend on their number."""

    def __init__(self) -> None:
        self._moments: WindowStatistics | None = None
        self._digests: list[Digest] = []

    def add(self, part: WindowStatistics) -> None:
        """Adds a part; it must have the same dimensions as earlier parts."""
        if self._moments is None:
            self._moments = part
        else:
            self._moments = _merge_moments(self._moments, part)
        self._digests.append(part.digest)
        # Sorting a few thousand values at once is faster than sorting for every episode.
        if sum(digest.width for digest in self._digests) > 2 * MAX_BUFFER:
            self._digests = [merge_digests(self._digests)]

    def total(self) -> WindowStatistics | None:
        """Statistics of all parts; None if none was added. More parts may follow."""
        if self._moments is None:
            return None
        return replace(self._moments, digest=merge_digests(self._digests))


def merge(left: WindowStatistics, right: WindowStatistics) -> WindowStatistics:
    """Statistics of the values of both sides."""
    digest = merge_digests([left.digest, right.digest])
    return replace(_merge_moments(left, right), digest=digest)


def _merge_moments(left: WindowStatistics, right: WindowStatistics) -> WindowStatistics:
    """Merged statistics, except for the digest, which `left` gives."""
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
    count = stats.count
    total = np.maximum(count.sum(axis=0), 1)
    with np.errstate(over="ignore", invalid="ignore"):  # finite values may be too large to square
        variance = stats.m2 / np.maximum(count - 1, 1)
        mean = (stats.mean * count).sum(axis=0) / total
        within_steps = (variance * count).sum(axis=0)
        between_steps = (count * (stats.mean - mean) ** 2).sum(axis=0)
    rows = np.rint(count[:, 0]).astype(np.int64).tolist()  # fractions in a weighted mixture
    entry: dict[str, Any] = {
        "count": rows,
        "mean": finite_lists(mean),
        "std": finite_lists(np.sqrt((within_steps + between_steps) / total)),
        "min": finite_lists(stats.minimum.min(axis=0)),
        "max": finite_lists(stats.maximum.max(axis=0)),
        "mean_per_timestep": finite_lists(stats.mean),
        "std_per_timestep": finite_lists(np.sqrt(variance)),
        "min_per_timestep": finite_lists(stats.minimum),
        "max_per_timestep": finite_lists(stats.maximum),
    }
    pooled = _pool_steps(stats)
    for percent in PERCENTILES:
        entry[f"percentile_{percent}"] = finite_lists(quantile(pooled, percent / 100))
        per_step = quantile(stats.digest, percent / 100).reshape(stats.shape)
        entry[f"percentile_{percent}_per_timestep"] = finite_lists(per_step)
    if stats.digest.is_weighted:
        # A weighted mixture has shares, not counts, and cannot be merged any further.
        entry["percentile_sample_count"] = None
        entry["tdigest_state"] = None
        entry["tdigest_state_per_timestep"] = None
    else:
        entry["percentile_sample_count"] = rows
        entry["tdigest_state"] = to_state(pooled, stats.shape[1:])
        entry["tdigest_state_per_timestep"] = to_state(stats.digest, stats.shape)
    return entry


def _pool_steps(stats: WindowStatistics) -> Digest:
    """Digest of each dimension over all steps [C cells], not compressed."""
    dimensions = stats.shape[1]
    means = _by_dimension(stats.digest.means, stats.shape).reshape(dimensions, -1)
    if stats.digest.weights is None:
        return Digest(np.sort(means, axis=1, kind="stable"))
    weights = _by_dimension(stats.digest.weights, stats.shape).reshape(dimensions, -1)
    return _sorted(means, weights)


def finite_lists(values: Array) -> list[Any]:
    """Nested lists with None instead of NaN and infinities, for strict JSON."""
    if np.isfinite(values).all():
        return values.tolist()
    boxed = values.astype(object)
    boxed[~np.isfinite(values)] = None
    return boxed.tolist()
