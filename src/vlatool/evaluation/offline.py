"""Open-loop errors of a policy and of simple baselines: predicted against recorded action chunks.

Legend of shapes: B samples, T action steps from the current one on, D dimensions of a field.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.control import (
    ImageSizes,
    chunk_seed,
)
from vlatool.events import Progress, counted
from vlatool.loading.base import ActionField, RecordedPairs, Target
from vlatool.models.base import Policy
from vlatool.models.policy import in_batches
from vlatool.recordings.field_summary import dimension_label
from vlatool.results import UNLISTED


@dataclass(frozen=True)
class Point:
    """Recorded and predicted action for one observation, each by field [D]."""

    index: int  # of the pair in the data
    frame: int
    recorded: Mapping[str, Array]
    predicted: Mapping[str, Array]
    # Mean error of the chunk over its steps and all dimensions, in standard deviations; NaN if the
    # chunk has values that are not finite.
    error: float
    # The same error of each baseline: `mean_action`, and `copy_last` where an action came before.
    baselines: Mapping[str, float]


@dataclass(frozen=True)
class EpisodeErrors:
    """Errors of the chunks of one episode."""

    episode: str
    samples: int
    error: float | None  # mean of the chunks; None if no chunk has an error
    # Error of the policy minus error of each baseline, over chunks for which both have one.
    differences: Mapping[str, float]
    points: Sequence[Point] = field(metadata=UNLISTED)  # ascending by frame

    def curves(self, fields: Mapping[str, ActionField]) -> dict[str, tuple[Array, Array]]:
        """Map from each dimension to (recorded [F], predicted [F])."""
        curves: dict[str, tuple[Array, Array]] = {}
        for name, action in fields.items():
            recorded = np.stack([point.recorded[name] for point in self.points])
            predicted = np.stack([point.predicted[name] for point in self.points])
            width = recorded.shape[1]
            for dimension in range(width):
                label = dimension_label(name, dimension, width, {name: action.names})
                curves[label] = (recorded[:, dimension], predicted[:, dimension])
        return curves


BASELINES = {"mean_action": "the mean action", "copy_last": "the last action"}


@dataclass(frozen=True)
class Verdict:
    """Compares the policy with a baseline: mean error over episodes, in standard deviations."""

    baseline: str  # a key of `BASELINES`
    difference: float  # error of the policy minus error of the baseline
    low: float | None  # 95 % interval of the difference over episodes; None of one episode
    high: float | None
    episodes: int

    def text(self) -> str:
        repeated = f"repeating {BASELINES[self.baseline]}"
        word, change = ("better", "lower") if self.difference < 0 else ("worse", "higher")
        size = f"{abs(self.difference):.3f} standard deviations"
        if self.low is None or self.high is None:
            return f"{word} than {repeated}: its error is {size} {change} in the one episode"
        ends = f"{self.low:+.3f} to {self.high:+.3f}, 95 % over {counted(self.episodes, 'episode')}"
        if self.low <= 0 <= self.high:
            return f"neither better nor worse than {repeated}: its error differs by {ends}"
        return f"{word} than {repeated}: its error is {size} {change} ({ends})"


def verdicts(episodes: Sequence[EpisodeErrors]) -> list[Verdict]:
    """Compares the policy with each baseline, with Student's interval over the episodes."""
    from scipy.special import stdtrit

    found: list[Verdict] = []
    for name in BASELINES:
        differences = [row.differences[name] for row in episodes if name in row.differences]
        count = len(differences)
        if not count:
            continue
        mean = float(np.mean(differences))
        low = high = None
        if count > 1:
            half = float(stdtrit(count - 1, 0.975) * np.std(differences, ddof=1) / np.sqrt(count))
            low = mean - half
            high = mean + half
        found.append(Verdict(name, mean, low, high, count))
    return found


