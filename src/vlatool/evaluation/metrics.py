"""Metrics of an evaluation, and the confidence interval of a success rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.episode import Array

_Z_95 = 1.959963985


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate.

    Source: reference/policy 4.2.
    """
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    center = rate + _Z_95**2 / (2 * trials)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / trials + _Z_95**2 / (4 * trials**2))
    scale = 1 + _Z_95**2 / trials
    low, high = (center - half) / scale, (center + half) / scale
    return max(low, 0.0), min(high, 1.0)


@dataclass
class AbsoluteErrors:
    """Mean absolute errors per step of a chunk and dimension, accumulated over batches.

    Attributes:
        total: Sums of absolute errors [T, D].
        count: Number of chunks that have a step [T].
    """

    total: Array
    count: Array

    @classmethod
    def of_chunks(cls, steps: int, width: int) -> "AbsoluteErrors":
        """Errors of no chunk, all 0."""
        return cls(np.zeros((steps, width)), np.zeros(steps, np.int64))

    def add(self, predicted: Array, recorded: Array, mask: Array) -> None:
        """Adds the steps of chunks [B, T, D] where `mask` [B, T] is true."""
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
    errors: Mapping[str, AbsoluteErrors], std: Array, constant: Array
) -> dict[str, Any]:
    """Errors of policy and baselines for one field; constant dimensions are left out of means.

    Args:
        errors: Errors of `policy` and of each baseline.
        std: Standard deviation of each dimension over the training data [D].
        constant: Dimensions that never change, bool [D].
    """
    varying = ~constant
    report: dict[str, Any] = {
        "dimensions": len(constant),
        "constant_dimensions": np.flatnonzero(constant).tolist(),
    }
    for name, error in errors.items():
        values, steps = error.mean[varying], error.by_step[:, varying] / std[varying]
        report[name] = {
            "mae": float(values.mean()) if varying.any() else 0.0,
            "normalised_mae": float((values / std[varying]).mean()) if varying.any() else 0.0,
            "normalised_mae_by_step": nan_to_none(steps.mean(axis=1)) if varying.any() else [],
            "mae_per_dimension": error.mean.tolist(),
        }
    if "mean_action" in errors:
        better = errors["policy"].mean[varying] < errors["mean_action"].mean[varying]
        report["dimensions_better_than_mean"] = int(better.sum())
        report["moving_dimensions"] = int(varying.sum())
    return report


def nan_to_none(values: Array) -> list[float | None]:
    """Numbers for a JSON report, with None for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def success_report(successes: Sequence[bool]) -> dict[str, Any]:
    """Success rate and its 95 % confidence interval."""
    low, high = wilson_interval(sum(successes), len(successes))
    return {
        "episodes": len(successes),
        "successes": sum(successes),
        "success_rate": sum(successes) / max(len(successes), 1),
        "confidence_95": [round(low, 4), round(high, 4)],
    }
