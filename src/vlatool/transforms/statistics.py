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

MAX_BUFFER = 1000
COMPRESSION = 100
# Compressing at every merge would blur the digest: it is deferred up to this many centroids.
_MAX_CENTROIDS = 5 * COMPRESSION
_BLOCK = 256


@dataclass(frozen=True)
class Digest:
    """Centroids of a grid of G cells."""

    means: Array  # float64 [G, K], ascending per cell, +inf where unused
    # int64 [G, K], 0 where unused; float64 for a weighted mixture; None if every finite mean is a
    # single value
    weights: Array | None = None

    @property
    def is_exact(self) -> bool:
        """True if all values are stored."""
        return self.weights is None

    @property
    def is_weighted(self) -> bool:
        """True if weights are the shares of a mixture instead of counts."""
        return self.weights is not None and self.weights.dtype.kind == "f"

    @property
    def counts(self) -> Array:
        """Number of values of each cell, int64 [G]."""
        if self.weights is None:
            return np.isfinite(self.means).sum(axis=1)
        return np.rint(self.weights.sum(axis=1)).astype(np.int64)

    @property
    def width(self) -> int:
        """Number of centroids K."""
        return self.means.shape[1]

    def rows(self, cells: Array | slice) -> "Digest":
        """Digest of the selected cells."""
        return Digest(self.means[cells], None if self.weights is None else self.weights[cells])


def digest_of(values: Array, valid: Array) -> Digest:
    """Digest of the values [G, N] for which `valid` [G, N] is true."""
    means = np.sort(np.where(valid, values, np.inf), axis=1)
    return compress(Digest(means))


def join(digests: Sequence[Digest]) -> Digest:
    """Concatenated digests, cell by cell, not compressed."""
    means = np.concatenate([digest.means for digest in digests], axis=1)
    if all(digest.weights is None for digest in digests):
        return Digest(np.sort(means, axis=1))
    weights = np.concatenate([_weights(digest) for digest in digests], axis=1)
    return _sort(means, weights)


def merge_digests(digests: Sequence[Digest]) -> Digest:
    """Digest of the values of all digests, cell by cell.

    Cells are processed in blocks, because temporary arrays are several times as large.
    """
    cells = len(digests[0].means)
    blocks = [slice(start, start + _BLOCK) for start in range(0, cells, _BLOCK)]
    return _stack([compress(join([digest.rows(block) for digest in digests])) for block in blocks])


def pool_cells(digest: Digest, groups: int) -> Digest:
    """Digest with pooled cells: T*C cells of a grid [T, C] become C = `groups`; not compressed."""
    steps = digest.means.shape[0] // groups
    parts = (digest.means, _weights(digest))
    rows = [part.reshape(steps, groups, -1).transpose(1, 0, 2) for part in parts]
    pooled = _sort(*(part.reshape(groups, -1) for part in rows))
    return Digest(pooled.means) if digest.weights is None else pooled


def compress(digest: Digest) -> Digest:
    """Digest with neighbors joined by the arcsine scale if it exceeds the buffer."""
    counts = digest.counts
    used = int(np.isfinite(digest.means).sum(axis=1).max(initial=0))
    trimmed = Digest(
        digest.means[:, :used], None if digest.weights is None else digest.weights[:, :used]
    )
    if counts.max(initial=0) <= MAX_BUFFER or (
        trimmed.weights is not None and used <= _MAX_CENTROIDS
    ):
        return trimmed
    return _join_neighbors(trimmed, counts)


def quantile(digest: Digest, q: float) -> Array:
    """q-quantile of each cell, float64 [G]; NaN for empty cells.

    Linear interpolation between order statistics while values are exact, else between centroid
    centers, never outside the smallest and largest centroid.
    """
    if digest.weights is None:
        return _exact_quantile(digest.means, q)
    return np.array(
        [_cell_quantile(m, w, q) for m, w in zip(digest.means, digest.weights, strict=True)]
    )


def to_state(digest: Digest, shape: tuple[int, ...]) -> dict[str, Any]:
    """JSON form that the published merge reads; for digests of counts, not of shares."""
    assert not digest.is_weighted
    digest = compress(digest)
    counts = digest.counts
    state: dict[str, Any] = {
        "shape": list(shape),
        "counts": counts.reshape(shape).tolist(),
        "max_buffer": MAX_BUFFER,
        "compression": COMPRESSION,
        "buffers": {"indices": [], "data": []},
        "digests": {"indices": [], "means": [], "weights": []},
    }
    weights = _weights(digest)
    for cell, index in enumerate(np.ndindex(*shape)):
        used = weights[cell] > 0
        if digest.is_exact or weights[cell].max(initial=0) == 1:
            state["buffers"]["indices"].append(list(index))
            state["buffers"]["data"].append(digest.means[cell][used].tolist())
        else:
            state["digests"]["indices"].append(list(index))
            state["digests"]["means"].append(_single_precision(digest.means[cell][used]))
            state["digests"]["weights"].append(weights[cell][used].tolist())
    return state


