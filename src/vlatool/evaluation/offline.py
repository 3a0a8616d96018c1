"""Open-loop errors of a policy and of simple baselines: predicted against recorded action chunks.

Legend of shapes: B samples, T action steps from the current one on, D dimensions of a field.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vlatool.artifacts.shards.dimensions import dimension_label, dimension_names
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.history import ImageFit
from vlatool.evaluation.metrics import AbsoluteErrors, field_report, nan_to_none
from vlatool.evaluation.trained_policy import TrainedPolicy
from vlatool.events import Progress
from vlatool.loading.dataset import SampleDataset
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.augmentation import AugmentationConfig
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import DecodedSample
from vlatool.loading.robotics.info import RoboticsInfo
from vlatool.loading.robotics.kind import RoboticsAssets
from vlatool.loading.robotics.reader import RoboticsReader
from vlatool.models.policy import Observation, RoboticsPolicy

_CURVES = 6


@dataclass(frozen=True)
class OpenLoopReport:
    """Errors of an open-loop evaluation.

    Attributes:
        fields: Map from field name to errors of policy and baselines.
        overall: Mean error over all dimensions that are not constant, in standard deviations.
        overall_by_step: The same for each step of a chunk, from the current one on [T]; None for
            a step that no sample has.
        samples: Number of chunks compared.
        curves: Map from dimension to (recorded [F], predicted [F]) of the first episode.
        frames: Frame of each point of a curve, ascending, int [F].
        episode: Id of the first episode.
    """

    fields: Mapping[str, Mapping[str, Any]]
    overall: Mapping[str, float]
    overall_by_step: Mapping[str, Sequence[float | None]]
    samples: int
    curves: Mapping[str, tuple[Array, Array]]
    frames: Array
    episode: str


def evaluate_open_loop(
    trained: TrainedPolicy,
    info: RoboticsInfo,
    config: OpenLoopConfig,
    fit: ImageFit,
    bar: Progress,
) -> OpenLoopReport:
    """Predicts an action chunk for each sample and compares it with the recorded one.

    Args:
        trained: Policy to evaluate.
        info: Info of the data.
        config: Number of samples, batch size and seed.
        fit: Preprocessing of the images.
        bar: Progress over samples; there are `num_chosen`.
    """
    policy = trained.policy
    recorder = _Recorder(policy, trained.assets)
    rng = torch.Generator().manual_seed(config.seed)
    for samples in _batches(policy.data, info, config):
        observations = [_observation(policy, sample, fit) for sample in samples]
        predicted = policy.predict(observations, steps=config.inference_steps, rng=rng)
        recorder.add(samples, predicted)
        bar.advance(len(samples))
    return recorder.report()


def num_chosen(info: RoboticsInfo, config: OpenLoopConfig) -> int:
    """Number of samples to evaluate."""
    return min(info.num_samples, config.max_samples)


class _Recorder:
    """Accumulator of errors and of the curves of the first episode."""

    def __init__(self, policy: RoboticsPolicy, assets: RoboticsAssets) -> None:
        self._policy = policy
        self._statistics = assets.statistics
        self._names = assets.names
        self._errors: dict[str, dict[str, AbsoluteErrors]] = {}
        self._samples = 0
        self._episode = ""
        self._curve: list[tuple[int, dict[str, Array], dict[str, Array]]] = []

    def add(self, samples: Sequence[DecodedSample], predicted: Mapping[str, Array]) -> None:
        """Adds a batch with its predicted chunks [B, past + T, D] by field."""
        policy = self._policy
        self._samples += len(samples)
        mask = np.stack([_window(sample, policy)[1] for sample in samples])
        for name in policy.data.action_fields:
            windows = np.stack([_window(sample, policy)[0][name] for sample in samples])
            recorded = windows[:, policy.past :]
            predictions = {
                "policy": predicted[name][:, policy.past :],
                "mean_action": self._mean(name, recorded),
            }
            current = _extra(samples[0], policy) + policy.past
            if current > 0:
                last = np.stack([sample.fields[name][current - 1] for sample in samples])
                predictions["copy_last"] = np.broadcast_to(last[:, None], recorded.shape)
            for predictor, values in predictions.items():
                errors = self._errors.setdefault(name, {})
                empty = AbsoluteErrors.of_chunks(*recorded.shape[1:])
                errors.setdefault(predictor, empty).add(values, recorded, mask)
        self._add_curve_points(samples, predicted)

    def report(self) -> OpenLoopReport:
        """Report over all samples so far."""
        fields: dict[str, dict[str, Any]] = {}
        varying: dict[str, int] = {}
        for name, errors in self._errors.items():
            constant = self._policy.normalizer.constant([name])
            std = np.maximum(np.asarray(self._statistics[name]["std"]), 1e-9)
            names = dimension_names(name, len(constant), self._names)
            fields[name] = {"names": names, **field_report(errors, std, constant)}
            varying[name] = int((~constant).sum())
        predictors = dict.fromkeys(name for errors in self._errors.values() for name in errors)
        return OpenLoopReport(
            fields=fields,
            overall={name: float(_mean_over(fields, varying, name, "")) for name in predictors},
            overall_by_step={
                name: nan_to_none(np.atleast_1d(_mean_over(fields, varying, name, "_by_step")))
                for name in predictors
            },
            samples=self._samples,
            curves=self._curves(),
            frames=np.array(sorted(row[0] for row in self._curve)),
            episode=self._episode,
        )

    def _mean(self, name: str, recorded: Array) -> Array:
        """Mean of a field over the training data, as chunks [B, T, D]."""
        return np.broadcast_to(np.asarray(self._statistics[name]["mean"]), recorded.shape)

    def _add_curve_points(
        self, samples: Sequence[DecodedSample], predicted: Mapping[str, Array]
    ) -> None:
        """Stores the action at the anchor of each sample of the first episode."""
        past = self._policy.past
        for index, sample in enumerate(samples):
            self._episode = self._episode or str(sample.metadata["episode_id"])
            if sample.metadata["episode_id"] == self._episode:
                window = _window(sample, self._policy)[0]
                self._curve.append(
                    (
                        int(sample.metadata["anchor_timestep"]),
                        {name: window[name][past] for name in self._policy.data.action_fields},
                        {name: values[index, past] for name, values in predicted.items()},
                    )
                )

    def _curves(self) -> dict[str, tuple[Array, Array]]:
        """Curves of the dimensions that vary most in the first episode."""
        rows = sorted(self._curve, key=lambda row: row[0])
        curves: dict[str, tuple[Array, Array]] = {}
        variation: dict[str, float] = {}
        for name in self._policy.data.action_fields:
            recorded = np.stack([row[1][name] for row in rows])
            predicted = np.stack([row[2][name] for row in rows])
            std = np.maximum(np.asarray(self._statistics[name]["std"]), 1e-9)
            for dimension in range(recorded.shape[1]):
                label = dimension_label(name, dimension, recorded.shape[1], self._names)
                variation[label] = recorded[:, dimension].std() / std[dimension]
                curves[label] = (recorded[:, dimension], predicted[:, dimension])
        chosen = sorted(curves, key=lambda label: -variation[label])[:_CURVES]
        return {label: curves[label] for label in sorted(chosen, key=list(curves).index)}


def _mean_over(
    fields: Mapping[str, Mapping[str, Any]],
    varying: Mapping[str, int],
    predictor: str,
    suffix: str,
) -> Array:
    """Mean normalized error over all dimensions that are not constant, with equal weights."""
    rows = {
        name: np.asarray(errors[predictor][f"normalised_mae{suffix}"], np.float64)
        for name, errors in fields.items()
        if predictor in errors and varying[name]
    }
    total = sum((varying[name] * row for name, row in rows.items()), start=np.zeros(()))
    return total / max(sum(varying[name] for name in rows), 1)


def _batches(
    data: RoboticsDataConfig, info: RoboticsInfo, config: OpenLoopConfig
) -> Iterator[list[DecodedSample]]:
    """Yields evenly spaced samples with all their past steps, so that the last action is known."""
    # No random crops; weights are those of the training data sets.
    changes = {
        "lowdim_past_timesteps": info.past,
        "augmentation": AugmentationConfig(),
        "dataset_weighting": [],
    }
    whole = data.model_copy(update=changes)
    order = SampleOrder(info.datasets, OrderOptions(config.seed, shuffle=False))
    samples = SampleDataset(whole, info, order, RoboticsReader(whole, info))
    count = num_chosen(info, config)
    chosen = [number * order.size // count for number in range(count)]
    for start in range(0, len(chosen), config.batch_size):
        yield samples.__getitems__(chosen[start : start + config.batch_size])


def _window(sample: DecodedSample, policy: RoboticsPolicy) -> tuple[dict[str, Array], Array]:
    """Action fields cropped to the policy's window, and the mask of its future steps."""
    first = _extra(sample, policy)
    fields = {name: sample.fields[name][first:] for name in policy.data.action_fields}
    return fields, sample.future_mask[first + policy.past :]


