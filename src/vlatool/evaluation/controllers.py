"""Controllers that act in environments: a policy, and baselines.

A controller gets the observations of several environments at once, so that a policy can run on
batches.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.control import (
    ControlOptions,
    EpisodeControl,
    ResizeLog,
    begin_chunks,
    grippers_of,
)
from vlatool.evaluation.environments import (
    Call,
    EnvObservation,
    LocalEnvironments,
    MakeEnv,
    Start,
)
from vlatool.evaluation.key_map import KeyMap
from vlatool.events import counted
from vlatool.models.policy import Policy


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
    """Controller that plans an action chunk, executes its first steps and plans again."""

    def __init__(
        self,
        policy: Policy,  # policy that plans
        config: RolloutConfig,  # mapping to the environment, and schedule of the plans
        log: ResizeLog,  # log of resized images
        milliseconds: list[float] | None = None,  # receives the duration of each batch of plans
    ) -> None:
        self._policy = policy
        self._milliseconds = [] if milliseconds is None else milliseconds
        self._log = log
        self._config = config
        self._keys = KeyMap(policy, config)
        self._options = control_options(config, policy)
        self._steps = steps_per_chunk(config, policy.horizon)
        self._episodes: dict[int, EpisodeControl] = {}

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the next action of each chunk; plans the chunks that are due together."""
        for seed, observation in observations.items():
            is_new = seed not in self._episodes
            if is_new:
                self._episodes[seed] = EpisodeControl(self._policy, seed, self._log, self._options)
            self._episodes[seed].observe(self._keys.state(observation))
            if is_new and self._config.compat and self._config.execute_steps > 1:
                self._episodes[seed].hold(self._steps)
        episodes = {seed: self._episodes[seed] for seed in observations}
        due = [
            seed
            for seed, episode in episodes.items()
            if not episode.chunk or episode.num_executed >= self._steps
        ]
        if due:
            # Sorted, so that a batch has few lengths of instructions; no chunk depends on it.
            due.sort(key=lambda seed: instructions[seed])
            start = time.perf_counter()
            begin_chunks(
                self._policy,
                [episodes[seed] for seed in due],
                [instructions[seed] for seed in due],
                self._config.batch_size,
            )
            num_batches = -(-len(due) // self._config.batch_size)
            duration = 1000 * (time.perf_counter() - start) / num_batches
            self._milliseconds += [round(duration, 3)] * num_batches
        return {seed: self._next_action(episode) for seed, episode in episodes.items()}

    def _next_action(self, episode: EpisodeControl) -> Array:
        step = episode.num_executed
        commands = {name: values[step] for name, values in episode.chunk.items()}
        episode.execute()
        return self._keys.action(commands)


def control_options(config: RolloutConfig, policy: Policy) -> ControlOptions:
    """Options of the control loop."""
    return ControlOptions(
        config.delay_steps,
        config.ensemble_decay,
        grippers_of(config.grippers, policy),
        remembers_planned=config.compat,
    )


def steps_per_chunk(config: RolloutConfig, horizon: int) -> int:
    """Steps between plans; the last has `delay_steps` more. Source: reference/policy 4.1."""
    delay = config.delay_steps
    steps = min(config.execute_steps, horizon - delay)
    if config.compat:
        return max(1, steps - 1)
    if steps < max(delay, 1):
        raise UsageError(
            f"delay_steps is {delay}, execute_steps {config.execute_steps}, and chunks of the "
            f"policy have {counted(horizon, 'step')}",
            hint="delay_steps is at most execute_steps and at most half of a chunk",
            code="usage.delay_steps",
            details={"delay_steps": delay, "horizon": horizon},
        )
    return steps


def check_environment(policy: Policy, config: RolloutConfig, make_env: MakeEnv) -> None:
    """Checks that a policy can act in an environment; evaluates no network."""
    log = ResizeLog(policy.sees, lambda text: None)
    PolicyController(policy, config, log)
    keys = KeyMap(policy, config)
    with LocalEnvironments() as environments:
        env = environments.info(make_env)
        reply = environments.reply(Call(0, Start(make_env, config.seed)))
    if reply.error is not None:
        raise UsageError(
            f"the environment {config.env!r} cannot be reset: {reply.error}",
            hint="look at its documentation for the options that it needs, and set env_options",
            code="usage.env_failed",
        )
    EpisodeControl(policy, config.seed, log).observe(keys.state(reply.observation))
    check_action_shape(env, (keys.action_width,))


def check_action_shape(env: Any, shape: Sequence[int]) -> None:
    """Raises DataError if actions of a shape are not those of an environment."""
    if tuple(shape) != env.action_space.shape:
        raise DataError(
            f"the action has shape {tuple(shape)}, the environment takes {env.action_space.shape}",
            hint="correct `action`: its fields, concatenated in order, must have the shape of "
            "the environment's action space",
            code="data.action_shape",
        )
