"""The control loop around a policy: history of an episode, batches, execution of action chunks.

Rollouts, `load_policy` and open-loop evaluation share it. Legend of shapes: B observations, T
action steps, C dimensions of a field.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from vlatool.checkpoints.contract import refuse, size_text
from vlatool.config.coerce import value_text
from vlatool.episode import (
    Array,
    Observation,
    ObservationSpec,
    UInt8Array,
)
from vlatool.errors import DataError, image_error
from vlatool.evaluation.config import GripperConfig, ImageFit
from vlatool.events import counted
from vlatool.loading.order import keyed_generator
from vlatool.models.base import Policy
from vlatool.models.policy import in_batches
from vlatool.plugins import did_you_mean
from vlatool.transforms.geometry import ResizeMethod, resize
from vlatool.transforms.relative import actual_field

# Commands by field [T, C].
Commands = Mapping[str, Array]


@dataclass(frozen=True)
class Gripper:
    """Gripper with two commands and a threshold each way. Source: reference/policy 4.1."""

    field: str  # action field
    dimension: int
    closed: float  # command that closes the gripper
    opened: float  # command that opens it
    # An open gripper closes below this share of the way from `closed` to `opened`.
    close_below: float
    open_above: float  # A closed one opens above this share

    def is_open(self, value: float) -> bool:
        """True if a value is nearer to open than to closed."""
        return self._share(value) > (self.close_below + self.open_above) / 2

    def commands(self, values: Array, *, is_open: bool) -> Array:
        """Commands [T] for the values [T] of a policy."""
        result = np.empty(len(values))
        for step, value in enumerate(values):
            share = self._share(value)
            is_open = share >= self.close_below if is_open else share > self.open_above
            result[step] = self.opened if is_open else self.closed
        return result

    def _share(self, value: float) -> float:
        return (value - self.closed) / (self.opened - self.closed)


def grippers_of(configs: Sequence[GripperConfig], policy: Policy) -> tuple[Gripper, ...]:
    """Grippers of a policy; commands that are not given are the extremes of its training data."""
    return tuple(_gripper(config, policy) for config in configs)


def _gripper(config: GripperConfig, policy: Policy) -> Gripper:
    name = config.field
    dimension = config.dimension
    if dimension >= policy.actions.get(name, 0):
        known = ", ".join(f"{field} ({width} wide)" for field, width in policy.actions.items())
        raise DataError(
            f"grippers: the policy has no dimension {dimension} of an action field {name!r}",
            hint=did_you_mean(name, list(policy.actions)) or f"it has {known}",
            code="data.unknown_field",
            details={"field": name, "dimension": dimension},
        )
    closed = config.closed
    opened = config.opened
    if closed is None or opened is None:
        known = policy.action_range(name)
        if known is None:
            raise DataError(
                f"grippers: the range of {name!r} in the training data is unknown",
                hint="set `closed` and `opened` of the gripper",
                code="data.unknown_field",
                details={"field": name},
            )
        low, high = known
        closed = float(low[dimension]) if closed is None else closed
        opened = float(high[dimension]) if opened is None else opened
    if closed == opened:
        raise DataError(
            f"grippers: {name!r} has the same command {closed:g} for open and closed",
            hint="set different `closed` and `opened`",
            code="data.contradicted_declaration",
            details={"field": name},
        )
    return Gripper(name, dimension, closed, opened, config.close_below, config.open_above)


class ChunkJoiner:
    """Joins the chunks that a policy plans into the commands of one episode.

    `ensemble_decay`: decay of the weights; None: no ensemble.

    A chunk takes effect some steps after its observation. With an ensemble, the command of a step
    is the mean over all chunks that reach it, weighted exp(-decay * i), i = 0 for the oldest (Zhao
    et al. 2023, algorithm 2). Grippers come last.
    """

    def __init__(
        self, grippers: Sequence[Gripper] = (), ensemble_decay: float | None = None
    ) -> None:
        self._grippers = grippers
        self._decay = ensemble_decay
        self._chunks: list[tuple[int, Commands]] = []
        self._start = 0
        # State of each gripper before the first command; None: unknown.
        self._states: list[bool | None] = [None] * len(grippers)
        # Commands [T, C] from the newest observation on, before `grippers`.
        self.planned: Commands = {}
        self.commands: Commands = {}  # commands to execute [T, C]; empty before the first chunk

    def start(self, measured: Commands) -> None:
        """Sets the states of the grippers that are measured; `measured` has fields [C]."""
        for number, gripper in enumerate(self._grippers):
            values = measured.get(actual_field(gripper.field) or gripper.field, ())
            if gripper.dimension < len(values):
                self._states[number] = gripper.is_open(values[gripper.dimension])

    def join(self, chunk: Commands, executed: int, delay: int) -> None:
        """Takes over the commands of a new chunk [T, C], which starts at its observation."""
        self._start += executed
        blended = chunk if self._decay is None else self._ensemble(chunk, self._decay)
        carried = slice(executed, executed + delay)
        before = self.commands
        self.planned = _joined(self.planned, blended, carried)
        self.commands = _joined(before, self.planned, carried)
        for number, gripper in enumerate(self._grippers):
            if executed:
                last = before[gripper.field][executed - 1, gripper.dimension]
                self._states[number] = bool(last == gripper.opened)
            self._move(gripper, delay, is_open=self._states[number])

    def _move(self, gripper: Gripper, delay: int, *, is_open: bool | None) -> None:
        """Turns the values of a gripper into its two commands from step `delay` on."""
        field = gripper.field
        dimension = gripper.dimension
        commands = self.commands[field].copy()
        if delay:
            is_open = bool(commands[delay - 1, dimension] == gripper.opened)
        elif is_open is None:
            is_open = gripper.is_open(commands[0, dimension])
        values = commands[delay:, dimension]
        commands[delay:, dimension] = gripper.commands(values, is_open=is_open)
        self.commands = {**self.commands, field: commands}

    def _ensemble(self, chunk: Commands, decay: float) -> Commands:
        """Weighted means [T, C] of a chunk and all earlier chunks that reach its steps."""
        self._chunks.append((self._start, chunk))
        steps = len(next(iter(chunk.values())))
        sums = {name: np.zeros_like(values) for name, values in chunk.items()}
        weights = np.zeros((steps, 1))
        rank = np.zeros((steps, 1))
        reaching = [row for row in self._chunks if row[0] + steps > self._start]
        for start, older in reaching:
            count = start + steps - self._start
            weight = np.exp(-decay * rank[:count])
            for name, values in older.items():
                sums[name][:count] += weight * values[-count:]
            weights[:count] += weight
            rank[:count] += 1
        self._chunks = reaching
        return {name: values / weights for name, values in sums.items()}


def _joined(before: Commands, chunk: Commands, carried: slice) -> Commands:
    if carried.start == carried.stop:
        return chunk
    return {
        name: np.concatenate([before[name][carried], values[carried.stop - carried.start :]])
        for name, values in chunk.items()
    }


_IMAGE_DIMENSIONS = 3
_SEEDS = 2**63
# Larger commands become infinite where they are scaled, averaged or sent.
_LARGEST = float(np.finfo(np.float32).max)


def chunk_seed(seed: int, number: int) -> int:
    """Seed, 0 to 2^63 - 1, of chunk `number` of an episode, or of sample `number`."""
    return int(keyed_generator(seed, "chunk", number).integers(_SEEDS))


_RESIZE: Mapping[ImageFit, ResizeMethod] = {
    "squash": "resize_no_crop",
    "pad": "resize_fit",
    "crop": "center_crop",
}
# Part of a side, or pixels, by which images of one aspect ratio may differ.
_RATIO = 0.01
_PIXELS = 0.5


class ImageSizes:
    """Decides what happens to images whose size differs from the recordings and the training
    images.

    An image with the same aspect ratio is resized as in training, with a line in the log for each
    camera and size. Another aspect ratio is an error, unless `resize` or `allow` accepts it, or the
    size of the recordings is unknown.
    """

    def __init__(
        self, sees: ObservationSpec, log: Callable[[str], None], allow: Collection[str] = ()
    ) -> None:
        self._sees = sees
        self._log = log
        self._allow = allow
        self._logged: set[tuple[str, tuple[int, int]]] = set()
        self.allowed: dict[str, dict[str, str]] = {}  # differences that `allow` took, by key
        self.messages: list[str] = []  # of the log, until a server has sent them

    def check_observation(self, observation: Observation) -> None:
        """Applies the rule to the images of an observation, without changing them."""
        for camera, images in observation.images.items():
            self.apply(camera, images[0], is_turned=observation.is_preprocessed)

    def apply(
        self,
        camera: str,
        image: Array,
        declared: ImageFit | None = None,
        *,
        is_turned: bool = False,
    ) -> Array:
        """The image uint8 [H, W, 3], resized to the size of a recording if `declared` says how."""
        view = self._sees.cameras[camera]
        size = (image.shape[0], image.shape[1])
        if view.size is None:
            return image
        height, width = view.size
        is_same = is_turned or view.quarter_turns % 2 == 0
        trained = (height, width) if is_same else (width, height)
        known = [*view.recorded, trained]
        if size in known:
            return image
        how = "as the training data were"
        if declared is not None:
            how = declared
            image = resize(image, known[0], _RESIZE[declared], "lanczos")
        elif view.recorded and not any(_is_alike(size, each) for each in known):
            texts = " or ".join(map(size_text, dict.fromkeys(known)))
            unequal = [(f"cameras.{camera}.size", texts, size_text(size))]
            hint = "send images with that aspect ratio, or say how to fit them: `resize: "
            hint += "squash`, `pad` or `crop` in --map or for rollouts"
            self.allowed |= refuse(unequal, self._allow, "images with another aspect ratio", hint)
        if (camera, size) not in self._logged:
            self._logged.add((camera, size))
            self.tell(
                f"images of {camera!r} are {size_text(size)}, the policy was trained on "
                f"{size_text(trained)}: resized {how}"
            )
        return image

    def tell(self, text: str) -> None:
        """Logs a text, and keeps it until a server has sent it."""
        self.messages.append(text)
        self._log(text)


def _is_alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """True if both have one aspect ratio, to half a pixel or 1 %."""
    ratio = size[0] * other[1] / (size[1] * other[0])
    return abs(ratio - 1) <= max(_RATIO, _PIXELS / min(*size, *other))


@dataclass(frozen=True)
class RobotState:
    """Images and measured fields at one step."""

    images: Mapping[str, Array]  # map from camera to uint8 [H, W, 3], RGB, of any size, as recorded
    fields: Mapping[str, Array]  # map from field name to values [C]


@dataclass(frozen=True)
class ControlOptions:
    """Execution of the chunks of a policy."""

    delay_steps: int = 0  # number of steps of a chunk that are executed while the next is computed
    # Decay of the weights of overlapping chunks; None: only the newest counts.
    ensemble_decay: float | None = None
    grippers: Sequence[Gripper] = ()
    # The policy sees its past commands as they were before `grippers`.
    remembers_planned: bool = False
    # Ways by camera in which images of another aspect ratio get that of the recordings.
    resize: Mapping[str, ImageFit] = field(default_factory=dict[str, ImageFit])


class EpisodeControl:
    """History of one episode, as many steps as the policy sees, and the chunk that is executed.

    A step without an observation takes the observation of the next step that has one. So the steps
    before an episode equal its first step.
    """

    def __init__(
        self,
        policy: Policy,  # policy that acts
        seed: int,  # seed of the random numbers of the policy in this episode
        sizes: ImageSizes,  # rule for images of other sizes
        options: ControlOptions | None = None,  # options of the execution
        lookahead: int = 0,
    ) -> None:
        options = ControlOptions() if options is None else options
        self._sees = policy.sees
        self._actions = tuple(policy.actions)
        self._seed = seed
        self._sizes = sizes
        self._resize = options.resize
        self._lookahead = lookahead
        offsets = [0]
        for view in self._sees.cameras.values():
            offsets += view.offsets
        last = max(offsets)
        if last > lookahead:
            raise DataError(
                f"the policy needs images up to {counted(last, 'step')} after the current one",
                hint="train a policy with data.image_indices of at most 0",
                code="data.mismatch",
            )
        # Number of steps before the current one that the policy sees.
        self.history = max(-min(offsets), self._sees.past)
        self._length = self.history + 1 + lookahead
        self._states: deque[RobotState] = deque(maxlen=self._length)
        self._commands: deque[Mapping[str, Array]] = deque(maxlen=self._sees.past)
        self._chunks = ChunkJoiner(options.grippers, options.ensemble_decay)
        self._remembers_planned = options.remembers_planned
        self._num_chunks = 0
        # Number of steps of the last chunk that are executed until the next takes effect.
        self.delay = options.delay_steps
        self.num_executed = 0  # number of steps of the chunk that were executed

    @property
    def chunk(self) -> Mapping[str, Array]:
        """Map from field to commands [T, C]; empty before the first chunk."""
        return self._chunks.commands

    @property
    def num_left(self) -> int:
        """Number of steps of the chunk that are still to be executed; 0 before the first chunk."""
        return len(next(iter(self.chunk.values()), ())) - self.num_executed

    def observe(self, state: RobotState, steps: int = 1) -> None:
        sizes: set[tuple[int, ...]] = set()
        for name, image in state.images.items():
            sizes.add(_checked_image(name, image).shape[:2])
        if self._states:
            sizes.update(image.shape[:2] for image in self._states[-1].images.values())
        if len(sizes) > 1 and any(view.size is None for view in self._sees.cameras.values()):
            raise DataError(
                f"images of different sizes: {value_text(sorted(sizes))}; the run does not record "
                "the size of its training images",
                hint="resize all images to the size of the training images",
                code="data.mismatch",
            )
        images: dict[str, Array] = {}
        for name, image in state.images.items():
            resized = self._sizes.apply(name, image, self._resize.get(name))
            images[name] = resized.copy()  # a camera may write every frame into the same buffer
        count = steps if self._states else self._length
        self._states.extend([RobotState(images, state.fields)] * min(count, self._length))

    def observation(self, instruction: str) -> tuple[Observation, int]:
        """Input of the policy at the current step, and the seed of its next chunk."""
        states = list(self._states)
        now = len(states) - 1 - self._lookahead
        past, mask = self._past_commands()
        delay = min(self.delay, self.num_left)
        committed = None
        if delay:
            rows = slice(self.num_executed, None)
            committed = {name: values[rows] for name, values in self._known().items()}
        images: dict[str, Array] = {}
        for name, view in self._sees.cameras.items():
            images[name] = np.stack([states[now + step].images[name] for step in view.offsets])
        fields: dict[str, Array] = {}
        recent = states[now - self._sees.past : now + 1]
        for name in self._sees.fields:
            fields[name] = np.stack([state.fields[name] for state in recent])
        observation = Observation(
            images=images,
            fields=fields,
            instruction=instruction,
            past_actions=past,
            past_mask=mask,
            committed=committed,
            delay=delay,
        )
        return observation, chunk_seed(self._seed, self._num_chunks)

    def begin(self, chunk: Mapping[str, Array]) -> None:
        """Starts to execute a chunk, a map from field to commands [T, C].

        Its first `delay` steps are replaced by the steps that are left of the previous chunk.
        """
        self._join(chunk, self.delay)
        self._num_chunks += 1

    def hold(self, steps: int) -> None:
        """Starts an episode with a chunk of `steps` equal commands: the measured state."""
        measured = self._states[-1].fields
        chunk: dict[str, Array] = {}
        for name in self._actions:
            values = measured.get(actual_field(name) or "")
            if values is None:
                raise DataError(
                    f"the measured value of {name!r} is unknown, so the robot cannot be held still",
                    hint="leave `compat` out; it needs policies with fields named "
                    "robot__action__... and robot__actual__...",
                    code="data.unknown_field",
                    details={"field": name},
                )
            chunk[name] = np.repeat(values[None], steps, axis=0)
        self._join(chunk, 0)

    @contextmanager
    def restored_on_error(self) -> Generator[None]:
        """Context that restores the history of the episode if it ends with an error."""
        before = self._states.copy(), self._commands.copy(), self.num_executed
        try:
            yield
        except BaseException:
            self._states, self._commands, self.num_executed = before
            raise

    def execute(self, steps: int = 1) -> None:
        """Counts the next steps of the chunk as executed."""
        known = self._known()
        for step in range(self.num_executed, self.num_executed + steps):
            self.remember({name: values[step] for name, values in known.items()})
        self.num_executed += steps

    def remember(self, commands: Mapping[str, Array]) -> None:
        """Adds the commands [C] of a step to the history."""
        self._commands.append(commands)

    def _known(self) -> Mapping[str, Array]:
        """Commands [T, C] of the chunk, in the form in which the policy sees them."""
        return self._chunks.planned if self._remembers_planned else self.chunk

    def _join(self, chunk: Mapping[str, Array], delay: int) -> None:
        if not self.chunk:
            self._chunks.start(self._states[-1 - self._lookahead].fields)
        self._chunks.join(chunk, self.num_executed, min(delay, self.num_left))
        self.num_executed = 0

    def _past_commands(self) -> tuple[dict[str, Array] | None, Array | None]:
        """Last commands [past, C] by field, and the mask [past] of commands that were executed."""
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
    """Computes the next chunk of each episode in batches, and starts to execute it."""
    observations: list[Observation] = []
    seeds: list[int] = []
    for episode, instruction in zip(episodes, instructions, strict=True):
        observation, seed = episode.observation(instruction)
        observations.append(observation)
        seeds.append(seed)
    chunks = in_batches(policy.act, observations, seeds, batch_size)
    check_finite(chunks)
    for row, episode in enumerate(episodes):
        episode.begin({name: np.asarray(chunks[name][row], np.float64) for name in policy.actions})


def check_finite(chunks: Mapping[str, Array]) -> None:
    """Raises a DataError if commands are not finite numbers of float32."""
    bad = [name for name, values in chunks.items() if not (np.abs(values) <= _LARGEST).all()]
    if bad:
        raise DataError(
            f"the policy computes actions that are not finite: {', '.join(bad)}",
            hint="compare units and scale with the training data; if they match, the weights "
            "are damaged: use an earlier checkpoint",
            code="data.not_finite",
            details={"fields": bad},
        )


def _checked_image(camera: str, image: Array) -> UInt8Array:
    shape = image.shape
    if image.dtype != np.uint8 or len(shape) != _IMAGE_DIMENSIONS or shape[-1] != 3:
        raise image_error(camera, image.dtype, shape)
    if 0 in shape:
        raise DataError(f"the image of {camera!r} is empty: {list(shape)}", code="data.bad_request")
    return image
