"""Figures of an evaluation, and how sure they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.episode import Array

_Z_95 = 1.959963985


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate. Source: Wilson 1927."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    middle = share + _Z_95**2 / (2 * trials)
    spread = _Z_95 * math.sqrt(share * (1 - share) / trials + _Z_95**2 / (4 * trials**2))
    scale = 1 + _Z_95**2 / trials
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return max(low, 0.0), min(high, 1.0)


@dataclass
class AbsoluteErrors:
    """Mean absolute errors per step of a chunk and dimension, collected over batches.

    Attributes:
        total: Sums [T, D].
        count: Number of values of a step, per dimension [T].
    """

    total: Array
    count: Array

    @classmethod
    def of_chunks(cls, steps: int, width: int) -> "AbsoluteErrors":
        """No values yet."""
        return cls(np.zeros((steps, width)), np.zeros(steps, np.int64))

    def add(self, predicted: Array, recorded: Array, mask: Array) -> None:
        """Takes in chunks [B, T, D] where `mask` [B, T] is true."""
        self.total += np.where(mask[..., None], np.abs(predicted - recorded), 0).sum(axis=0)
        self.count += mask.sum(axis=0)

    @property
    def mean(self) -> Array:
        """Mean absolute error per dimension [D]."""
        return self.total.sum(axis=0) / max(int(self.count.sum()), 1)

    @property
    def by_step(self) -> Array:
        """Mean absolute error per step and dimension [T, D]; NaN for a step without any value."""
        means = self.total / np.maximum(self.count, 1)[:, None]
        return np.where(self.count[:, None] > 0, means, np.nan)


def field_report(
    errors: Mapping[str, AbsoluteErrors], spread: Array, constant: Array
) -> dict[str, Any]:
    """Figures of one field: policy and baselines, dimensions that never change left out.

    Args:
        errors: `policy` and each baseline.
        spread: Standard deviation of each dimension over the training data [D].
        constant: bool [D].
    """
    moving = ~constant
    report: dict[str, Any] = {
        "dimensions": len(constant),
        "constant_dimensions": np.flatnonzero(constant).tolist(),
    }
    for name, error in errors.items():
        values, steps = error.mean[moving], error.by_step[:, moving] / spread[moving]
        report[name] = {
            "mae": float(values.mean()) if moving.any() else 0.0,
            "normalised_mae": float((values / spread[moving]).mean()) if moving.any() else 0.0,
            "normalised_mae_by_step": nan_to_none(steps.mean(axis=1)) if moving.any() else [],
            "mae_per_dimension": error.mean.tolist(),
        }
    if "mean_action" in errors:
        better = errors["policy"].mean[moving] < errors["mean_action"].mean[moving]
        report["dimensions_better_than_mean"] = int(better.sum())
        report["moving_dimensions"] = int(moving.sum())
    return report


def nan_to_none(values: Array) -> list[float | None]:
    """Numbers for a report; None for one that is not known."""
    return [None if np.isnan(value) else float(value) for value in values]


def success_report(successes: Sequence[bool]) -> dict[str, Any]:
    """Rate and confidence interval."""
    low, high = wilson_interval(sum(successes), len(successes))
    return {
        "episodes": len(successes),
        "successes": sum(successes),
        "success_rate": sum(successes) / max(len(successes), 1),
        "confidence_95": [round(low, 4), round(high, 4)],
    }
