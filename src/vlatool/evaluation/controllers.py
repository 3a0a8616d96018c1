"""Controllers that act in environments: a policy, and simple baselines.

A controller gets the observations of several environments at once, so that a policy can run on
batches.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import numpy as np

from vlatool.episode import Array, as_array, channels_last
from vlatool.errors import DataError, UsageError
from vlatool.evaluation import control
from vlatool.evaluation.config import ActionMap, RolloutConfig
from vlatool.evaluation.environments import (
    Call,
    EnvObservation,
    LocalEnvironments,
    MakeEnv,
    Start,
)
from vlatool.events import counted
from vlatool.loading.order import keyed_generator
from vlatool.models.base import Policy
from vlatool.plugins import did_you_mean
from vlatool.transforms.geometry import rotate
from vlatool.transforms.names import FieldMap, NameMap
from vlatool.transforms.relative import (
    POSITION,
    ROTATION,
    PoseGroupConfig,
    add_poses,
)
from vlatool.transforms.rotations import ROTATION_WIDTH

# Kinds of numpy types: booleans, integers and floats.
_NUMBERS = "biuf"


class KeyMap:
    """Translates observations of an environment for a policy, and its commands back."""

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        self._sees = policy.sees
        config = config.model_copy(update={"action": _parts(policy, config.action)})
        self._config = config
        groups = {group.name: group for group in config.pose_groups}
        moved = [part.field for part in config.action]
        self._commanded = {name: group for name, group in groups.items() if name in moved}
        references = {group.reference for group in self._commanded.values()}
        self._measured: list[PoseGroupConfig] = []
        self._posed: set[str] = set()  # fields of the policy that measured poses give
        for name, group in groups.items():
            is_seen = not policy.sees.fields.keys().isdisjoint(group.stored_keys)
            if name not in moved and (name in references or is_seen):
                self._measured.append(group)
                self._posed.update(group.stored_keys)
        self._cameras, self._fields = _keys_of(policy, config, self._posed)
        _check(policy, config)
        # Fields of the measured pose that a commanded one refers to.
        self._references: dict[str, tuple[str, str]] = {}
        widths: dict[str, int] = {}
        for name, group in self._commanded.items():
            widths[name] = 3 + ROTATION_WIDTH[group.rotation]
            if group.reference in groups and group.reference not in moved:
                self._references[name] = groups[group.reference].stored_keys
        widths |= policy.actions
        self.action_width = sum(widths[name] for name in moved)

    @property
    def names(self) -> list[str]:
        """Keys that an observation needs."""
        names = list(self._cameras.values())
        names += [part.key for part in self._fields.values() if part.key]
        for group in self._measured:
            names += filter(None, group.recorded_fields)
        if self._sees.instruction and self._config.instruction is None:
            names.append(self._config.instruction_key)
        return list(dict.fromkeys(names))

    def state(self, observation: Mapping[str, Any]) -> control.RobotState:
        poses = self.poses(observation)
        fields: dict[str, Array] = {}
        for name in self._sees.fields:
            fields[name] = poses[name] if name in self._posed else self._field(observation, name)
        images = {name: self._image(observation, name) for name in self._sees.cameras}
        return control.RobotState(images, fields)

    def poses(self, observation: Mapping[str, Any]) -> dict[str, Array]:
        """Measured positions [3] and 6D rotations [6] by field, and the numbers they were computed
        from.
        """
        fields: dict[str, Array] = {}
        for group in self._measured:
            for name in group.recorded_fields:
                fields[name] = self._numbers(observation, name)[None]
        add_poses(fields, self._measured, "observation")
        return {name: values[0] for name, values in fields.items()}

    def instruction(self, observation: Mapping[str, Any]) -> Any:
        """The fixed instruction, or the instruction in the observation."""
        if self._config.instruction is not None:
            return self._config.instruction
        return observed_value(observation, self._config.instruction_key)

    def action(self, commands: Mapping[str, Array], poses: Mapping[str, Array]) -> Array:
        """Commands of the policy [..., C] by field as one array [..., sum of C].

        `poses`: measured poses at the first step. A later difference is relative to the command
        before it, which the robot is assumed to have reached.
        """
        parts: list[Array] = []
        for part in self._config.action:
            if part.field in self._commanded:
                parts.append(self._pose_command(part.field, commands, poses))
            else:
                parts.append(commands[part.field] * part.scale + part.offset)
        return np.concatenate(parts, axis=-1)

    def _pose_command(
        self, group: str, commands: Mapping[str, Array], poses: Mapping[str, Array]
    ) -> Array:
        """Numbers of a robot [..., 3 + C] for the absolute pose that the policy commands."""
        xyz = commands.get(group + POSITION)
        rot6d = commands.get(group + ROTATION)
        measured = [poses[key] for key in self._references.get(group, ())]
        # What is not commanded stays as measured.
        if xyz is None:
            assert rot6d is not None
            xyz = np.broadcast_to(measured[0], (*rot6d.shape[:-1], 3))
        if rot6d is None:
            rot6d = np.broadcast_to(measured[1], (*xyz.shape[:-1], 6))
        reference = None
        if measured:
            both = np.concatenate([xyz, rot6d], axis=-1).reshape(-1, 9)
            before = np.concatenate([np.concatenate(measured)[None], both[:-1]])
            reference = before[:, :3].reshape(xyz.shape), before[:, 3:].reshape(rot6d.shape)
        return np.concatenate(self._commanded[group].numbers((xyz, rot6d), reference), axis=-1)

    def _image(self, observation: Mapping[str, Any], camera: str) -> Array:
        image = as_array(camera, observed_value(observation, self._cameras[camera]))
        image = channels_last(image, is_first=camera in self._config.channels_first_cameras)
        if image.ndim and camera in self._config.flipped_cameras:
            image = image[::-1]
        turns = self._config.camera_rotations.get(camera, 0)
        return rotate(image, turns) if image.ndim > 1 else image

    def _field(self, observation: Mapping[str, Any], name: str) -> Array:
        source = self._fields[name]
        width = self._sees.fields[name]
        if source.constant is not None:
            values = np.asarray(source.constant, np.float64)
        else:
            values = source.of(self._numbers(observation, _key(source, name)))
        if len(values) != width:
            raise DataError(
                f"the field {name!r} gets {counted(len(values), 'number')}, but the policy takes "
                f"{width}",
                hint=f"correct the range or the constant of fields.{name}",
                code="data.mismatch",
                details={"field": name, "width": width},
            )
        return values

    def _numbers(self, observation: Mapping[str, Any], key: str) -> Array:
        values = np.ravel(as_array(key, observed_value(observation, key)))
        if values.dtype.kind not in _NUMBERS:
            raise DataError(
                f"{key!r} of the observation is {values.dtype}, not numbers",
                code="data.mismatch",
                details={"field": key},
            )
        return values.astype(np.float64)


def has_mapping(config: RolloutConfig) -> bool:
    """True if names are mapped; otherwise the environment uses the names of the policy."""
    return bool(config.cameras or config.fields or config.action)


def _keys_of(
    policy: Policy, config: RolloutConfig, posed: Collection[str]
) -> tuple[dict[str, str], dict[str, FieldMap]]:
    """Observation key of each camera and each field that is no pose; DataError if one has none."""
    sees = policy.sees
    typed = config.map
    if unused := typed.unmatched(sees.cameras, sees.fields):
        names = [*sees.cameras, *sees.fields]
        raise DataError(
            f"map.{unused[0]}: the policy has no such input; it sees {', '.join(names)}",
            hint=did_you_mean(unused[0].partition(".")[2].partition("=")[0], names),
            code="data.unknown_field",
        )
    if twice := [name for name in sees.fields if name in posed and typed.field_of(name)]:
        raise DataError(
            f"map.fields.{twice[0]}: a pose group already provides it",
            hint="leave it out of fields, or out of pose_groups",
            code="data.broken",
        )
    others = NameMap.model_construct(cameras=config.cameras, fields=config.fields)
    cameras: dict[str, str] = {}
    for name in sees.cameras:
        cameras[name] = typed.camera_of(name) or others.camera_of(name) or name
    fields: dict[str, FieldMap] = {}
    for name in sees.fields:
        if name in posed:
            continue
        part = typed.field_of(name) or others.field_of(name)
        if part is None:
            raise DataError(
                f"the policy needs the field {name!r}, and no observation key is mapped to it",
                hint=f"map one with --map fields.{name}=KEY, or use a rollout preset",
                code="data.unknown_field",
                details={"field": name},
            )
        if part.constant is None:
            _key(part, name)
        fields[name] = part
    return cameras, fields


def _parts(policy: Policy, action: Sequence[ActionMap]) -> list[ActionMap]:
    """The parts of the action that a mapping for policies of several layouts means for this one."""
    for part in action:
        if part.is_whole and part.field in policy.actions:
            return [part]
    return [part for part in action if not part.is_whole]


def _check(policy: Policy, config: RolloutConfig) -> None:
    """Raises DataError if a part of the action is not mapped."""
    available = list(policy.actions)
    if not config.action:
        raise DataError(
            "you have not said which fields of the policy make the action",
            hint=f"set action: [{{field: ...}}]; the policy has {', '.join(available)}",
            code="data.unknown_field",
        )
    groups = {group.name: group for group in config.pose_groups}
    measured = groups.keys() - {part.field for part in config.action}
    for part in config.action:
        fields = [part.field]
        if part.field in groups:
            if (part.scale, part.offset) != (1.0, 0.0):
                raise DataError(
                    f"action: {part.field!r} is a pose group, which takes no scale or offset here",
                    hint="set scale and rotation_scale in pose_groups",
                    code="data.unknown_field",
                    details={"pose_group": part.field},
                )
            _check_reference(groups[part.field], measured, available)
            fields = [part.field + suffix for suffix in (POSITION, ROTATION)]
        if not {*fields} & {*available}:
            raise DataError(
                f"the policy has no action field {part.field!r}",
                hint=did_you_mean(part.field, available),
                code="data.unknown_field",
            )


def _check_reference(
    group: PoseGroupConfig, measured: Collection[str], available: Sequence[str]
) -> None:
    """Raises DataError if a commanded pose needs a measured pose that is not mapped."""
    is_whole = {group.name + POSITION, group.name + ROTATION} <= {*available}
    needs = not is_whole or group.relation == "delta" or group.reference is not None
    if group.reference not in measured and needs:
        raise DataError(
            f"pose group {group.name!r} needs a measured pose as its reference, and "
            f"{group.reference!r} is none",
            hint="add a pose group for the measured pose, without naming it in `action`, and "
            "name it as `reference`",
            code="data.unknown_field",
            details={"pose_group": group.name},
        )


def _key(source: FieldMap, name: str) -> str:
    if source.key is None:
        raise DataError(
            f"fields.{name} has neither a key nor a constant",
            hint="give it the key of the observation",
            code="data.unknown_field",
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
                code="data.bad_request",
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

    def needs_images(self, seed: int) -> bool:
        """True if the next observation of an episode needs its images."""
        ...


class RandomController:
    """Controller that samples actions from the action space."""

    def __init__(self, action_space: Any, seed: int) -> None:
        self._space = action_space
        self._seed = seed
        self._spaces: dict[int, Any] = {}  # by episode: others do not change its actions

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        for seed in observations.keys() - self._spaces.keys():
            self._spaces[seed] = deepcopy(self._space)
            self._spaces[seed].seed(int(keyed_generator(self._seed, seed).integers(2**31)))
        return {seed: self._spaces[seed].sample() for seed in observations}

    def needs_images(self, seed: int) -> bool:
        return False


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

    def needs_images(self, seed: int) -> bool:
        return False


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
        self._num_skipped: dict[int, int] = {}  # observations since the last that was needed

    def needs_images(self, seed: int) -> bool:
        """True if the policy will see the next observation of an episode when it plans."""
        episode = self._episodes.get(seed)
        if episode is None or not episode.chunk:
            return True
        return self._steps - episode.num_executed <= episode.history

    def act(
        self, observations: Mapping[int, EnvObservation], instructions: Mapping[int, str]
    ) -> dict[int, Array]:
        """Returns the next action of each episode; chunks that are due are planned in one batch."""
        for seed, observation in observations.items():
            if not self.needs_images(seed):
                self._num_skipped[seed] = self._num_skipped.get(seed, 0) + 1
                continue
            is_new = seed not in self._episodes
            if is_new:
                self._episodes[seed] = control.EpisodeControl(
                    self._policy, seed, self._sizes, self._options
                )
            steps = 1 + self._num_skipped.pop(seed, 0)
            self._episodes[seed].observe(self._keys.state(observation), steps)
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
        return {
            seed: self._next_action(episode, observations[seed])
            for seed, episode in episodes.items()
        }

    def _next_action(self, episode: control.EpisodeControl, observation: EnvObservation) -> Array:
        step = episode.num_executed
        commands = {name: values[step] for name, values in episode.chunk.items()}
        episode.execute()
        return self._keys.action(commands, self._keys.poses(observation))


def control_options(config: RolloutConfig, policy: Policy) -> control.ControlOptions:
    resize = config.resize or {}
    cameras = policy.sees.cameras
    for name in () if isinstance(resize, str) else resize:
        if name not in cameras:
            raise DataError(
                f"resize: the policy sees no camera {name!r}",
                hint=did_you_mean(name, [*cameras]),
                code="data.unknown_field",
                details={"camera": name, "known": [*cameras]},
            )
    return control.ControlOptions(
        config.delay_steps,
        config.ensemble_decay,
        control.grippers_of(config.grippers, policy),
        remembers_planned=config.compat,
        resize=dict.fromkeys(cameras, resize) if isinstance(resize, str) else resize,
    )


def steps_per_chunk(config: RolloutConfig, horizon: int) -> int:
    """Steps between plans; the last covers `delay_steps` more. Source: reference/policy 4.1."""
    delay = config.delay_steps
    steps = config.execute_steps
    # The default is for every policy, also for one with shorter chunks.
    if config.compat or steps == type(config).model_fields["execute_steps"].default:
        steps = min(steps, horizon - delay)
    if config.compat:
        return max(1, steps - 1)
    if not max(delay, 1) <= steps <= horizon - delay:
        raise UsageError(
            f"delay_steps is {delay}, execute_steps {config.execute_steps}, and chunks of the "
            f"policy have {counted(horizon, 'step')}",
            hint="delay_steps must not exceed execute_steps, nor their sum the length of a chunk",
            code="usage.bad_value",
            details={"delay_steps": delay, "horizon": horizon},
        )
    return steps


def check_environment(policy: Policy, config: RolloutConfig, make_env: MakeEnv) -> None:
    """Checks that a policy can act in an environment, without computing anything."""
    sizes = control.ImageSizes(policy.sees, lambda text: None)
    PolicyController(policy, config, sizes)
    keys = KeyMap(policy, config)
    with LocalEnvironments() as environments:
        env = environments.info(make_env)
        reply = environments.reply(Call(0, Start(make_env, config.seed)))
    if reply.error is not None:
        raise UsageError(
            f"the environment {config.env!r} cannot be reset: {reply.error}",
            hint="set the env_options that its documentation requires",
            code="usage.bad_value",
        )
    options = control_options(config, policy)
    control.EpisodeControl(policy, config.seed, sizes, options).observe(
        keys.state(reply.observation)
    )
    check_action_shape(env, (keys.action_width,))


def check_action_shape(env: Any, shape: Sequence[int]) -> None:
    """Raises DataError if the actions have another shape than the environment takes."""
    if tuple(shape) != env.action_space.shape:
        raise DataError(
            f"the action has shape {tuple(shape)}, the environment takes {env.action_space.shape}",
            hint="correct `action`: its fields, joined in order, must give the shape that the "
            "environment takes",
            code="data.mismatch",
        )
