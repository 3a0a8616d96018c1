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
    """Mean absolute errors per dimension, collected over batches.

    Attributes:
        total: Sums [D].
        count: Number of values per dimension.
    """

    total: Array
    count: int = 0

    @classmethod
    def of_width(cls, width: int) -> "AbsoluteErrors":
        """No values yet."""
        return cls(np.zeros(width))

    def add(self, predicted: Array, recorded: Array, mask: Array) -> None:
        """Takes in chunks [B, T, D] where `mask` [B, T] is true."""
        self.total += np.abs(predicted - recorded)[mask].sum(axis=0)
        self.count += int(mask.sum())

    @property
    def mean(self) -> Array:
        """Mean absolute error per dimension [D]."""
        return self.total / max(self.count, 1)


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
        values = error.mean[moving]
        report[name] = {
            "mae": float(values.mean()) if moving.any() else 0.0,
            "normalised_mae": float((values / spread[moving]).mean()) if moving.any() else 0.0,
            "mae_per_dimension": error.mean.tolist(),
        }
    if "mean_action" in errors:
        better = errors["policy"].mean[moving] < errors["mean_action"].mean[moving]
        report["dimensions_better_than_mean"] = int(better.sum())
        report["moving_dimensions"] = int(moving.sum())
    return report


def success_report(successes: Sequence[bool]) -> dict[str, Any]:
    """Rate and confidence interval."""
    low, high = wilson_interval(sum(successes), len(successes))
    return {
        "episodes": len(successes),
        "successes": sum(successes),
        "success_rate": sum(successes) / max(len(successes), 1),
        "confidence_95": [round(low, 4), round(high, 4)],
    }
