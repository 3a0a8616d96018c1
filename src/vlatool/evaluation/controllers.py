"""Controllers that act in environments: a policy, and baselines.

A controller gets the observations of several environments at once, so that a policy can run on
batches. Legend of shapes: C dimensions of a field.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.config import FieldMap, RolloutConfig
from vlatool.evaluation.history import History, ImageFit, RobotState
from vlatool.models.policy import RoboticsPolicy
from vlatool.plugins import did_you_mean

EnvObservation = Mapping[str, Any]


class Controller(Protocol):
    """Source of actions for several environments, which are identified by their number."""

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the action of each environment."""
        ...


class RandomController:
    """Controller that samples actions from the action space."""

    def __init__(self, action_space: Any, seed: int) -> None:
        self._space = action_space
        self._space.seed(seed)

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns a random action for each environment."""
        del instructions
        return {number: self._space.sample() for number in observations}


class HoldController:
    """Controller that does nothing: its action is always the first observed value of a key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._first: dict[int, Array] = {}

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the same action at each step."""
        del instructions
        for number, observation in observations.items():
            self._first.setdefault(number, np.array(observation[self._key]))
        return {number: self._first[number] for number in observations}


@dataclass(frozen=True)
class _Step:
    """Step of a chunk: the environment's action, and the policy's actions by field [C]."""

    action: Array
    fields: Mapping[str, Array]


class PolicyController:
    """Controller that samples an action chunk, executes its first steps and samples again."""

    def __init__(self, policy: RoboticsPolicy, config: RolloutConfig, fit: ImageFit) -> None:
        self._policy = policy
        self._fit = fit
        self._config = config
        self._rng = torch.Generator().manual_seed(config.seed)
        self._fields = list(policy.fields)
        self._histories: dict[int, History] = {}
        self._chunks: dict[int, deque[_Step]] = {}
        History(policy, fit)  # raises early if the policy takes future images
        self._check()

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the next action of each chunk; samples the chunks that ran out in one batch."""
        for number, observation in observations.items():
            if number not in self._histories:
                self._histories[number] = History(self._policy, self._fit)
            self._histories[number].add_observation(self._robot_state(observation))
        empty = [number for number in observations if not self._chunks.get(number)]
        if empty:
            self._sample_chunks(empty, instructions)
        return {number: self._next(number) for number in observations}

    def _next(self, number: int) -> Array:
        step = self._chunks[number].popleft()
        self._histories[number].add_action(step.fields)
        return step.action

    def _sample_chunks(self, numbers: Sequence[int], instructions: Mapping[int, str]) -> None:
        inputs = [self._histories[number].observation(instructions[number]) for number in numbers]
        fields = self._policy.act(inputs, steps=self._config.inference_steps, rng=self._rng)
        parts = [fields[part.field] * part.scale for part in self._config.action]
        chunks = np.concatenate(parts, axis=-1)[:, : self._config.execute_steps]
        for row, (number, chunk) in enumerate(zip(numbers, chunks, strict=True)):
            self._chunks[number] = deque(
                _Step(action, {name: values[row, step] for name, values in fields.items()})
                for step, action in enumerate(chunk)
            )

    def _robot_state(self, observation: EnvObservation) -> RobotState:
        return RobotState(
            images={name: self._image(observation, name) for name in self._policy.cameras},
            fields={name: self._field(observation, name) for name in self._fields},
        )

    def _image(self, observation: EnvObservation, camera: str) -> Array:
        image = _lookup(observation, self._config.cameras.get(camera, camera))
        return image[::-1] if camera in self._config.flipped_cameras else image

    def _field(self, observation: EnvObservation, name: str) -> Array:
        source = self._config.fields[name]
        if source.constant is not None:
            return np.asarray(source.constant, np.float64)
        values = np.ravel(_lookup(observation, _key(source, name)))
        return values[source.start : source.stop].astype(np.float64) * source.scale

    def _check(self) -> None:
        """Raises DataError if a field of the policy or a part of the action is not mapped."""
        for name in self._fields:
            if name not in self._config.fields:
                raise DataError(
                    f"the field {name!r} of the policy is mapped to no observation key",
                    hint=f"set fields.{name}.key, or use a rollout preset",
                    code="data.unmapped_field",
                    details={"field": name},
                )
        available = list(self._policy.actions)
        if not self._config.action:
            raise DataError(
                "the action of the environment is mapped to no field of the policy",
                hint=f"set action: [{{field: ...}}]; the policy has {', '.join(available)}",
                code="data.unmapped_action",
            )
        for part in self._config.action:
            if part.field not in available:
                raise DataError(
                    f"the policy has no action field {part.field!r}",
                    hint=did_you_mean(part.field, available),
                    code="data.unknown_field",
                )


def _key(source: FieldMap, name: str) -> str:
    if source.key is None:
        raise DataError(
            f"fields.{name} has neither key nor constant",
            hint="give the key of the observation",
            code="data.unmapped_field",
        )
    return source.key


def _lookup(observation: EnvObservation, key: str) -> Array:
    """Value of a nested observation; dots separate nested keys."""
    value: Any = observation
    for part in [key] if key in observation else key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [str(name) for name in value] if isinstance(value, Mapping) else []
            raise DataError(
                f"the environment's observation has no key {key!r}",
                hint=did_you_mean(part, known),
                code="data.unknown_observation",
            )
        value = value[part]
    return np.asarray(value)