def from_state(state: dict[str, Any]) -> Digest:
    """Digest from its JSON form, older forms included.

    Older writers used the text of the index tuple as key of buffers and digests, or stored one
    `buffer` array for the whole grid. Source: formats/lbm 4.2.
    """
    shape = tuple(state["shape"])
    cells: list[tuple[list[float], list[int]]] = [([], []) for _ in range(int(np.prod(shape)))]
    for index, data in _stored_buffers(state):
        values = sorted(float(value) for value in data)
        cells[int(np.ravel_multi_index(index, shape))] = (values, [1] * len(values))
    for index, means, weights in _stored_digests(state):
        cells[int(np.ravel_multi_index(index, shape))] = (means, weights)
    width = max((len(means) for means, _ in cells), default=0)
    all_means = np.full((len(cells), width), np.inf)
    all_weights = np.zeros((len(cells), width), np.int64)
    for cell, (means, weights) in enumerate(cells):
        all_means[cell, : len(means)] = means
        all_weights[cell, : len(weights)] = weights
    exact = all_weights.max(initial=0) <= 1
    return Digest(all_means, None if exact else all_weights)


def scaled(digest: Digest, factor: float) -> Digest:
    """Digest as if every value occurred `factor` times; weights become fractions."""
    return Digest(digest.means, _weights(digest) * factor)


def _stored_buffers(state: dict[str, Any]) -> list[tuple[tuple[int, ...], list[float]]]:
    if "buffer" in state:  # one array [N, *shape] for the whole grid
        rows = np.asarray(state["buffer"], np.float64)
        shape = tuple(state["shape"])
        return [(index, rows[(slice(None), *index)].tolist()) for index in np.ndindex(*shape)]
    buffers = state.get("buffers") or {}
    if "indices" in buffers:
        pairs = zip(buffers["indices"], buffers["data"], strict=True)
        return [(tuple(index), data) for index, data in pairs]
    return [(_index(text), data) for text, data in buffers.items()]


def _stored_digests(
    state: dict[str, Any],
) -> list[tuple[tuple[int, ...], list[float], list[int]]]:
    digests = state.get("digests") or {}
    if "indices" in digests:
        rows = zip(digests["indices"], digests["means"], digests["weights"], strict=True)
        return [(tuple(index), means, weights) for index, means, weights in rows]
    return [
        (_index(text), entry["means"], [round(weight) for weight in entry["weights"]])
        for text, entry in digests.items()
    ]


def _index(text: str) -> tuple[int, ...]:
    """`(3, 1)` or `3,1` as numbers."""
    return tuple(int(part) for part in text.strip("()[] ").split(",") if part.strip())


def _single_precision(means: Array) -> list[float]:
    """Means in single precision, as in the published form, unless they overflow."""
    with np.errstate(over="ignore"):
        single = means.astype(np.float32)
    return (single if np.isfinite(single).all() else means).tolist()


def _weights(digest: Digest) -> Array:
    if digest.weights is None:
        return np.isfinite(digest.means).astype(np.int64)
    return digest.weights


def _stack(blocks: Sequence[Digest]) -> Digest:
    """Stacked blocks of cells, padded to the widest."""
    if len(blocks) == 1:
        return blocks[0]
    width = max((block.width for block in blocks), default=0)
    padded = [_pad(block.means, width, np.inf) for block in blocks]
    means = np.concatenate(padded) if padded else np.zeros((0, 0))
    if all(block.is_exact for block in blocks):
        return Digest(means)
    weights = [_pad(_weights(block), width, 0) for block in blocks]
    return Digest(means, np.concatenate(weights))


def _pad(values: Array, width: int, fill: float) -> Array:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


def _sort(means: Array, weights: Array) -> Digest:
    order = np.argsort(means, axis=1, kind="stable")
    ordered = (np.take_along_axis(values, order, axis=1) for values in (means, weights))
    return Digest(*ordered)


def _join_neighbors(digest: Digest, counts: Array) -> Digest:
    """Joins centroids [cells, M] of t-digests in bins of the arcsine scale; `counts`: [cells]."""
    total = np.maximum(counts, 1)[:, None]
    weights = _weights(digest)
    middle = (np.cumsum(weights, axis=1) - weights / 2) / total
    scale = np.arcsin(np.clip(2 * middle - 1, -1, 1)) / np.pi + 0.5
    bins = np.minimum((scale * COMPRESSION).astype(np.int64), COMPRESSION - 1)
    cells = len(bins)
    flat = (bins + np.arange(cells)[:, None] * COMPRESSION).ravel()
    size = cells * COMPRESSION
    joined = np.bincount(flat, weights.ravel(), size).reshape(cells, COMPRESSION)
    finite = np.where(weights > 0, digest.means, 0.0) * weights
    sums = np.bincount(flat, finite.ravel(), size).reshape(cells, COMPRESSION)
    means = np.where(joined == 0, np.inf, sums / np.maximum(joined, 1))
    return _sort(means, joined.astype(weights.dtype))


def _exact_quantile(means: Array, q: float) -> Array:
    """Quantile by numpy's linear rule for sorted rows that are padded with +inf."""
    counts = np.isfinite(means).sum(axis=1)
    if means.shape[1] == 0:
        return np.full(len(means), np.nan)
    position = q * np.maximum(counts - 1, 0)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    rows = np.arange(len(means))
    below = means[rows, low]
    above = means[rows, high]
    with np.errstate(invalid="ignore"):  # inf - inf in empty cells
        values = below + (above - below) * (position - low)
    return np.where(counts == 0, np.nan, values)


def _cell_quantile(means: Array, weights: Array, q: float) -> float:
    used = weights > 0
    means = means[used]
    weights = weights[used]
    if len(means) == 0:
        return float("nan")
    # With weights of one these are the order statistics, so the rule is numpy's.
    centers = np.cumsum(weights) - (weights + 1) / 2
    return float(np.interp(q * (weights.sum() - 1), centers, means))


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
