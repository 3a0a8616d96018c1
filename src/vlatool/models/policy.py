"""Policies turn observations into action chunks. `RoboticsPolicy` is the policy for robotics data.

`RoboticsPolicy.act` turns each observation into a sample like the training data, asks the network
for normalized chunks, and turns these into absolute commands in physical units.

Legend of shapes: B observations, N images, K images of a camera, P = past + 1 steps, T action
steps, C dimensions.
"""

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from vlatool.checkpoints.contract import Contract, SeenCamera
from vlatool.episode import Array, CameraView, Observation, ObservationSpec, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.base import Batcher
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsAssets
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.models.base import Policy, Rng
from vlatool.models.codebook import true_float32
from vlatool.models.rng import SeededRng
from vlatool.recordings.field_summary import Names, dimension_label
from vlatool.transforms.normalize import has_range, value_range
from vlatool.transforms.relative import (
    SUFFIX,
    absolute_actions,
    groups_with,
    reference_keys,
    relative_actions,
    relative_fields,
    relative_names,
)

# Evaluations of the network per sampled chunk.
DEFAULT_STEPS = 8
# Weight of the first command that is left after the committed ones, and the ratio of each next one.
_FIRST_BLEND = 0.48
_NEXT_BLEND = 0.4
# Side of example images if the policy sees images of any size.
_EXAMPLE_SIDE = 64


class Sampler(Protocol):
    """A network that samples action chunks."""

    def __call__(self, batch: Mapping[str, Any], *, steps: int, rng: Rng) -> Tensor:
        """Returns normalized actions [B, past + T, C] for a batch."""
        ...


class PolicyCall(Protocol):
    """Method of a policy that takes observations, each with a seed, and returns values by name."""

    def __call__(
        self, observations: Sequence[Observation], *, seeds: Sequence[int]
    ) -> Mapping[str, Array]: ...


def in_batches(
    ask: PolicyCall, observations: Sequence[Observation], seeds: Sequence[int], batch_size: int
) -> dict[str, Array]:
    """Returns the answers [B, ...] of a policy, computed in batches of one size.

    A short batch is filled up with its last observation, so the bits of an answer do not depend on
    the number of observations.

    Args:
        ask: Method of the policy.
        observations: B observations.
        seeds: Seed of each observation.
        batch_size: Observations per batch.
    """
    parts: dict[str, list[Array]] = {}
    for start in range(0, len(observations), batch_size):
        rows = [*range(start, min(start + batch_size, len(observations)))]
        filled = rows + rows[-1:] * (batch_size - len(rows))
        answers = ask([observations[row] for row in filled], seeds=[seeds[row] for row in filled])
        for name, values in answers.items():
            parts.setdefault(name, []).append(values[: len(rows)])
    return {name: np.concatenate(values) for name, values in parts.items()}


class RowGroup(NamedTuple):
    """Rows of a batch that are computed together."""

    rows: list[int]
    filled: list[int]  # the rows, filled up to the number of all rows with the last one


def equal_groups(shapes: Sequence[Hashable]) -> list[RowGroup]:
    """Groups the rows of a batch that have equal shapes.

    Each group is filled up to as many rows as the batch has, because another number of rows would
    give other rounding errors.
    """
    rows_by_shape: dict[Hashable, list[int]] = {}
    for row, shape in enumerate(shapes):
        rows_by_shape.setdefault(shape, []).append(row)
    groups: list[RowGroup] = []
    for rows in rows_by_shape.values():
        groups.append(RowGroup(rows, rows + rows[-1:] * (len(shapes) - len(rows))))
    return groups


def example_observation(sees: ObservationSpec, rng: np.random.Generator) -> Observation:
    """A made-up observation with random images and fields."""
    images: dict[str, UInt8Array] = {}
    for name, view in sees.cameras.items():
        size = view.size or (_EXAMPLE_SIDE, _EXAMPLE_SIDE)
        images[name] = rng.integers(0, 256, (len(view.offsets), *size, 3), dtype=np.uint8)
    fields = {name: rng.normal(size=(sees.past + 1, width)) for name, width in sees.fields.items()}
    return Observation(images, fields, "sing" * int(rng.integers(1, 20)))


