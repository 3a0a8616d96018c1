"""Who acts in an environment: a policy, or a baseline.

A controller sees the observations of several environments at once, so that a policy works in
batches. Legend of shapes: N pictures, P past steps, T action steps, C channels.
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
    """Acts in several environments, told apart by their number."""

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """The action of each environment."""
        ...


class RandomController:
    """Draws actions from the action space."""

    def __init__(self, action_space: Any, seed: int) -> None:
        self._space = action_space
        self._space.seed(seed)

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """A random action each."""
        del instructions
        return {number: self._space.sample() for number in observations}


class HoldController:
    """Commands the first observed value of a key for ever: does nothing."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._first: dict[int, Array] = {}

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """The same action each time."""
        del instructions
        for number, observation in observations.items():
            self._first.setdefault(number, np.array(observation[self._key]))
        return {number: self._first[number] for number in observations}


@dataclass(frozen=True)
class _Step:
    """One planned step: the environment's action, and the policy's commands [C] by field."""

    action: Array
    commands: Mapping[str, Array]


class PolicyController:
    """Samples a chunk, carries out its first steps, samples again."""

    def __init__(self, policy: RoboticsPolicy, config: RolloutConfig, fit: ImageFit) -> None:
        self._policy = policy
        self._fit = fit
        self._config = config
        self._rng = torch.Generator().manual_seed(config.seed)
        self._fields = list(policy.fields)
        self._memories: dict[int, History] = {}
        self._plans: dict[int, deque[_Step]] = {}
        History(policy, fit)  # says at once that the policy cannot act
        self._check()

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """The next action of each plan; plans that ran out are made anew, all in one batch."""
        for number, observation in observations.items():
            if number not in self._memories:
                self._memories[number] = History(self._policy, self._fit)
            self._memories[number].add_observation(self._moment(observation))
        empty = [number for number in observations if not self._plans.get(number)]
        if empty:
            self._replan(empty, instructions)
        return {number: self._next(number) for number in observations}

    def _next(self, number: int) -> Array:
        step = self._plans[number].popleft()
        self._memories[number].add_action(step.commands)
        return step.action

    def _replan(self, numbers: Sequence[int], instructions: Mapping[int, str]) -> None:
        seen = [self._memories[number].observation(instructions[number]) for number in numbers]
        commands = self._policy.act(seen, steps=self._config.inference_steps, rng=self._rng)
        parts = [commands[part.field] * part.scale for part in self._config.action]
        chunks = np.concatenate(parts, axis=-1)[:, : self._config.execute_steps]
        for row, (number, chunk) in enumerate(zip(numbers, chunks, strict=True)):
            self._plans[number] = deque(
                _Step(action, {name: values[row, step] for name, values in commands.items()})
                for step, action in enumerate(chunk)
            )

    def _moment(self, observation: EnvObservation) -> RobotState:
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
        """Makes sure that every field and every action part is mapped."""
        for name in self._fields:
            if name not in self._config.fields:
                raise DataError(
                    f"nothing says which observation gives the field {name!r}",
                    hint=f"set fields.{name}.key, or start from a rollout preset",
                    code="data.unmapped_field",
                    details={"field": name},
                )
        offered = list(self._policy.actions)
        if not self._config.action:
            raise DataError(
                "nothing says how the environment's action is made of the policy's fields",
                hint=f"set action: [{{field: ...}}]; the policy has {', '.join(offered)}",
                code="data.unmapped_action",
            )
        for part in self._config.action:
            if part.field not in offered:
                raise DataError(
                    f"the policy has no action field {part.field!r}",
                    hint=did_you_mean(part.field, offered),
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
    """A value of a nested observation; dots in the key go deeper."""
    value: Any = observation
    for part in [key] if key in observation else key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [str(one) for one in value] if isinstance(value, Mapping) else []
            raise DataError(
                f"the environment's observation has no {key!r}",
                hint=did_you_mean(part, known),
                code="data.unknown_observation",
            )
        value = value[part]
    return np.asarray(value)
