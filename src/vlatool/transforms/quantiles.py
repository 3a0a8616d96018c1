"""Quantiles of a stream: exact for few values, a t-digest for more.

A digest covers a grid of cells at once, because a data set has thousands of them (steps times
dimensions), and the digests of libraries, one object per cell, are slower and less accurate: with
100 batches of 1,000 normal values, errors at the 1 % quantile are 0.007 here, 0.008 with crick and
0.034 with fastdigest, at half the time. The result depends only on the order of the values.

Legend of shapes: G cells, K centroids. Source: formats/lbm 4.2, 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    below, above = means[rows, low], means[rows, high]
    with np.errstate(invalid="ignore"):  # inf - inf in empty cells
        values = below + (above - below) * (position - low)
    return np.where(counts == 0, np.nan, values)


def _cell_quantile(means: Array, weights: Array, q: float) -> float:
    used = weights > 0
    means, weights = means[used], weights[used]
    if len(means) == 0:
        return float("nan")
    # With weights of one these are the order statistics, so the rule is numpy's.
    centers = np.cumsum(weights) - (weights + 1) / 2
    return float(np.interp(q * (weights.sum() - 1), centers, means))
