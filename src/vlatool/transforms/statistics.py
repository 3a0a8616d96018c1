"""Statistics of windowed fields, mergeable, one vectorised pass per episode.

Legend of shapes: N windows, T steps, C channels. Only valid (unpadded) rows count. A merge in a
fixed order gives the same bits whatever process computed the parts. Source: lbm-data 3.12.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.transforms.quantiles import (
    Digest,
    digest_of,
    merge_digests,
    pool_cells,
    quantile,
    to_state,
)

PERCENTILES = (1, 2, 5, 95, 98, 99)


@dataclass(frozen=True)
class FieldStatistics:
    """Partial statistics of one field.

    Attributes:
        count: Valid rows per step, int64 [T].
        mean: float64 [T, C].
        m2: Sum of squared deviations from the mean, float64 [T, C].
        minimum: float64 [T, C], +inf where `count` is 0.
        maximum: float64 [T, C], -inf where `count` is 0.
        digest: T*C cells.
    """

    count: Array
    mean: Array
    m2: Array
    minimum: Array
    maximum: Array
    digest: Digest


def field_statistics(values: Array, valid: Array) -> FieldStatistics:
    """Statistics of windows [N, T, C] whose rows count where `valid` [N, T] is true."""
    values = values.astype(np.float64)
    weight = valid[..., None]
    count = valid.sum(axis=0)
    divisor = np.maximum(count, 1)[:, None]
    mean = np.where(weight, values, 0.0).sum(axis=0) / divisor
    m2 = np.where(weight, (values - mean) ** 2, 0.0).sum(axis=0)
    cells = values.transpose(1, 2, 0).reshape(-1, len(values))
    cell_valid = np.repeat(valid.T, values.shape[2], axis=0)
    return FieldStatistics(
        count=count,
        mean=mean,
        m2=m2,
        minimum=np.where(weight, values, np.inf).min(axis=0, initial=np.inf),
        maximum=np.where(weight, values, -np.inf).max(axis=0, initial=-np.inf),
        digest=digest_of(cells, cell_valid),
    )


def merge(left: FieldStatistics, right: FieldStatistics) -> FieldStatistics:
    """Statistics of everything both sides have seen."""
    total = left.count + right.count
    divisor = np.maximum(total, 1)[:, None]
    delta = right.mean - left.mean
    share = (right.count / np.maximum(total, 1))[:, None]
    return FieldStatistics(
        count=total,
        mean=left.mean + delta * share,
        m2=left.m2 + right.m2 + delta**2 * (left.count * right.count)[:, None] / divisor,
        minimum=np.minimum(left.minimum, right.minimum),
        maximum=np.maximum(left.maximum, right.maximum),
        digest=merge_digests([left.digest, right.digest]),
    )


def summary(stats: FieldStatistics) -> dict[str, Any]:
    """The published JSON entry of a field: plain lists, null where there is no value."""
    steps, channels = stats.mean.shape
    count = stats.count[:, None]
    total = max(int(stats.count.sum()), 1)
    variance = stats.m2 / np.maximum(count - 1, 1)
    mean = (stats.mean * count).sum(axis=0) / total
    spread = (variance * count).sum(axis=0) + (count * (stats.mean - mean) ** 2).sum(axis=0)
    pooled = pool_cells(stats.digest, channels)
    entry: dict[str, Any] = {
        "count": stats.count.tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(spread / total).tolist(),
        "min": plain(stats.minimum.min(axis=0)),
        "max": plain(stats.maximum.max(axis=0)),
        "mean_per_timestep": stats.mean.tolist(),
        "std_per_timestep": np.sqrt(variance).tolist(),
        "min_per_timestep": plain(stats.minimum),
        "max_per_timestep": plain(stats.maximum),
    }
    for percent in PERCENTILES:
        entry[f"percentile_{percent}"] = plain(quantile(pooled, percent / 100))
        per_step = quantile(stats.digest, percent / 100).reshape(steps, channels)
        entry[f"percentile_{percent}_per_timestep"] = plain(per_step)
    entry["percentile_sample_count"] = stats.count.tolist()
    entry["tdigest_state"] = to_state(pooled, (channels,))
    entry["tdigest_state_per_timestep"] = to_state(stats.digest, (steps, channels))
    return entry


def plain(values: Array) -> list[Any]:
    """Nested lists with None in place of NaN and infinities, so that JSON stays strict."""
    boxed = values.astype(object)
    boxed[~np.isfinite(values)] = None
    return boxed.tolist()