class ActionUnits:
    """Converts normalized action chunks to errors in physical units, by field and step.

    Leaves out dimensions that never change, and fields that have no other dimensions.
    """

    def __init__(self, data: RoboticsDataConfig, normalizer: Normalizer) -> None:
        past = data.lowdim_past_timesteps
        future = data.lowdim_future_timesteps
        assert past is not None
        assert future is not None
        self._steps = {"first": past, "middle": past + (future + 1) // 2, "last": past + future}
        self._scales: dict[str, Tensor] = {}
        for name in data.action_fields:
            scale = normalizer.scale(name, past + 1 + future)
            varying = np.where(scale.constant, 0.0, scale.scale)
            steps = np.broadcast_to(varying, (past + 1 + future, varying.shape[-1]))
            self._scales[name] = torch.from_numpy(steps.astype(np.float64))

    def errors(
        self, sampled: Tensor, recorded: Tensor, mask: Tensor, real: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Absolute errors `sampled_mae/FIELD/STEP` as [sum, number]; STEP: first, middle, last.

        Args:
            sampled: Sampled chunks, normalized [B, past + T, C of all fields].
            recorded: Recorded chunks, likewise.
            mask: bool [B, past + T], true for steps from the current one on that are not padding.
            real: bool [B, C of all fields], False for padded fields; None: no field is padded.
        """
        if real is None:
            real = torch.ones_like(recorded[:, 0])
        differences = (sampled.double() - recorded.double()).abs()
        sums: dict[str, Tensor] = {}
        start = 0
        for name, scale in self._scales.items():
            dimensions = slice(start, start + scale.shape[-1])
            start = dimensions.stop
            num_varying = int((scale[0] > 0).sum())
            if not num_varying:
                continue
            for label, step in self._steps.items():
                is_counted = mask[:, step].double() * real[:, dimensions.start].double()
                error = differences[:, step, dimensions] * scale[step].to(differences.device)
                total = (error.sum(-1) * is_counted).sum()
                number = is_counted.sum() * num_varying
                sums[f"sampled_mae/{name}/{label}"] = torch.stack([total, number])
        return sums


class RoboticsPolicy(Policy):
    """The policy for robotics data: normalizes inputs and outputs, and converts relative poses."""

    def __init__(
        self,
        sampler: Sampler,  # sampler of action chunks; its networks are in eval mode
        batcher: Batcher,  # converts samples to the batch that the sampler expects
        assets: RoboticsAssets,  # assets of the run
        # device of the networks; None: the GPU if there is one, else the CPU
        device: torch.device | None = None,
    ) -> None:
        data = assets.data
        assert data.lowdim_past_timesteps is not None
        assert data.lowdim_future_timesteps is not None
        self.fps = assets.fps
        self.horizon = data.lowdim_future_timesteps + 1
        self._past = data.lowdim_past_timesteps
        self._length = self._past + self.horizon
        self._data = data
        self._normalizer = assets.normalizer
        self._statistics = assets.statistics
        self._images = assets.images
        self._groups = groups_with(data.action_fields, assets.pose_groups)
        self._seen_groups = groups_with(data.proprioception_fields, assets.pose_groups)
        self._sampler = sampler
        self._batcher = batcher
        default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._device = default if device is None else device
        self._steps = DEFAULT_STEPS
        # Names have no suffix `_relative`.
        self.actions = {name.removesuffix(SUFFIX): self._width(name) for name in data.action_fields}
        self.contract = assets.contract
        self.held = self._held(assets.names)
        cameras = self._seen_cameras(assets.contract)
        self.sees = ObservationSpec(cameras, self._seen_fields(), self._past)

    def _width(self, field: str) -> int:
        return len(self._normalizer.scale(field, 1).constant)

    def _held(self, names: Names) -> dict[str, float]:
        """The recorded value of each dimension that never moved, by its label."""
        held: dict[str, float] = {}
        for field in self._data.action_fields:
            scale = self._normalizer.scale(field, 1)
            for index in np.flatnonzero(scale.constant).tolist():
                label = dimension_label(field, index, len(scale.constant), names)
                held[label] = float(scale.held[index])
        return held

    def _seen_cameras(self, contract: Contract) -> dict[str, CameraView]:
        views: dict[str, CameraView] = {}
        offsets = tuple(self._data.image_indices)
        for name in self._data.cameras:
            seen = contract.cameras.get(name, SeenCamera())
            views[name] = CameraView(offsets, self._images.size, seen.recorded, seen.quarter_turns)
        return views

    def _seen_fields(self) -> dict[str, int]:
        """Widths of measured fields: inputs, and the poses to which actions are relative."""
        relative = {name for group in self._seen_groups for name in relative_names(group)}
        fields: dict[str, int] = {}
        for name in self._data.proprioception_fields:
            if name not in relative:
                fields[name] = self._width(name)
        for group in self._seen_groups:
            position, rotation = reference_keys(group)
            fields |= {group.position_key: 3, group.rotation_key: 6, position: 3, rotation: 6}
        for group in self._groups:
            position, rotation = reference_keys(group)
            fields.setdefault(position, 3)
            fields.setdefault(rotation, 6)
        return fields

    def action_range(self, field: str) -> tuple[Array, Array] | None:
        if field not in self._data.action_fields:  # relative to the measured pose
            raise DataError(
                f"the range of {field!r} in the training data is unknown",
                hint="set `closed` and `opened` of the gripper",
                code="data.unknown_field",
                details={"field": field},
            )
        return self.state_range(field)

    def state_range(self, field: str) -> tuple[Array, Array] | None:
        stats = self._statistics.get(field, {})
        return value_range(stats, field) if has_range(stats) else None

    def with_steps(self, steps: int) -> Self:
        """Returns the policy with `steps` evaluations of the network per chunk."""
        policy = copy(self)
        policy._steps = steps
        return policy

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        """Returns commands by field, float64 [B, T, C], in physical units; see `Policy.act`.

        Poses are absolute; for preprocessed observations they are relative, as in the training
        data.
        """
        chunks = self._predict(observations, seeds)
        actions = {name: chunk[:, self._past :] for name, chunk in chunks.items()}
        if observations[0].is_preprocessed:
            return actions
        actions = absolute_actions(actions, self._measured(observations), self._groups)
        for name in actions:
            if name.endswith(SUFFIX):
                raise DataError(
                    f"no pose group contains {name!r}, so its reference is unknown",
                    hint="add a pose group for it to preprocessing_config.yaml in the run folder",
                    code="data.missing",
                    details={"field": name},
                )
        return actions

    def _measured(self, observations: Sequence[Observation]) -> dict[str, Array]:
        """The newest measured poses, to which actions are relative, [B, 1, C] by field."""
        measured: dict[str, Array] = {}
        for group in self._groups:
            for field in reference_keys(group):
                for observation in observations:
                    if field not in observation.fields:
                        raise DataError(
                            f"actions of the policy are relative to {field!r}, which the "
                            "observation lacks",
                            hint="add it to the observation, or map a key of the environment to it",
                            code="data.unknown_field",
                            details={"field": field},
                        )
                newest = [observation.fields[field][-1:] for observation in observations]
                measured[field] = np.stack(newest)
        return measured

    def _predict(
        self, observations: Sequence[Observation], seeds: Sequence[int]
    ) -> dict[str, Array]:
        """Chunks by action field, float64 [B, past + T, C], in physical units."""
        samples = [self._sample(observation) for observation in observations]
        guidance = [self._guidance(observation) for observation in observations]
        shapes: list[Hashable] = []
        for sample, weights in zip(samples, guidance, strict=True):
            batch = self._batcher([sample])
            kind = None if weights is None else weights.dtype
            shapes.append((kind, *(getattr(value, "shape", None) for value in batch.values())))
        chunks = np.zeros((0,))
        for group in equal_groups(shapes):
            rng = SeededRng([seeds[row] for row in group.filled], self._device)
            sampled = self._sample_chunks(
                [samples[row] for row in group.filled], [guidance[row] for row in group.filled], rng
            )
            if not chunks.size:
                chunks = np.zeros((len(samples), *sampled.shape[1:]), sampled.dtype)
            chunks[group.rows] = sampled[: len(group.rows)]
        commands: dict[str, Array] = {}
        start = 0
        for name in self._data.action_fields:
            stop = start + self._width(name)
            commands[name] = self._normalizer.denormalize(name, chunks[..., start:stop])
            start = stop
        return commands

    def _sample_chunks(
        self,
        samples: Sequence[DecodedSample],
        guidance: Sequence[Array | None],  # of each sample, all of one kind; see `_guidance`
        rng: Rng,
    ) -> Array:
        """Normalized actions [B, past + T, C of all fields] for samples with equal shapes."""
        batch = dict(self._batcher(samples))
        for name, value in batch.items():
            if isinstance(value, Tensor):
                batch[name] = value.to(self._device)
        weights = [row for row in guidance if row is not None]
        if weights:
            name = "given" if weights[0].dtype == np.bool_ else "guidance"
            batch[name] = torch.from_numpy(np.stack(weights)).to(self._device)
        # Equal chunks on all devices, to rounding errors of float32.
        with torch.no_grad(), true_float32(self._device):
            return self._sampler(batch, steps=self._steps, rng=rng).detach().cpu().numpy()

    def _sample(self, observation: Observation) -> DecodedSample:
        """Converts an observation to a sample; unknown actions are 0."""
        names = self._data.action_fields
        past = self._as_trained(observation.past_actions, observation)
        committed = self._as_trained(observation.committed, observation)
        fields = self._inputs(observation)
        for name in names:
            fields[name] = np.zeros((self._length, self._width(name)))
            if past is not None:
                fields[name][: self._past] = past[name]
            if committed is not None:
                values = self._within_data(name, committed[name])
                fields[name][self._past : self._past + len(values)] = values
        mask = np.zeros(self._length, bool)
        if past is not None:
            mask[: self._past] = True if observation.past_mask is None else observation.past_mask
        images, image_mask = self._stacked_images(observation)
        return DecodedSample(
            key="observation",
            images=images,
            fields=fields,
            past_mask=mask,
            future_mask=np.arange(self._length) >= self._past,
            instruction=observation.instruction,
            metadata={},
            image_mask=image_mask,
        )

    def _as_trained(
        self, actions: Mapping[str, Array] | None, observation: Observation
    ) -> Mapping[str, Array] | None:
        """Commands [S, C] with relative poses, as the policy was trained."""
        if actions is None or observation.is_preprocessed:
            return actions
        measured = self._measured([observation])
        newest = {name: values[0] for name, values in measured.items()}
        return relative_actions(actions, newest, self._groups)

    def _within_data(self, field: str, values: Array) -> Array:
        """Committed commands, limited to the range of the training data.

        They guide a chunk, and the network has never seen values outside this range.
        """
        stats = self._statistics[field]
        if not has_range(stats):
            return values
        return np.clip(values, *value_range(stats, field))

    def _guidance(self, observation: Observation) -> Array | None:
        """Weights of the commands that a chunk has to continue.

        Commands that will be executed have the weight 1. The others come from an older observation:
        the new chunk is blended with them at its end, with weights that fall fast. With the weights
        of arXiv 2506.07339, eq. 5, which guide over the whole chunk, a robot lags more: success is
        lower at equal seams (docs/reference/results.md).

        Returns:
            bool [past + T], True for commands that will be executed, if the policy was trained with
            such a delay; else weights float32 [past + T]. None: there is no command to continue.
        """
        delay = observation.delay
        if observation.committed is None:
            return None
        if delay <= self._data.max_delay:
            step = np.arange(self._length) - self._past
            return (step >= 0) & (step < delay)
        count = len(next(iter(observation.committed.values())))
        weights = np.zeros(self._length, np.float32)
        for step in range(delay, count):
            weights[self._past + step] = _FIRST_BLEND * _NEXT_BLEND ** (step - delay)
        weights[self._past : self._past + delay] = 1
        return weights

    def _inputs(self, observation: Observation) -> dict[str, Array]:
        """Proprioception fields [P, C]; relative poses refer to the newest measured pose."""
        fields = dict(observation.fields)
        if not observation.is_preprocessed:
            windows = {name: values[None] for name, values in fields.items()}
            relative = relative_fields(windows, self._seen_groups, self._past)
            fields |= {name: values[0] for name, values in relative.items()}
        return {name: fields[name] for name in self._data.proprioception_fields}

    def _stacked_images(self, observation: Observation) -> tuple[Array, Array | None]:
        """Images uint8 [N, H, W, 3], time outer, camera inner, and mask bool [N] of real ones."""
        images: list[Array] = []
        is_real: list[bool] = []
        for index in range(len(self._data.image_indices)):
            for camera in self._data.cameras:
                image = observation.images[camera][index]
                images.append(
                    self._images.apply(camera, image, is_turned=observation.is_preprocessed)
                )
                mask = observation.image_masks.get(camera)
                is_real.append(mask is None or bool(mask[index]))
        if not images:
            return np.zeros((0, 1, 1, 3), np.uint8), None
        if not observation.image_masks:
            return np.stack(images), None
        return np.stack(images), np.array(is_real)
