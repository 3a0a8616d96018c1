"""Quantiles of a stream: exact while there are few values, a t-digest beyond.

A digest holds, for every cell of a grid, centroids sorted by mean with integer weights. Raw values
are centroids of weight one, so one representation serves both cases. Merging is deterministic for
a given order of merges. Source of the stored form: lbm-data 3.12.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.episode import Array

MAX_BUFFER = 1000
COMPRESSION = 100
# Joining at every merge would blur the digest: centroids pile up to this many first.
_PILE = 5 * COMPRESSION


@dataclass(frozen=True)
class Digest:
    """Centroids of a grid of G cells.

    Attributes:
        means: float64 [G, K], ascending per cell, +inf where unused.
        weights: int64 [G, K], 0 where unused.
    """

    means: Array
    weights: Array

    @property
    def counts(self) -> Array:
        """How many values each cell has seen, int64 [G]."""
        return self.weights.sum(axis=1)


def digest_of(values: Array, valid: Array) -> Digest:
    """A digest of values [G, N] where `valid` [G, N] is true."""
    means = np.where(valid, values, np.inf).astype(np.float64)
    return _compress(Digest(means, valid.astype(np.int64)))


def merge_digests(digests: Sequence[Digest]) -> Digest:
    """The digest of all values that the given digests have seen, cell by cell."""
    means = np.concatenate([digest.means for digest in digests], axis=1)
    weights = np.concatenate([digest.weights for digest in digests], axis=1)
    return _compress(Digest(means, weights))


def pool_cells(digest: Digest, groups: int) -> Digest:
    """Joins cells: a grid [T, C] flattened to T*C cells becomes C = `groups` cells."""
    steps = digest.means.shape[0] // groups
    means = digest.means.reshape(steps, groups, -1).transpose(1, 0, 2).reshape(groups, -1)
    weights = digest.weights.reshape(steps, groups, -1).transpose(1, 0, 2).reshape(groups, -1)
    return _compress(Digest(means, weights))


def quantile(digest: Digest, q: float) -> Array:
    """The q-quantile of each cell, float64 [G]; NaN where a cell is empty.

    Linear interpolation between order statistics while values are exact, between centroid centres
    beyond, never outside the smallest and largest centroid.
    """
    return np.array(
        [_cell_quantile(m, w, q) for m, w in zip(digest.means, digest.weights, strict=True)]
    )


def to_state(digest: Digest, shape: tuple[int, ...]) -> dict[str, Any]:
    """The JSON form that the published merge reads."""
    state: dict[str, Any] = {
        "shape": list(shape),
        "counts": digest.counts.reshape(shape).tolist(),
        "max_buffer": MAX_BUFFER,
        "compression": COMPRESSION,
        "buffers": {"indices": [], "data": []},
        "digests": {"indices": [], "means": [], "weights": []},
    }
    for cell, index in enumerate(np.ndindex(*shape)):
        used = digest.weights[cell] > 0
        means, weights = digest.means[cell][used], digest.weights[cell][used]
        if weights.max(initial=0) <= 1:
            state["buffers"]["indices"].append(list(index))
            state["buffers"]["data"].append(means.tolist())
        else:
            state["digests"]["indices"].append(list(index))
            state["digests"]["means"].append(means.astype(np.float32).tolist())
            state["digests"]["weights"].append(weights.tolist())
    return state


def from_state(state: dict[str, Any]) -> Digest:
    """A digest from its JSON form."""
    shape = tuple(state["shape"])
    cells: list[tuple[list[float], list[int]]] = [([], []) for _ in range(int(np.prod(shape)))]
    buffers, digests = state["buffers"], state["digests"]
    for index, data in zip(buffers["indices"], buffers["data"], strict=True):
        values = sorted(float(value) for value in data)
        cells[int(np.ravel_multi_index(tuple(index), shape))] = (values, [1] * len(values))
    for index, means, weights in zip(
        digests["indices"], digests["means"], digests["weights"], strict=True
    ):
        cells[int(np.ravel_multi_index(tuple(index), shape))] = (means, weights)
    width = max((len(means) for means, _ in cells), default=0)
    all_means = np.full((len(cells), width), np.inf)
    all_weights = np.zeros((len(cells), width), np.int64)
    for cell, (means, weights) in enumerate(cells):
        all_means[cell, : len(means)] = means
        all_weights[cell, : len(weights)] = weights
    return Digest(all_means, all_weights)


def _compress(digest: Digest) -> Digest:
    """Sorts centroids and, above the buffer size, joins neighbours by the arcsine scale."""
    order = np.argsort(digest.means, axis=1, kind="stable")
    means = np.take_along_axis(digest.means, order, axis=1)
    weights = np.take_along_axis(digest.weights, order, axis=1)
    used = int((weights > 0).sum(axis=1).max(initial=0))
    means, weights = means[:, :used], weights[:, :used]
    if weights.sum(axis=1).max(initial=0) <= MAX_BUFFER or used <= _PILE:
        return Digest(means, weights)
    return _join_neighbours(means, weights)


def _join_neighbours(means: Array, weights: Array) -> Digest:
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    middle = (np.cumsum(weights, axis=1) - weights / 2) / total
    scale = np.arcsin(np.clip(2 * middle - 1, -1, 1)) / np.pi + 0.5
    bins = np.minimum((scale * COMPRESSION).astype(np.int64), COMPRESSION - 1)
    rows = np.broadcast_to(np.arange(len(means))[:, None], bins.shape)
    joined_weights = np.zeros((len(means), COMPRESSION), np.int64)
    np.add.at(joined_weights, (rows, bins), weights)
    sums = np.zeros((len(means), COMPRESSION))
    np.add.at(sums, (rows, bins), np.where(weights > 0, means, 0.0) * weights)
    empty = joined_weights == 0
    joined_means = np.where(empty, np.inf, sums / np.maximum(joined_weights, 1))
    order = np.argsort(joined_means, axis=1, kind="stable")
    return Digest(
        np.take_along_axis(joined_means, order, axis=1),
        np.take_along_axis(joined_weights, order, axis=1),
    )


def _cell_quantile(means: Array, weights: Array, q: float) -> float:
    used = weights > 0
    means, weights = means[used], weights[used]
    if len(means) == 0:
        return float("nan")
    # With weights of one this is the centre of each order statistic, so the rule is numpy's.
    centres = np.cumsum(weights) - (weights + 1) / 2
    return float(np.interp(q * (weights.sum() - 1), centres, means))