def _extra(sample: DecodedSample, policy: RoboticsPolicy) -> int:
    """Number of steps of the sample before the policy's window."""
    extra = len(sample.future_mask) - policy.length
    if extra < 0:
        raise DataError(
            f"sample {sample.key} has {len(sample.future_mask)} steps, the policy needs "
            f"{policy.length}",
            hint="preprocess the data with the window sizes that the policy was trained on",
            code="data.window_too_large",
        )
    return extra


def _observation(policy: RoboticsPolicy, sample: DecodedSample, fit: ImageFit) -> Observation:
    first = _extra(sample, policy)
    end = first + policy.past + 1
    names = policy.data.proprioception_fields
    past = slice(first, first + policy.past)
    return Observation(
        images=_fitted(policy, sample.images, fit),
        fields={name: sample.fields[name][first:end] for name in names},
        instruction=sample.instruction,
        past_actions={name: sample.fields[name][past] for name in policy.data.action_fields},
        past_mask=sample.past_mask[past],
        image_mask=sample.image_mask,
    )


def _fitted(policy: RoboticsPolicy, images: UInt8Array, fit: ImageFit) -> UInt8Array:
    """Images uint8 [N, H, W, 3], time outer, camera inner, as the policy takes them."""
    cameras = policy.data.camera_names
    fitted = [
        fit.fit(cameras[index % len(cameras)], image, is_turned=True)
        for index, image in enumerate(images)
    ]
    return np.stack(fitted) if fitted else images
