"""Control loop over any policy: history of an episode, batches of one size, execution of chunks.

Rollouts, `load_policy` and open-loop evaluation share it. Legend of shapes: B observations, T
action steps, C dimensions of a field.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.scalars import value_text
from vlatool.episode import Array, Observation, ObservationSpec, UInt8Array
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.loading.permutations import keyed_generator
from vlatool.models.policy import Policy, SamplesInSteps, in_batches
from vlatool.models.trained import Trained, Weights, WeightsOrigin, open_trained
from vlatool.plugins import did_you_mean

_INSTRUCTION = "instruction"
_IMAGE_DIMENSIONS = 3
_SEEDS = 2**63

_log = logging.getLogger(__name__)


def chunk_seed(seed: int, number: int) -> int:
    """Seed of the random numbers of one chunk, from 0 to 2^63 - 1.

    Args:
        seed: Seed of the episode, or of an open-loop evaluation.
        number: Number of the chunk in the episode, or of the sample, from 0.
    """
    return int(keyed_generator(seed, "chunk", number).integers(_SEEDS))


def act_in_batches(
    policy: Policy, observations: Sequence[Observation], seeds: Sequence[int], batch_size: int
) -> dict[str, Array]:
    """Returns chunks of commands by field [B, T, C], computed as `in_batches` does."""
    return in_batches(policy.act, observations, seeds, batch_size)


class ResizeLog:
    """Log of images of another size than the policy sees, once per camera and size.

    Args:
        sees: Input of the policy.
        log: Function that gets one sentence.
    """

    def __init__(self, sees: ObservationSpec, log: Callable[[str], None]) -> None:
        self._sees = sees
        self._log = log
        self._logged: set[tuple[str, tuple[int, int]]] = set()

    def add_observation(self, observation: Observation) -> None:
        """Logs the images of an observation whose size is new."""
        for camera, images in observation.images.items():
            self.add(camera, images.shape[1:])

    def add(self, camera: str, shape: Sequence[int]) -> None:
        """Logs an image of shape [H, W, 3] if its size is new."""
        target, size = self._sees.cameras[camera].size, (shape[0], shape[1])
        if target not in (None, size) and (camera, size) not in self._logged:
            self._logged.add((camera, size))
            (height, width), (target_height, target_width) = size, target or size
            self._log(
                f"images of {camera!r} are {width} x {height}, the policy was trained on "
                f"{target_width} x {target_height}: resized as the training data were"
            )


@dataclass(frozen=True)
class RobotState:
    """Images and measured fields at one step.

    Attributes:
        images: Map from camera to uint8 [H, W, 3], RGB, of any size, as recorded.
        fields: Map from field name to values [C].
    """

    images: Mapping[str, Array]
    fields: Mapping[str, Array]


class EpisodeControl:
    """History of one episode, as many steps as the policy sees, and the chunk that is executed.

    A step without an observation gets that of the next step that has one. So the steps before an
    episode equal its first.

    Args:
        policy: Policy that acts.
        seed: Seed of the random numbers of the policy in this episode.
        log: Log of resized images.

    Attributes:
        chunk: Map from field to commands [T, C]; empty before the first chunk.
        num_executed: Number of steps of the chunk that were executed.

    Raises:
        DataError: The policy takes future images.
    """

    def __init__(self, policy: Policy, seed: int, log: ResizeLog) -> None:
        self._sees = policy.sees
        self._horizon = policy.horizon
        self._seed = seed
        self._log = log
        offsets = [step for view in self._sees.cameras.values() for step in view.offsets]
        if max(offsets, default=0) > 0:
            raise DataError(
                f"the policy takes future images, at the steps {sorted(set(offsets))}",
                hint="train a policy with data.image_indices of at most 0",
                code="data.future_pictures",
            )
        self._length = max(-min(offsets, default=0), self._sees.past) + 1
        self._states: deque[RobotState] = deque(maxlen=self._length)
        self._commands: deque[Mapping[str, Array]] = deque(maxlen=self._sees.past)
        self._num_chunks = 0
        self.chunk: Mapping[str, Array] = {}
        self.num_executed = 0

    @property
    def num_left(self) -> int:
        """Number of steps of the chunk that are not executed; 0 before the first chunk."""
        return self._horizon - self.num_executed if self.chunk else 0

    def observe(self, state: RobotState, steps: int = 1) -> None:
        """Adds the newest state.

        Args:
            state: Images and fields.
            steps: Steps since the state before; ignored for the first of an episode.

        Raises:
            DataError: An image is invalid, or images have different sizes and the policy does not
                know the size of its training data. The history is unchanged then.
        """
        images = {name: _checked_image(name, image) for name, image in state.images.items()}
        known = self._states[-1].images if self._states else {}
        if any(view.size is None for view in self._sees.cameras.values()):
            _check_equal_sizes([*known.values(), *images.values()])
        for name, image in images.items():
            self._log.add(name, image.shape)
        # Copies: a camera may write every frame into the same buffer.
        copied = RobotState({name: image.copy() for name, image in images.items()}, state.fields)
        count = steps if self._states else self._length
        self._states.extend([copied] * min(count, self._length))

    def observation(self, instruction: str) -> tuple[Observation, int]:
        """Input of the policy at the current step, and the seed of its next chunk."""
        states = list(self._states)
        recent = states[-(self._sees.past + 1) :]
        past, mask = self._past_commands()
        observation = Observation(
            images={
                name: np.stack([states[step - 1].images[name] for step in view.offsets])
                for name, view in self._sees.cameras.items()
            },
            fields={
                name: np.stack([state.fields[name] for state in recent])
                for name in self._sees.fields
            },
            instruction=instruction,
            past_actions=past,
            past_mask=mask,
        )
        return observation, chunk_seed(self._seed, self._num_chunks)

    def begin(self, chunk: Mapping[str, Array]) -> None:
        """Starts to execute a chunk, a map from field to commands [T, C]."""
        self.chunk = chunk
        self.num_executed = 0
        self._num_chunks += 1

    def execute(self, steps: int = 1) -> None:
        """Counts the next steps of the chunk as executed."""
        for step in range(self.num_executed, self.num_executed + steps):
            self._commands.append({name: values[step] for name, values in self.chunk.items()})
        self.num_executed += steps

    def _past_commands(self) -> tuple[dict[str, Array] | None, Array | None]:
        """Last commands [past, C] by field, and the mask of those that were executed [past]."""
        past = self._sees.past
        if not self._commands:
            return None, None
        missing = past - len(self._commands)
        steps = [self._commands[0]] * missing + list(self._commands)
        commands = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
        return commands, np.arange(past) >= missing


def begin_chunks(
    policy: Policy,
    episodes: Sequence[EpisodeControl],
    instructions: Sequence[str],
    batch_size: int,
) -> None:
    """Samples the next chunk of each episode."""
    inputs = [
        episode.observation(instruction)
        for episode, instruction in zip(episodes, instructions, strict=True)
    ]
    observations, seeds = [row[0] for row in inputs], [row[1] for row in inputs]
    chunks = act_in_batches(policy, observations, seeds, batch_size)
    for row, episode in enumerate(episodes):
        episode.begin({name: np.asarray(chunks[name][row], np.float64) for name in policy.actions})


def _checked_image(camera: str, image: Array) -> UInt8Array:
    shape = image.shape
    if image.dtype != np.uint8 or len(shape) != _IMAGE_DIMENSIONS or shape[-1] != 3:
        raise DataError(
            f"the image of {camera!r} is {image.dtype} {list(shape)}, not uint8 [H, W, 3]",
            hint=_image_hint(image),
            code="data.no_picture",
            details={"camera": camera},
        )
    if 0 in shape:
        raise DataError(f"the image of {camera!r} is empty: {list(shape)}", code="data.no_picture")
    return image


def _image_hint(image: Array) -> str:
    if image.dtype != np.uint8:
        return "give integers 0 to 255; for values 0 to 1: (255 * image).astype(np.uint8)"
    if image.ndim == _IMAGE_DIMENSIONS and image.shape[0] == 3:
        return "put the channels last: image.transpose(1, 2, 0)"
    return "give one RGB image per camera, without batch, alpha or depth"


def _check_equal_sizes(images: Sequence[UInt8Array]) -> None:
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise DataError(
            f"images of different sizes: {value_text(sorted(sizes))}; the run does not record the "
            "size of its training data",
            hint="resize all images to the size of the training data",
            code="data.image_sizes_differ",
        )


class PolicyRunner:
    """Runs a trained policy for one robot and keeps the history of observations and actions.

    Attributes:
        cameras: Cameras that the policy takes.
        fields: Measured fields that an observation needs, name to width: the inputs of the policy
            and the poses that its actions are relative to.
        actions: Action fields, name to width; all absolute, so no name ends in `_relative`.
        fps: Steps per second.
        horizon: Steps of an action chunk.
        checkpoint: Checkpoint or published file that the weights are from.
        weights: `ema` or `raw`.
        has_instruction: True if an observation needs an `instruction`.
        names: Keys that an observation needs.
        episode: History of the current episode; a server computes its chunks with others.
    """

    def __init__(
        self, policy: Policy, origin: WeightsOrigin, seed: int, log: ResizeLog | None = None
    ) -> None:
        sees = policy.sees
        self.cameras = tuple(sees.cameras)
        self.fields = dict(sees.fields)
        self.actions = dict(policy.actions)
        self.fps = policy.fps
        self.horizon = policy.horizon
        self.checkpoint = origin.checkpoint or origin.file
        self.weights = origin.weights
        self._policy = policy
        self._seed = seed
        self._resizes = log or ResizeLog(sees, partial(_log.warning, "%s"))
        self.has_instruction = sees.instruction
        words = [_INSTRUCTION] if sees.instruction else []
        self.names = [*self.cameras, *self.fields, *words]
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Clears the history; call it before each episode.

        The same observations then give the same action chunks. With the seed of an episode of
        `vlatool eval rollout` they have the noise of that episode.

        Args:
            seed: Seed of the sampled noise; None: that of `load_policy`.

        Raises:
            UsageError: The seed is not an integer of at least 0.
        """
        seed = self._seed if seed is None else _seed(seed)
        self.episode = EpisodeControl(self._policy, seed, self._resizes)

    def act(self, observation: Mapping[str, Any], *, executed: int = 1) -> dict[str, Array]:
        """Returns the action chunk for an observation.

        A step lasts 1 / `fps` seconds. `executed` is the number of steps of the last chunk that
        were executed since the last call of `act` or `observe`: a loop that executes four steps
        and then calls again passes 4. From it the policy knows its past actions. Observations of
        the steps in between are taken to equal the newest one; pass them to `observe` if you have
        them.

        Args:
            observation: Each of `cameras` to uint8 [H, W, 3], RGB, of any size, as recorded before
                preprocessing; each of `fields` to its values [C]; `instruction` to a string.
            executed: At least 1; ignored on the first call after `reset`.

        Returns:
            Each of `actions` to float64 [T, C], T = `horizon`, absolute, in the units of the data.
            The first row is the action for the current step.

        Raises:
            DataError: A value is missing, unknown, or has another type, shape or width.
            UsageError: `executed` is not an integer, or exceeds the steps left in the last chunk.
        """
        self.observe(observation, executed=executed)
        begin_chunks(self._policy, [self.episode], [self.instruction(observation)], batch_size=1)
        return {name: chunk.copy() for name, chunk in self.episode.chunk.items()}

    def instruction(self, observation: Mapping[str, Any]) -> str:
        """Instruction of an observation that `observe` has accepted."""
        return observation[_INSTRUCTION] if self.has_instruction else ""

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Adds an observation without computing a chunk; arguments and errors as for `act`."""
        state = self._robot_state(observation)
        episode = self.episode
        is_count = _is_int(executed) and executed >= 1
        if not is_count or (episode.chunk and executed > episode.num_left):
            raise UsageError(
                f"executed={executed!r}: the last chunk has {counted(self.horizon, 'step')}, "
                f"{episode.num_executed} of them were executed before",
                hint="give the number of steps executed since the last call of act or observe, as "
                "an integer",
                code="usage.executed_steps",
            )
        episode.observe(state, executed)
        if episode.chunk:
            episode.execute(executed)

    def _robot_state(self, observation: Mapping[str, Any]) -> RobotState:
        # Callers are not type-checked: a control loop gets a clear error, not a traceback.
        if not isinstance(observation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(
                f"the observation is of type {type(observation).__name__}, not a mapping",
                hint=f"give a dict with {', '.join(self.names)}",
                code="data.no_observation",
            )
        for name in observation:
            if name not in self.names:
                raise DataError(
                    f"the policy takes no observation {name!r}",
                    hint=did_you_mean(str(name), self.names),
                    code="data.unknown_observation",
                    details={"name": str(name), "known": self.names},
                )
        missing = [name for name in self.names if name not in observation]
        if missing:
            raise DataError(
                f"the observation lacks {', '.join(map(repr, missing))}",
                hint=f"the policy needs {', '.join(self.names)}",
                code="data.missing_observation",
                details={"missing": missing},
            )
        instruction = observation.get(_INSTRUCTION, "")
        if not isinstance(instruction, str):
            raise DataError(
                f"the instruction is of type {type(instruction).__name__}, not a string",
                hint="give one sentence; '' for no instruction",
                code="data.no_instruction",
            )
        images = {name: as_array(name, observation[name]) for name in self.cameras}
        fields = {name: _vector(name, observation[name], n) for name, n in self.fields.items()}
        return RobotState(images, fields)


def as_array(name: str, values: Any) -> Array:
    """A value of an observation as an array; raises a DataError if it cannot become one."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, on a GPU, with a gradient
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{name!r} is a {type(values).__name__} that cannot become an array: {reason}",
            hint="give a numpy array, or a tensor as tensor.detach().cpu().numpy()",
            code="data.no_array",
            details={"name": name},
        ) from None


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _seed(value: Any) -> int:
    if not _is_int(value) or not 0 <= value < 2**63:
        raise UsageError(
            f"seed={value!r}",
            hint="a seed is an integer from 0 to 2^63 - 1",
            code="usage.bad_value",
        )
    return int(value)


