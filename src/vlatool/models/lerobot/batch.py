"""Samples to batches with the names of a policy, statistics of its features, and plans.

Legend of shapes: B samples, n observed steps, T steps of actions, A width of an action, S of the
state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatool.datasets.stats.layout import Statistics
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.shared_memory import stack_rows
from vlatool.models.base import Batch
from vlatool.models.lerobot.config import ACTION, IMAGES, LeRobotPolicyConfig, kind_of
from vlatool.transforms.normalize import constant_dimensions, held_values
from vlatool.transforms.relative import SUFFIX

# Mean and deviation of images, which lerobot-train takes for all cameras.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Statistics of lerobot, and ours.
_NAMES = {
    "mean": "mean",
    "std": "std",
    "min": "min",
    "max": "max",
    "q01": "percentile_1",
    "q99": "percentile_99",
}
_NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


class LeRobotBatcher:
    """Converts samples to a batch; picklable, for loader workers."""

    def __init__(
        self,
        section: LeRobotPolicyConfig,
        data: RoboticsDataConfig,
        observed: Sequence[int] | None,  # observed steps, relative to the current one
        actions: Sequence[int],  # steps of actions, likewise
    ) -> None:
        past = data.lowdim_past_timesteps or 0
        self._cameras = [section.cameras[name] for name in data.cameras]
        self._fields = section.fields
        self._is_single = observed is None  # features have no axis of steps
        self._observed = [past + step for step in observed or (0,)]
        self._actions = [past + step for step in actions]

    def __call__(self, samples: Sequence[DecodedSample]) -> Batch:
        """Stacks samples.

        Returns:
            observation.images.NAME: uint8 [B, n, 3, H, W]. observation.FIELD: float32 [B, n, S].
            Both without n if the policy observes one step. action: float32 [B, T, A].
            action_is_pad: bool [B, T]. task: The instructions.
        """
        batch: Batch = {}
        images = torch.from_numpy(stack_rows([sample.images for sample in samples]))
        for number, feature in enumerate(self._cameras):  # time outer, camera inner
            seen = images[:, number :: len(self._cameras)].permute(0, 1, 4, 2, 3)
            batch[feature] = seen[:, -1] if self._is_single else seen
        for feature, names in self._fields.items():
            if feature == ACTION:
                continue
            values = self._stacked(samples, names, self._observed)
            batch[feature] = values[:, -1] if self._is_single else values
        batch[ACTION] = self._stacked(samples, self._fields[ACTION], self._actions)
        is_real = np.stack([sample.past_mask | sample.future_mask for sample in samples])
        batch["action_is_pad"] = torch.from_numpy(~is_real[:, self._actions])
        batch["task"] = [sample.instruction for sample in samples]
        return batch

    def _stacked(
        self, samples: Sequence[DecodedSample], names: Sequence[str], steps: Sequence[int]
    ) -> Tensor:
        rows: list[Array] = []
        for sample in samples:
            columns = [sample.fields[name][steps] for name in names]
            rows.append(np.concatenate(columns, axis=-1).astype(np.float32))
        return torch.from_numpy(np.stack(rows))


def as_floats(batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The batch on a device, with images float32 between 0 and 1."""
    moved: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            value = value.to(device)
            if value.dtype == torch.uint8:
                value = value.float() / 255
        moved[name] = value
    return moved


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics float32 by feature and name, as `lerobot-train` has them."""

    seen: Mapping[str, Mapping[str, Array]]  # what the preprocessor normalizes with
    commanded: Mapping[str, Mapping[str, Array]]  # what the postprocessor makes commands with


def feature_statistics(
    section: LeRobotPolicyConfig, config: Any, data: RoboticsDataConfig, statistics: Statistics
) -> FeatureStatistics:
    """Statistics of the features of a policy.

    Statistics of fields are over the frames of the data: the current step of all windows. Fields
    with relative poses have the ones of all steps, because at the current step they are 0. A
    dimension that never moved is seen with its value as mean, 1 as deviation and limits 1 around
    it, because lerobot would divide by 1e-8. It is commanded with a deviation of 0: as recorded.

    Raises:
        DataError: A statistic that the policy normalizes with is missing.
    """
    images: dict[str, Array] = {}
    for name, values in IMAGENET.items():
        images[name] = np.array(values, np.float32).reshape(3, 1, 1)
    anchor = data.normalization.lowdim_past_timesteps or 0
    both: list[dict[str, dict[str, Array]]] = []
    for width in (1.0, 0.0):
        result: dict[str, dict[str, Array]] = dict.fromkeys(section.cameras.values(), images)
        for feature, names in section.fields.items():
            parts = [_field_statistics(name, statistics[name], anchor, width) for name in names]
            common = [key for key in parts[0] if all(key in part for part in parts)]
            result[feature] = {}
            for key in common:
                values = np.concatenate([part[key] for part in parts])
                result[feature][key] = values.astype(np.float32)
        both.append(result)
    modes = {
        str(getattr(key, "value", key)): mode for key, mode in config.normalization_mapping.items()
    }
    for feature, entry in both[0].items():
        mode = modes.get(kind_of(feature))
        for name in _NEEDED.get(str(getattr(mode, "value", mode)), ()):
            if name not in entry:
                raise DataError(
                    f"the policy normalizes {feature!r} with {name}, which your statistics lack",
                    hint="compute them with `vlatool stats compute DATA`, or choose another mode "
                    "in model.config.normalization_mapping, such as MEAN_STD",
                    code="data.missing",
                    details={"feature": feature, "key": name},
                )
    return FeatureStatistics(*both)


def _field_statistics(
    name: str, entry: Mapping[str, Any], anchor: int, width: float
) -> dict[str, Array]:
    """Statistics float64 [C] of a field by the names of lerobot.

    `width`: deviation of dimensions that never moved, and distance of their limits.
    """
    constant = constant_dimensions(entry, name)
    center = np.asarray(entry["mean"], np.float64)
    held = held_values(entry, name)
    around = {"mean": held, "std": np.full(center.shape, width)}
    around |= {"min": held - width, "max": held + width, "q01": held - width, "q99": held + width}
    values: dict[str, Array] = {}
    for key, ours in _NAMES.items():
        stored = entry.get(ours)
        by_step = entry.get(f"{ours}_per_timestep")
        if by_step is not None and not name.endswith(SUFFIX):
            stored = np.asarray(by_step[anchor], np.float64)
            if key == "std":  # ours divides by one frame less
                frames = max(int(entry["count"][anchor]), 1)
                stored = stored * np.sqrt((frames - 1) / frames)
        if stored is not None:
            numbers = np.broadcast_to(np.asarray(stored, np.float64), center.shape)
            values[key] = np.where(constant, around[key], numbers)
    return values


def plan(policy: Any, batch: Mapping[str, Any], **options: Any) -> Tensor:
    """Normalized chunks [B, T, A] for a preprocessed batch; the policy remembers nothing.

    A policy with queues of observations gets its history from the axis n of the batch.
    """
    from lerobot.policies.utils import populate_queues  # pyright: ignore[reportMissingImports]

    policy.reset()
    batch = {name: value for name, value in batch.items() if name != ACTION}
    queues = getattr(policy, "_queues", None) or {}
    history = [name for name in queues if name != ACTION]
    if not history:
        return policy.predict_action_chunk(batch, **options)
    cameras = list(policy.config.image_features)
    observed = [
        name for name in batch if kind_of(name) != "ACTION" and isinstance(batch[name], Tensor)
    ]
    observed = [name for name in observed if name in policy.config.input_features]
    step: dict[str, Any] = {}
    for index in range(batch[observed[0]].shape[1]):
        step = {name: batch[name][:, index] for name in observed}
        if cameras:
            stacked = torch.stack([step[name] for name in cameras], dim=-4)
            step[IMAGES.removesuffix(".")] = stacked
        populate_queues(queues, step)
    return policy.predict_action_chunk(step, **options)