@dataclass(frozen=True)
class OpenLoopReport:
    """Errors of an open-loop evaluation."""

    fields: Mapping[str, Mapping[str, Any]]  # map from field name to errors of policy and baselines
    # Mean error over all dimensions, in standard deviations; those of dimensions that never changed
    # in training, which the policy holds, in their own unit.
    overall: Mapping[str, float | None]
    # The same for each step of a chunk, from the current one on [T]; None for a step that no sample
    # has.
    overall_by_step: Mapping[str, Sequence[float | None]]
    samples: int  # number of chunks compared
    invalid: int  # number of these with values that are not finite, for which no command exists
    episodes: Sequence[EpisodeErrors]  # from the worst to the best


def evaluate_open_loop(
    policy: Policy, pairs: RecordedPairs, config: OpenLoopConfig, sizes: ImageSizes, bar: Progress
) -> OpenLoopReport:
    """Predicts an action chunk for each observation and compares it with the recorded one."""
    recorder = _Recorder(pairs.fields)
    count = num_chosen(pairs, config)
    chosen = [number * len(pairs) // count for number in range(count)]
    for start in range(0, count, config.batch_size):
        indices = chosen[start : start + config.batch_size]
        rows = pairs.read(indices)
        for observation, _ in rows:
            sizes.check_observation(observation)
        # The seed of a sample does not depend on which other samples are evaluated.
        seeds = [chunk_seed(config.seed, index) for index in indices]
        observations = [observation for observation, _ in rows]
        predicted = in_batches(policy.act, observations, seeds, config.batch_size)
        recorder.add(indices, [target for _, target in rows], predicted)
        bar.advance(len(rows))
    return recorder.report()


def num_chosen(pairs: RecordedPairs, config: OpenLoopConfig) -> int:
    return min(len(pairs), config.max_samples)


class _Recorder:
    """Accumulator of errors, overall and by episode."""

    def __init__(self, fields: Mapping[str, ActionField]) -> None:
        self._fields = fields
        self._errors: dict[str, dict[str, AbsoluteErrors]] = {}
        self._samples = 0
        self._invalid = 0
        self._points: dict[str, list[Point]] = {}

    def add(
        self, indices: Sequence[int], targets: Sequence[Target], predicted: Mapping[str, Array]
    ) -> None:
        """Adds the pairs at `indices` with their predicted chunks [B, T, D] by field."""
        for name in self._fields:
            if name not in predicted:
                raise DataError(
                    f"the policy does not predict {name!r}; it predicts {', '.join(predicted)}",
                    hint="evaluate it with `vlatool eval rollout`",
                    code="data.unknown_field",
                    details={"field": name, "known": list(predicted)},
                )
        self._samples += len(targets)
        finite = [np.isfinite(predicted[name]).all(axis=(1, 2)) for name in self._fields]
        is_valid = np.all(finite, axis=0)
        self._invalid += int((~is_valid).sum())
        mask = np.stack([target.mask for target in targets]) & is_valid[:, None]
        for name, action in self._fields.items():
            recorded = np.stack([target.actions[name] for target in targets])
            predictions = {
                "policy": (predicted[name], mask),
                "mean_action": (np.broadcast_to(action.mean, recorded.shape), mask),
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
        self._add_points(indices, targets, predicted)

    def report(self) -> OpenLoopReport:
        fields: dict[str, dict[str, Any]] = {}
        for name, errors in self._errors.items():
            fields[name] = field_report(errors, self._fields[name])
        widths = {name: len(field.is_constant) for name, field in self._fields.items()}
        overall: dict[str, float | None] = {}
        overall_by_step: dict[str, Sequence[float | None]] = {}
        predictors: dict[str, None] = {}
        for errors in self._errors.values():
            predictors |= dict.fromkeys(errors)
        for predictor in predictors:
            mean = _mean_over(fields, widths, predictor, "normalised_mae")
            by_step = _mean_over(fields, widths, predictor, "normalised_mae_by_step")
            overall[predictor] = nan_to_none(mean)[0]
            overall_by_step[predictor] = nan_to_none(by_step)
        episodes = [_episode_errors(name, points) for name, points in self._points.items()]
        return OpenLoopReport(
            fields=fields,
            overall=overall,
            overall_by_step=overall_by_step,
            samples=self._samples,
            invalid=self._invalid,
            episodes=sorted(episodes, key=_worst_first),
        )

    def _add_points(
        self, indices: Sequence[int], targets: Sequence[Target], predicted: Mapping[str, Array]
    ) -> None:
        means = {name: action.mean for name, action in self._fields.items()}
        for row, (index, target) in enumerate(zip(indices, targets, strict=True)):
            chunk = {name: predicted[name][row] for name in self._fields}
            baselines = {"mean_action": self._error(means, target)}
            if self._fields.keys() <= target.last.keys():
                baselines["copy_last"] = self._error(target.last, target)
            point = Point(
                index,
                target.frame,
                recorded={name: target.actions[name][0] for name in self._fields},
                predicted={name: values[0] for name, values in chunk.items()},
                error=self._error(chunk, target),
                baselines=baselines,
            )
            self._points.setdefault(target.episode, []).append(point)

    def _error(self, predicted: Mapping[str, Array], target: Target) -> float:
        """Mean error by field, over steps and dimensions of a chunk [T, D] or of an action [D]."""
        errors: list[Array] = []
        for name, action in self._fields.items():
            difference = np.abs(predicted[name] - target.actions[name])
            errors.append(difference[target.mask] / unit_of(action))
        numbers = np.concatenate(errors, axis=1)
        return float(numbers.mean()) if numbers.size else np.nan


def _episode_errors(episode: str, points: Sequence[Point]) -> EpisodeErrors:
    differences: dict[str, float] = {}
    for name in BASELINES:
        mean = _finite_mean(point.error - point.baselines.get(name, np.nan) for point in points)
        if mean is not None:
            differences[name] = mean
    error = _finite_mean(point.error for point in points)
    ordered = sorted(points, key=lambda point: point.frame)
    return EpisodeErrors(episode, len(points), error, differences, ordered)


def _finite_mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values; None if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def _worst_first(errors: EpisodeErrors) -> float:
    return -np.inf if errors.error is None else -errors.error


def _mean_over(
    fields: Mapping[str, Mapping[str, Any]],
    widths: Mapping[str, int],
    predictor: str,
    error: str,
) -> Array:
    """Mean of an error over all dimensions, with equal weights."""
    total = np.zeros(())
    count = 0
    for name, errors in fields.items():
        if predictor in errors:
            total = total + widths[name] * np.asarray(errors[predictor][error], np.float64)
            count += widths[name]
    return np.atleast_1d(total / count)


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
    """Report of the errors of one field; its means are over all dimensions."""
    units = unit_of(field)
    varying = ~field.is_constant
    report: dict[str, Any] = {
        "names": list(field.names),
        "dimensions": len(varying),
        "constant_dimensions": np.flatnonzero(~varying).tolist(),
    }
    for name, error in errors.items():
        report[name] = {
            "mae": float(error.mean.mean()),
            "normalised_mae": float((error.mean / units).mean()),
            "normalised_mae_by_step": nan_to_none((error.by_step / units).mean(axis=1)),
            "mae_per_dimension": error.mean.tolist(),
        }
    if "mean_action" in errors:
        better = errors["policy"].mean[varying] < errors["mean_action"].mean[varying]
        report["dimensions_better_than_mean"] = int(better.sum())
        report["moving_dimensions"] = int(varying.sum())
    return report


def unit_of(field: ActionField) -> Array:
    """Unit [D] of an error: the standard deviation, 1 for dimensions that never change."""
    return np.where(field.is_constant, 1.0, field.std)


def nan_to_none(values: Array) -> list[float | None]:
    """Numbers for a JSON report, with None for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]
