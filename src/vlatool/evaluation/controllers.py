"""Controllers that act in environments, a policy and baselines, and the names that they map.

A controller gets the observations of several environments at once, so that a policy can run on
batches.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.evaluation import control
from vlatool.evaluation.config import FieldMap, RolloutConfig
from vlatool.evaluation.environments import (
    Call,
    EnvObservation,
    LocalEnvironments,
    MakeEnv,
    Start,
)
from vlatool.events import counted
from vlatool.models.base import Policy
from vlatool.plugins import did_you_mean
from vlatool.transforms.geometry import rotate

# Kinds of numpy types: booleans, integers and floats.
_NUMBERS = "biuf"


class KeyMap:
    """Mapping of observations with other names to those of a policy, and of its commands back."""

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        self._sees = policy.sees
        self._config = config
        _check(policy, config)
        # Length of the action.
        self.action_width = sum(policy.actions[part.field] for part in config.action)

    @property
    def names(self) -> list[str]:
        config = self._config
        cameras = [config.cameras.get(name, name) for name in self._sees.cameras]
        fields = [config.fields[name].key for name in self._sees.fields]
        has_words = self._sees.instruction and config.instruction is None
        words = [config.instruction_key] if has_words else []
        return list(dict.fromkeys([*cameras, *filter(None, fields), *words]))

    def state(self, observation: Mapping[str, Any]) -> control.RobotState:
        return control.RobotState(
            images={name: self._image(observation, name) for name in self._sees.cameras},
            fields={name: self._field(observation, name) for name in self._sees.fields},
        )

    def instruction(self, observation: Mapping[str, Any]) -> Any:
        """The fixed instruction, or that of the observation."""
        fixed = self._config.instruction
        return observed_value(observation, self._config.instruction_key) if fixed is None else fixed

    def action(self, commands: Mapping[str, Array]) -> Array:
        """Commands of the policy [..., C] by field as one array [..., sum of C]."""
        parts = [commands[part.field] * part.scale for part in self._config.action]
        return np.concatenate(parts, axis=-1)

    def _image(self, observation: Mapping[str, Any], camera: str) -> Array:
        image = control.as_array(
            camera, observed_value(observation, self._config.cameras.get(camera, camera))
        )
        image = control.channels_last(image, is_first=camera in self._config.channels_first_cameras)
        if image.ndim and camera in self._config.flipped_cameras:
            image = image[::-1]
        turns = self._config.camera_rotations.get(camera, 0)
        return rotate(image, turns) if image.ndim > 1 else image

    def _field(self, observation: Mapping[str, Any], name: str) -> Array:
        source, width = self._config.fields[name], self._sees.fields[name]
        if source.constant is not None:
            values = np.asarray(source.constant, np.float64)
        else:
            key = _key(source, name)
            values = np.ravel(control.as_array(key, observed_value(observation, key)))
            if values.dtype.kind not in _NUMBERS:
                raise DataError(
                    f"{key!r} of the observation is {values.dtype}, not numbers",
                    code="data.field_shape",
                    details={"field": name},
                )
            values = values[source.start : source.stop].astype(np.float64) * source.scale
        if len(values) != width:
            raise DataError(
                f"the field {name!r} gets {counted(len(values), 'number')}, the policy takes "
                f"{width}",
                hint=f"correct fields.{name}: its start and stop, or its constant",
                code="data.field_shape",
                details={"field": name, "width": width},
            )
        return values


def has_mapping(config: RolloutConfig) -> bool:
    """True if names are mapped; otherwise they are those of the policy."""
    return bool(config.cameras or config.fields or config.action)


def _check(policy: Policy, config: RolloutConfig) -> None:
    """Raises DataError if a field of the policy or a part of the action is not mapped."""
    for name in policy.sees.fields:
        if name not in config.fields:
            raise DataError(
                f"the field {name!r} of the policy is mapped to no observation key",
                hint=f"set fields.{name}.key, or use a rollout preset",
                code="data.unmapped_field",
                details={"field": name},
            )
        if config.fields[name].constant is None:
            _key(config.fields[name], name)
    available = list(policy.actions)
    if not config.action:
        raise DataError(
            "the action of the environment is mapped to no field of the policy",
            hint=f"set action: [{{field: ...}}]; the policy has {', '.join(available)}",
            code="data.unmapped_action",
        )
    for part in config.action:
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


def observed_value(observation: Mapping[str, Any], key: str) -> Any:
    """Value of a nested observation; dots separate nested keys."""
    value: Any = observation
    for part in [key] if key in observation else key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [str(name) for name in value] if isinstance(value, Mapping) else []
            raise DataError(
                f"the observation has no key {key!r}",
                hint=did_you_mean(part, known),
                code="data.unknown_observation",
            )
        value = value[part]
    return value


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
        for seed, observation in observations.items():
            self._first.setdefault(seed, np.array(observation[self._key]))
        return {seed: self._first[seed] for seed in observations}


class PolicyController:
    """Controller that plans an action chunk, executes its first steps and plans again."""

    def __init__(
        self,
        policy: Policy,  # policy that plans
        config: RolloutConfig,  # mapping to the environment, and schedule of the plans
        sizes: control.ImageSizes,  # rule for images of other sizes
        milliseconds: list[float] | None = None,  # receives the duration of each batch of plans
    ) -> None:
        self._policy = policy
        self._milliseconds = [] if milliseconds is None else milliseconds
        self._sizes = sizes
        self._config = config
        self._keys = KeyMap(policy, config)
        self._options = control_options(config, policy)
        self._steps = steps_per_chunk(config, policy.horizon)
        self._episodes: dict[int, control.EpisodeControl] = {}

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the next action of each chunk; plans the chunks that are due together."""
        for seed, observation in observations.items():
            is_new = seed not in self._episodes
            if is_new:
                self._episodes[seed] = control.EpisodeControl(
                    self._policy, seed, self._sizes, self._options
                )
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
            control.begin_chunks(
                self._policy,
                [episodes[seed] for seed in due],
                [instructions[seed] for seed in due],
                self._config.batch_size,
            )
            num_batches = -(-len(due) // self._config.batch_size)
            duration = 1000 * (time.perf_counter() - start) / num_batches
            self._milliseconds += [round(duration, 3)] * num_batches
        return {seed: self._next_action(episode) for seed, episode in episodes.items()}

    def _next_action(self, episode: control.EpisodeControl) -> Array:
        step = episode.num_executed
        commands = {name: values[step] for name, values in episode.chunk.items()}
        episode.execute()
        return self._keys.action(commands)


def control_options(config: RolloutConfig, policy: Policy) -> control.ControlOptions:
    resize = config.resize or {}
    return control.ControlOptions(
        config.delay_steps,
        config.ensemble_decay,
        control.grippers_of(config.grippers, policy),
        remembers_planned=config.compat,
        resize=dict.fromkeys(policy.sees.cameras, resize) if isinstance(resize, str) else resize,
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
    sizes = control.ImageSizes(policy.sees, lambda text: None)
    PolicyController(policy, config, sizes)
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
    options = control_options(config, policy)
    control.EpisodeControl(policy, config.seed, sizes, options).observe(
        keys.state(reply.observation)
    )
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