def _vector(name: str, values: Any, width: int) -> Array:
    """Checked values of a measured field: float64 [C]."""
    array = as_array(name, values)
    if array.dtype.kind not in "fiu" or array.shape not in [
        (width,),
        *([()] if width == 1 else []),
    ]:
        raise DataError(
            f"the field {name!r} is {array.dtype} {list(array.shape)}, not {width} numbers",
            hint="give only the newest values, in the order and units of the data",
            code="data.field_shape",
            details={"field": name, "width": width},
        )
    if not np.isfinite(array).all():
        raise DataError(
            f"the field {name!r} has values that are not finite",
            hint="give finite values; a policy cannot use NaN or infinity",
            code="data.field_not_finite",
            details={"field": name},
        )
    return array.astype(np.float64).reshape(width)


def open_policy(
    location: str, weights: Weights, inference_steps: int, reporter: Reporter = NULL
) -> tuple[Policy, Trained]:
    """Policy that evaluates its network `inference_steps` times per chunk, if at all; its weights.

    Args:
        location: Location of the weights.
        weights: As for `open_trained`.
        inference_steps: Evaluations of the network per action chunk.
        reporter: Receives notes on what is not used of published weights.

    Raises:
        UsageError: The location is empty, or there are no averaged weights but `ema` was requested.
        DataError: There is no checkpoint, it is broken, or its model is not a policy.
    """
    trained = open_trained(location, weights=weights, reporter=reporter)
    policy = trained.policy()
    if isinstance(policy, SamplesInSteps):
        policy = policy.with_steps(inference_steps)
    return policy, trained


