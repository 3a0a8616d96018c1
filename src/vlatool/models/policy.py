"""Trained policy for robotics data: observations to actions in physical units and absolute poses.

Legend of shapes: B observations, N images, P = past + 1 steps, T action steps, C dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlatool.episode import Array, PoseGroup, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.base import Batcher
from vlatool.loading.robotics.decode import DecodedSample
from vlatool.loading.robotics.kind import RoboticsAssets
from vlatool.transforms.relative import SUFFIX, actual_field
from vlatool.transforms.rotations import absolute_pose, relative_pose

_IDENTITY_ROT6D = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Observation:
    """Input of a policy at one step.

    Attributes:
        images: uint8 [N, H, W, 3], time outer, camera inner.
        fields: Map from field name to the last P values [P, C], the newest last.
        instruction: Instruction for the robot.
        past_actions: Map from action field to the last `past` actions [past, C]; relative fields
            are relative to the current pose. None: unknown.
        past_mask: bool [past], False for padded actions; None: no action is padded.
        image_mask: bool [N], False for padded images; None: no image is padded.
    """

    images: UInt8Array
    fields: Mapping[str, Array]
    instruction: str
    past_actions: Mapping[str, Array] | None = None
    past_mask: Array | None = None
    image_mask: Array | None = None


class Sampler(Protocol):
    """A network that samples action chunks."""

    def __call__(self, batch: Mapping[str, Any], *, steps: int, rng: torch.Generator) -> Tensor:
        """Returns normalized actions [B, T, A] of a batch.

        Args:
            batch: Result of the batcher.
            steps: Number of sampling steps, if the network has any.
            rng: Generator of the noise.
        """
        ...


class RoboticsPolicy:
    """A trained policy with its normalization and pose groups.

    Args:
        sampler: Sampler of action chunks; its networks are in eval mode.
        batcher: Converts samples to the batch that the sampler expects.
        assets: Assets of the run.

    Attributes:
        data: Section `data` of the run, derived.
        normalizer: Normalization of the run.
        images: Transform of camera images.
        past: Number of steps before the anchor in an action chunk.
        length: Number of steps in an action chunk, T.
    """

    def __init__(self, sampler: Sampler, batcher: Batcher, assets: RoboticsAssets) -> None:
        data = assets.data
        assert data.lowdim_past_timesteps is not None
        assert data.lowdim_future_timesteps is not None
        self.data = data
        self.normalizer = assets.normalizer
        self.images = assets.images
        self.past = data.lowdim_past_timesteps
        self.length = self.past + 1 + data.lowdim_future_timesteps
        self._sampler = sampler
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batcher = batcher
        groups = assets.pose_groups
        self._groups = [group for group in groups if _is_relative(group, data.action_fields)]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the observed cameras."""
        return tuple(self.data.camera_names)

    @property
    def fields(self) -> dict[str, int]:
        """Observed fields with their widths: inputs of the model, and measured poses for `act`."""
        inputs = {name: self._width(name) for name in self.data.proprioception_fields}
        return {**inputs, **{key: width for key, width in self._references() if key not in inputs}}

    @property
    def actions(self) -> dict[str, int]:
        """Action fields of `act` with their widths; names have no suffix `_relative`."""
        return {name.removesuffix(SUFFIX): self._width(name) for name in self.data.action_fields}

    def _references(self) -> Iterator[tuple[str, int]]:
        for group in self._groups:
            yield actual_field(group.position_key) or group.position_key, 3
            yield actual_field(group.rotation_key) or group.rotation_key, 6

    def _width(self, field: str) -> int:
        return len(self.normalizer.scale(field, 1).constant)

    def predict(
        self, observations: Sequence[Observation], *, steps: int, rng: torch.Generator
    ) -> dict[str, Array]:
        """Returns action chunks by field, float64 [B, T, C], in physical units.

        Poses are relative where the training data are.
        """
        samples = [self._sample(observation) for observation in observations]
        batch = {
            name: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for name, value in self._batcher(samples).items()
        }
        with torch.no_grad():
            actions = self._sampler(batch, steps=steps, rng=rng).detach()
        widths = [samples[0].fields[name].shape[-1] for name in self.data.action_fields]
        parts = np.split(actions.cpu().numpy(), np.cumsum(widths)[:-1], axis=-1)
        return {
            name: self.normalizer.denormalize(name, part)
            for name, part in zip(self.data.action_fields, parts, strict=True)
        }

    def act(
        self, observations: Sequence[Observation], *, steps: int, rng: torch.Generator
    ) -> dict[str, Array]:
        """Returns actions by field from the current step on, float64 [B, T - past, C].

        Poses are absolute.

        Raises:
            DataError: An observation lacks a measured pose that a relative action refers to.
        """
        chunks = self.predict(observations, steps=steps, rng=rng)
        actions = {name: chunk[:, self.past :] for name, chunk in chunks.items()}
        for group in self._groups:
            self._make_absolute(group, actions, observations)
        for name in actions:
            if name.endswith(SUFFIX):
                raise DataError(
                    f"no pose group contains {name!r}, so its reference is unknown",
                    hint="add pose_groups to preprocessing_config.yaml in the run folder",
                    code="data.missing_pose_group",
                    details={"field": name},
                )
        return actions

    def relative_past_actions(
        self, actions: Mapping[str, Array], fields: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Converts earlier actions to `Observation.past_actions`; inverse of `act` for poses.

        Args:
            actions: Map from field name to absolute actions [past, C].
            fields: Observed fields [P, C], including measured poses.
        """
        result = {name: actions[name] for name in self.data.action_fields if name in actions}
        for group in self._groups:
            xyz_now = fields[actual_field(group.position_key) or group.position_key][-1:]
            rot_now = fields[actual_field(group.rotation_key) or group.rotation_key][-1:]
            xyz = actions.get(group.position_key)
            rot = actions.get(group.rotation_key)
            count = len(next(iter(actions.values())))
            relative = relative_pose(
                np.repeat(xyz_now, count, axis=0) if xyz is None else xyz,
                np.repeat(rot_now, count, axis=0) if rot is None else rot,
                xyz_now,
                rot_now,
            )
            keys = (group.position_key + SUFFIX, group.rotation_key + SUFFIX)
            result |= {
                key: values
                for key, values in zip(keys, relative, strict=True)
                if key in self.data.action_fields
            }
        return result

    def _make_absolute(
        self,
        group: PoseGroup,
        actions: dict[str, Array],
        observations: Sequence[Observation],
    ) -> None:
        """Replaces the relative fields of a group by absolute ones.

        If only position or rotation is predicted, the other stays at its measured value.
        """
        position = actions.pop(group.position_key + SUFFIX, None)
        rotation = actions.pop(group.rotation_key + SUFFIX, None)
        predicted = position if position is not None else rotation
        assert predicted is not None
        shape = predicted.shape[:2]
        xyz, rot6d = absolute_pose(
            np.zeros((*shape, 3)) if position is None else position,
            np.broadcast_to(_IDENTITY_ROT6D, (*shape, 6)) if rotation is None else rotation,
            self._reference(group.position_key, observations),
            self._reference(group.rotation_key, observations),
        )
        if position is not None:
            actions[group.position_key] = xyz
        if rotation is not None:
            actions[group.rotation_key] = rot6d

    def _reference(self, key: str, observations: Sequence[Observation]) -> Array:
        """Returns the newest measured value of a field, [B, 1, C]."""
        name = actual_field(key) or key
        for observation in observations:
            if name not in observation.fields:
                raise DataError(
                    f"actions of the policy are relative to {name!r}, which is not observed",
                    hint="map an observation of the environment to this field",
                    code="data.missing_field",
                    details={"field": name},
                )
        return np.stack([observation.fields[name][-1:] for observation in observations])

    def _sample(self, observation: Observation) -> DecodedSample:
        """Converts an observation to a sample; unknown actions are 0."""
        fields = {name: observation.fields[name] for name in self.data.proprioception_fields}
        past_actions = observation.past_actions
        for name in self.data.action_fields:
            values = np.zeros((self.length, self._width(name)))
            if past_actions is not None:
                values[: self.past] = past_actions[name]
            fields[name] = values
        mask = np.zeros(self.length, bool)
        if past_actions is not None:
            mask[: self.past] = True if observation.past_mask is None else observation.past_mask
        return DecodedSample(
            key="observation",
            images=observation.images,
            fields=fields,
            past_mask=mask,
            future_mask=np.arange(self.length) >= self.past,
            instruction=observation.instruction,
            metadata={},
            image_mask=observation.image_mask,
        )


def _is_relative(group: PoseGroup, action_fields: Sequence[str]) -> bool:
    return any(key + SUFFIX in action_fields for key in (group.position_key, group.rotation_key))
