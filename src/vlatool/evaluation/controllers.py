"""Controllers that act in environments: a policy, and baselines.

A controller gets the observations of several environments at once, so that a policy can run on
batches.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vlatool.episode import Array
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.control import EpisodeControl, ResizeLog, begin_chunks
from vlatool.evaluation.key_map import KeyMap
from vlatool.models.policy import Policy

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
        self._log = log
        self._config = config
        self._keys = KeyMap(policy, config)
        self._episodes: dict[int, EpisodeControl] = {}

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the next action of each chunk; samples the chunks that ran out together."""
        for seed, observation in observations.items():
            if seed not in self._episodes:
                self._episodes[seed] = EpisodeControl(self._policy, seed, self._log)
            self._episodes[seed].observe(self._keys.state(observation))
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
        commands = {name: values[step] for name, values in episode.chunk.items()}
        episode.execute()
        return self._keys.action(commands)