def load_policy(
    checkpoint: str | Path, *, weights: Weights = "auto", inference_steps: int = 8, seed: int = 0
) -> PolicyRunner:
    """Loads a trained policy for a control loop.

        import vlatool

        policy = vlatool.load_policy("runs/mine")
        chunk = policy.act({"front": image, "pose": pose, "instruction": "pick up the cube"})

    Args:
        checkpoint: Run folder of `vlatool train`, whose newest checkpoint is loaded, one of its
            checkpoints/step_*, or a published experiment or one of its checkpoint files.
        weights: `ema`, `raw`, or `auto`: averaged weights if the checkpoint has them.
        inference_steps: Evaluations of the network per action chunk.
        seed: Seed of the sampled noise.

    Raises:
        UsageError: An argument is invalid, or the checkpoint has no averaged weights but `ema` was
            requested.
        DataError: There is no checkpoint, it is broken, or its policy takes future images.
    """
    is_count = _is_int(inference_steps) and inference_steps >= 1
    if weights not in ("auto", "ema", "raw") or not is_count:
        raise UsageError(
            f"weights={weights!r}, inference_steps={inference_steps!r}",
            hint="weights must be auto, ema or raw; inference_steps at least 1",
            code="usage.bad_value",
        )
    if not isinstance(checkpoint, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"checkpoint={checkpoint!r}",
            hint="give the path of a run folder or a checkpoint",
            code="usage.bad_value",
        )
    seed = _seed(seed)
    policy, trained = open_policy(str(checkpoint), weights, inference_steps)
    return PolicyRunner(policy, trained.origin, seed)
