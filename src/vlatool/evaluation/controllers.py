"""Controllers that act in environments: a policy, and baselines.

A controller gets the observations of several environments at once, so that a policy can run on
batches.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.config import FieldMap, RolloutConfig
from vlatool.evaluation.control import EpisodeControl, ResizeLog, RobotState, begin_chunks
from vlatool.models.policy import Policy
from vlatool.plugins import did_you_mean

EnvObservation = Mapping[str, Any]


class Controller(Protocol):
    """Source of actions for the environments of several episodes, identified by their seeds."""

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
        return {seed: self._space.sample() for seed in observations}


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
        for seed, observation in observations.items():
            self._first.setdefault(seed, np.array(observation[self._key]))
        return {seed: self._first[seed] for seed in observations}


class PolicyController:
    """Controller that samples an action chunk, executes its first steps and samples again.

    Raises:
        DataError: A field of the policy or a part of the action is not mapped.
    """

    def __init__(self, policy: Policy, config: RolloutConfig, log: ResizeLog) -> None:
        self._policy = policy
        self._sees = policy.sees
        self._log = log
        self._config = config
        self._episodes: dict[int, EpisodeControl] = {}
        self._check()

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the next action of each chunk; samples the chunks that ran out together."""
        for seed, observation in observations.items():
            if seed not in self._episodes:
                self._episodes[seed] = EpisodeControl(self._policy, seed, self._log)
            self._episodes[seed].observe(self._robot_state(observation))
        steps = min(self._config.execute_steps, self._policy.horizon)
        due = [
            seed
            for seed in observations
            if not self._episodes[seed].chunk or self._episodes[seed].num_executed >= steps
        ]
        if due:
            # Sorted, so that a batch has few lengths of instructions; no chunk depends on it.
            due.sort(key=lambda seed: instructions[seed])
            begin_chunks(
                self._policy,
                [self._episodes[seed] for seed in due],
                [instructions[seed] for seed in due],
                self._config.batch_size,
            )
        return {seed: self._next_action(self._episodes[seed]) for seed in observations}

    def _next_action(self, episode: EpisodeControl) -> Array:
        step = episode.num_executed
        parts = [episode.chunk[part.field][step] * part.scale for part in self._config.action]
        episode.execute()
        return np.concatenate(parts)

    def _robot_state(self, observation: EnvObservation) -> RobotState:
        return RobotState(
            images={name: self._image(observation, name) for name in self._sees.cameras},
            fields={name: self._field(observation, name) for name in self._sees.fields},
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
        for name in self._sees.fields:
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
