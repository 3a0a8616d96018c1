"""Open-loop errors of a policy and of simple baselines: predicted against recorded action chunks.

Legend of shapes: B samples, T action steps from the current one on, D dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.fields import dimension_label
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.control import ResizeLog, act_in_batches, chunk_seed
from vlatool.events import Progress
from vlatool.loading.base import ActionField, RecordedPairs, Target
from vlatool.models.policy import Policy

_CURVES = 6


@dataclass(frozen=True)
class OpenLoopReport:
    """Errors of an open-loop evaluation."""

    fields: Mapping[str, Mapping[str, Any]]  # map from field name to errors of policy and baselines
    # Mean error over all dimensions that are not constant, in standard deviations; None if all are.
    overall: Mapping[str, float | None]
    # The same for each step of a chunk, from the current one on [T]; None for a step that no sample
    # has, [None] if all dimensions are constant.
    overall_by_step: Mapping[str, Sequence[float | None]]
    samples: int  # number of chunks compared
    invalid: int  # number of these with values that are not finite, for which no command exists
    # Map from dimension to (recorded [F], predicted [F]) of the first episode.
    curves: Mapping[str, tuple[Array, Array]]
    frames: Array  # frame of each point of a curve, ascending, int [F]
    episode: str  # id of the first episode


def evaluate_open_loop(
    policy: Policy, pairs: RecordedPairs, config: OpenLoopConfig, log: ResizeLog, bar: Progress
) -> OpenLoopReport:
    """Predicts an action chunk for each observation and compares it with the recorded one;
    `config`: number of samples, batch size and seed.
    """
    recorder = _Recorder(pairs.fields)
    count = num_chosen(pairs, config)
    chosen = [number * len(pairs) // count for number in range(count)]
    for start in range(0, count, config.batch_size):
        indices = chosen[start : start + config.batch_size]
        rows = pairs.read(indices)
        for observation, _ in rows:
            log.add_observation(observation)
        # The seed of a sample does not depend on which other samples are evaluated.
        seeds = [chunk_seed(config.seed, index) for index in indices]
        observations = [observation for observation, _ in rows]
        predicted = act_in_batches(policy, observations, seeds, config.batch_size)
        recorder.add([target for _, target in rows], predicted)
        bar.advance(len(rows))
    return recorder.report()


def num_chosen(pairs: RecordedPairs, config: OpenLoopConfig) -> int:
    """Number of samples to evaluate."""
    return min(len(pairs), config.max_samples)


class _Recorder:
    """Accumulator of errors and of the curves of the first episode."""

    def __init__(self, fields: Mapping[str, ActionField]) -> None:
        self._fields = fields
        self._errors: dict[str, dict[str, AbsoluteErrors]] = {}
        self._samples = 0
        self._invalid = 0
        self._episode = ""
        self._curve: list[tuple[int, dict[str, Array], dict[str, Array]]] = []

    def add(self, targets: Sequence[Target], predicted: Mapping[str, Array]) -> None:
        """Adds a batch with its predicted chunks [B, T, D] by field."""
        for name in self._fields:
            if name not in predicted:
                raise DataError(
                    f"the policy does not predict {name!r}, but {', '.join(predicted)}",
                    hint="evaluate it with `vlatool eval rollout`",
                    code="data.unknown_field",
                    details={"field": name, "known": list(predicted)},
                )
        self._samples += len(targets)
        finite = [np.isfinite(predicted[name]).all(axis=(1, 2)) for name in self._fields]
        is_valid = np.all(finite, axis=0)
        self._invalid += int((~is_valid).sum())
        mask = np.stack([target.mask for target in targets]) & is_valid[:, None]
        for name, field in self._fields.items():
            recorded = np.stack([target.actions[name] for target in targets])
            predictions = {
                "policy": (predicted[name], mask),
                "mean_action": (np.broadcast_to(field.mean, recorded.shape), mask),
            }
            knows_last = np.array([name in target.last for target in targets])
            if knows_last.any():
                nothing = np.zeros(recorded.shape[-1])
                last = np.stack([target.last.get(name, nothing) for target in targets])
                repeated = np.broadcast_to(last[:, None], recorded.shape)
                predictions["copy_last"] = (repeated, mask & knows_last[:, None])
            for predictor, (values, counted_steps) in predictions.items():
                errors = self._errors.setdefault(name, {})
                empty = AbsoluteErrors.of_chunks(*recorded.shape[1:])
                errors.setdefault(predictor, empty).add(values, recorded, counted_steps)
        self._add_curve_points(targets, predicted)

    def report(self) -> OpenLoopReport:
        """Report over all samples so far."""
        fields = {
            name: field_report(errors, self._fields[name]) for name, errors in self._errors.items()
        }
        varying = {name: int((~field.is_constant).sum()) for name, field in self._fields.items()}
        predictors = dict.fromkeys(name for errors in self._errors.values() for name in errors)
        return OpenLoopReport(
            fields=fields,
            overall={
                name: nan_to_none(_mean_over(fields, varying, name, ""))[0] for name in predictors
            },
            overall_by_step={
                name: nan_to_none(_mean_over(fields, varying, name, "_by_step"))
                for name in predictors
            },
            samples=self._samples,
            invalid=self._invalid,
            curves=self._curves(),
            frames=np.array(sorted(row[0] for row in self._curve)),
            episode=self._episode,
        )

    def _add_curve_points(self, targets: Sequence[Target], predicted: Mapping[str, Array]) -> None:
        """Stores the action at the step of each observation of the first episode."""
        for index, target in enumerate(targets):
            self._episode = self._episode or target.episode
            if target.episode == self._episode:
                recorded = {name: target.actions[name][0] for name in self._fields}
                point = {name: predicted[name][index, 0] for name in self._fields}
                self._curve.append((target.frame, recorded, point))

    def _curves(self) -> dict[str, tuple[Array, Array]]:
        """Curves of the dimensions that vary most in the first episode."""
        rows = sorted(self._curve, key=lambda row: row[0])
        curves: dict[str, tuple[Array, Array]] = {}
        variation: dict[str, float] = {}
        for name, field in self._fields.items():
            recorded = np.stack([row[1][name] for row in rows])
            predicted = np.stack([row[2][name] for row in rows])
            width = recorded.shape[1]
            for dimension in range(width):
                label = dimension_label(name, dimension, width, {name: field.names})
                variation[label] = recorded[:, dimension].std() / field.std[dimension]
                curves[label] = (recorded[:, dimension], predicted[:, dimension])
        chosen = sorted(curves, key=lambda label: -variation[label])[:_CURVES]
        return {label: curves[label] for label in sorted(chosen, key=list(curves).index)}


def _mean_over(
    fields: Mapping[str, Mapping[str, Any]],
    varying: Mapping[str, int],
    predictor: str,
    suffix: str,
) -> Array:
    """Mean normalized error over all dimensions that vary, with equal weights; NaN without any."""
    rows = {
        name: np.asarray(errors[predictor][f"normalised_mae{suffix}"], np.float64)
        for name, errors in fields.items()
        if predictor in errors and varying[name]
    }
    total = sum((varying[name] * row for name, row in rows.items()), start=np.zeros(()))
    return np.atleast_1d(total / (sum(varying[name] for name in rows) or np.nan))


@dataclass
class AbsoluteErrors:
    """Mean absolute errors per step of a chunk and dimension, accumulated over batches."""

    total: Array  # sums of absolute errors [T, D]
    count: Array  # number of chunks that have a step [T]

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


def field_report(errors: Mapping[str, AbsoluteErrors], field: ActionField) -> dict[str, Any]:
    """Errors of policy and baselines for one field; constant dimensions are left out of means.

    Means of a field that is constant as a whole are None.
    """
    std, varying = field.std, ~field.is_constant
    report: dict[str, Any] = {
        "names": list(field.names),
        "dimensions": len(varying),
        "constant_dimensions": np.flatnonzero(~varying).tolist(),
    }
    for name, error in errors.items():
        values, steps = error.mean[varying], error.by_step[:, varying] / std[varying]
        report[name] = {
            "mae": float(values.mean()) if varying.any() else None,
            "normalised_mae": float((values / std[varying]).mean()) if varying.any() else None,
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
