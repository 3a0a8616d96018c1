"""A trained policy for one robot: checked observations, and the history of its episode.

`load_policy` opens a run, a checkpoint or an export, and returns a `PolicyRunner`. Its `act`:

1. checks the observation: names, image sizes, widths, finite numbers;
2. adds it to the history of the episode (evaluation/control.py), which also knows the commands that
   were executed since;
3. asks the policy for a chunk: inputs are normalized as in training, the network samples, and
   relative poses become absolute commands;
4. joins the new chunk to the steps that the robot still executes.

`eval rollout`, `predict`, `serve` and your own loop all use this class.

Legend of shapes: T action steps, C dimensions of a field.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.resolve import Override, load_config
from vlatool.episode import Array, as_array, channels_last
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import RolloutConfig, SamplingOptions
from vlatool.evaluation.control import (
    ControlOptions,
    EpisodeControl,
    ImageSizes,
    RobotState,
    begin_chunks,
)
from vlatool.evaluation.controllers import control_options
from vlatool.events import NULL, Reporter, counted
from vlatool.models.base import Policy
from vlatool.models.published import Trained, WeightsOrigin
from vlatool.models.trained import Weights, open_trained
from vlatool.plugins import did_you_mean
from vlatool.report.text import indices_text, number_text, range_text
from vlatool.transforms.normalize import range_width

_INSTRUCTION = "instruction"

_log = logging.getLogger(__name__)

# A state further outside its training range than this is reported.
_FAR = 1.0


class StateRanges:
    """Finds states that are far outside their range in the training data, such as degrees where
    the data have radians.

    The deviation of a value is its distance from the range of its dimension, divided by the width
    of that range. As in normalization, a dimension that never moved has the width 1.
    """

    def __init__(
        self,
        policy: Policy,
        tell: Callable[[str], None],  # called once for each field that is far outside
        max_deviation: float | None = None,  # largest deviation that is accepted; None: any
    ) -> None:
        self._tell = tell
        self._max_deviation = max_deviation
        self._told: set[str] = set()
        self._ranges: dict[str, tuple[Array, Array]] = {}
        for name in policy.sees.fields:
            trained = policy.state_range(name)
            if trained is not None:
                self._ranges[name] = trained

    def far(self, fields: Mapping[str, Array]) -> list[str]:
        """Names of the fields [C] that are far outside.

        Raises:
            DataError: A field deviates by more than `max_deviation`.
        """
        found: list[str] = []
        for name, (low, high) in self._ranges.items():
            values = fields[name]
            deviations = np.maximum(low - values, values - high) / range_width(low, high)
            largest = float(deviations.max(initial=0.0))
            if self._max_deviation is not None and largest > self._max_deviation:
                text = _deviation_text(name, values, low, high, deviations)
                raise DataError(
                    f"{text}: {largest:.3g} times the width of that range away, more than "
                    f"max_deviation={self._max_deviation:g}",
                    hint="send the units and the order of the training data, or raise "
                    "max_deviation",
                    code="data.mismatch",
                    details={"field": name, "deviation": largest},
                )
            if largest > _FAR:
                found.append(name)
                if name not in self._told:
                    self._told.add(name)
                    text = _deviation_text(name, values, low, high, deviations)
                    self._tell(f"{text}: other units?")
        return found


def _deviation_text(name: str, values: Array, low: Array, high: Array, deviations: Array) -> str:
    """What the dimension that is furthest outside is, and what it was in the training data."""
    worst = int(deviations.argmax())
    text = f"the field {name!r} is {number_text(values[worst])}"
    text += f" in dimension {worst}" if len(values) > 1 else ""
    text += f", but {range_text([low[worst], high[worst]])} in the training data"
    far = np.flatnonzero(deviations > _FAR).tolist()
    return f"{text} (far outside: {indices_text(far)})" if len(far) > 1 else text


class PolicyRunner:
    """Runs a trained policy for one robot and keeps the history of observations and actions.

    Attributes:
        cameras: Cameras that the policy takes.
        fields: Measured fields that an observation needs, name to width: the inputs of the policy,
            and the poses to which its actions are relative.
        actions: Action fields, name to width; all absolute, so no name ends in `_relative`.
        fps: Steps per second.
        horizon: Steps of an action chunk.
        history: Number of steps before the current one that the policy sees; with 0 it needs no
            `observe`.
        checkpoint: Checkpoint or published file from which the weights were read.
        weights: `ema` or `raw`.
        has_instruction: True if an observation needs an `instruction`.
        names: Keys that an observation needs.
        sizes: Rule for images whose size differs from training.
        far: Fields of the newest observation that are far outside their range in the training data.
        num_far: Number of such observations in this episode, by field.
        episode: History of the current episode; a server computes chunks of several in one batch.
    """

    def __init__(
        self,
        policy: Policy,
        origin: WeightsOrigin,
        seed: int,
        sizes: ImageSizes | None = None,
        options: ControlOptions | None = None,
        max_deviation: float | None = None,
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
        self._options = options
        self.sizes = sizes or ImageSizes(sees, partial(_log.warning, "%s"))
        self._ranges = StateRanges(policy, self.sizes.tell, max_deviation)
        self.has_instruction = sees.instruction
        words = [_INSTRUCTION] if sees.instruction else []
        self.names = [*self.cameras, *self.fields, *words]
        self.reset()
        self.history = self.episode.history

    def reset(self, seed: int | None = None) -> None:
        """Clears the history; call it before each episode.

        The same observations then give the same action chunks. With the seed of an episode of
        `vlatool eval rollout` they have the noise of that episode.

        Args:
            seed: Seed of the sampled noise; None: the seed of `load_policy`.

        Raises:
            UsageError: The seed is not an integer of at least 0.
        """
        seed = self._seed if seed is None else _seed(seed)
        self.episode = EpisodeControl(self._policy, seed, self.sizes, self._options)
        self.far: list[str] = []
        self.num_far: dict[str, int] = {}

    def act(
        self, observation: Mapping[str, Any], *, executed: int = 1, delay: int = 0
    ) -> dict[str, Array]:
        """Returns the action chunk for an observation.

        A step lasts 1 / `fps` seconds. `executed` is the number of steps of the last chunk that
        were executed since the last call of `act` or `observe`: a loop that executes four steps and
        then calls again passes 4. From this number the policy knows its past actions. It assumes
        that the observations of the steps in between equal the newest one; pass them to `observe`
        if you have them.

        Args:
            observation: Each of `cameras` to uint8 [H, W, 3], RGB, of any size, as recorded before
                preprocessing; each of `fields` to its values [C]; `instruction` to a string.
            executed: At least 1; ignored on the first call after `reset`.
            delay: Number of steps of the last chunk that the robot executes while this chunk is
                computed. The first `delay` rows of the result are these steps.

        Returns:
            Each of `actions` to float64 [T, C], T = `horizon`, absolute, in the units of the data.
            The first row is the action for the current step.

        Raises:
            DataError: A value is missing, unknown, has another type, shape or width, or deviates
                by more than `max_deviation`.
            UsageError: `executed` or `delay` is not an integer, or `executed` exceeds the steps
                left in the last chunk.

            After any error the policy knows what it knew before the call.
        """
        delay = _checked_delay(delay)
        with self.episode.restored_on_error():
            self.observe(observation, executed=executed)
            self.episode.delay = delay
            words = [self.instruction(observation)]
            begin_chunks(self._policy, [self.episode], words, batch_size=1)
        return {name: chunk.copy() for name, chunk in self.episode.chunk.items()}

    def instruction(self, observation: Mapping[str, Any]) -> str:
        """The instruction in an observation that `observe` has accepted."""
        return observation[_INSTRUCTION] if self.has_instruction else ""

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Adds an observation without computing a chunk; arguments and errors as for `act`."""
        state = self._robot_state(observation)
        episode = self.episode
        is_count = _is_int(executed) and executed >= 1
        if not is_count or (episode.chunk and executed > episode.num_left):
            raise UsageError(
                f"executed={executed!r}: the last chunk has {counted(self.horizon, 'step')}, and "
                f"{episode.num_executed} of them were executed before",
                hint="give the number of steps that were executed since the last call of act "
                "or observe",
                code="usage.bad_value",
            )
        self.far = self._ranges.far(state.fields)
        episode.observe(state, executed)
        for name in self.far:
            self.num_far[name] = self.num_far.get(name, 0) + 1
        if episode.chunk:
            episode.execute(executed)

    def _robot_state(self, observation: Mapping[str, Any]) -> RobotState:
        # Callers are not type-checked: a control loop gets a clear error, not a traceback.
        if not isinstance(observation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(
                f"the observation is of type {type(observation).__name__}, not a mapping",
                hint=f"give a dict with {', '.join(self.names)}",
                code="data.bad_request",
            )
        for name in observation:
            if name not in self.names:
                raise DataError(
                    f"the policy has no input {name!r}",
                    hint=did_you_mean(str(name), self.names),
                    code="data.bad_request",
                    details={"name": str(name), "known": self.names},
                )
        missing = [name for name in self.names if name not in observation]
        if missing:
            raise DataError(
                f"the observation lacks {', '.join(map(repr, missing))}",
                hint=f"the policy needs {', '.join(self.names)}",
                code="data.bad_request",
                details={"missing": missing},
            )
        instruction = observation.get(_INSTRUCTION, "")
        if not isinstance(instruction, str):
            raise DataError(
                f"the instruction is of type {type(instruction).__name__}, not a string",
                hint="give one sentence; '' for no instruction",
                code="data.bad_request",
            )
        images = {name: channels_last(as_array(name, observation[name])) for name in self.cameras}
        fields = {name: _vector(name, observation[name], n) for name, n in self.fields.items()}
        return RobotState(images, fields)


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _checked_delay(value: Any) -> int:
    if not _is_int(value) or value < 0:
        raise UsageError(f"delay={value!r}", hint="give a number of steps", code="usage.bad_value")
    return int(value)


def _seed(value: Any) -> int:
    if not _is_int(value) or not 0 <= value < 2**63:
        raise UsageError(
            f"seed={value!r}", hint="give an integer from 0 to 2^63 - 1", code="usage.bad_value"
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
            hint="give only the newest values, in the order and units of the training data",
            code="data.mismatch",
            details={"field": name, "width": width},
        )
    if not np.isfinite(array).all():
        raise DataError(
            f"the field {name!r} has values that are not finite",
            hint="give finite values; a policy cannot use NaN or infinity",
            code="data.not_finite",
            details={"field": name},
        )
    return array.astype(np.float64).reshape(width)


def open_policy(
    location: str, weights: Weights, options: SamplingOptions, reporter: Reporter = NULL
) -> tuple[Policy, Trained]:
    """Opens a policy with these options; returns the policy, and where its weights came from."""
    trained = open_trained(location, weights=weights, reporter=reporter)
    policy = trained.policy().with_steps(options.inference_steps)
    return policy.with_sampling(options.sampling), trained


def load_policy(
    checkpoint: str | Path,
    *,
    weights: Weights = "auto",
    inference_steps: int = 8,
    seed: int = 0,
    ensemble_decay: float | None = None,
    grippers: Sequence[Mapping[str, Any]] = (),
    **options: Any,
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
        ensemble_decay: As for `vlatool eval rollout`.
        grippers: As for `vlatool eval rollout`, mappings.
        options: `temperature`, `samples` and `selection`, as for `vlatool eval rollout`, and
            `max_deviation`, the distance of a state from its range in the training data, in widths
            of that range, above which `act` and `observe` refuse it; None: it is only reported,
            above 1.

    Raises:
        UsageError: An argument is invalid, or the checkpoint has no averaged weights but `ema` was
            requested.
        ConfigError: A gripper, the decay or the sampling is invalid.
        DataError: There is no checkpoint, it is broken, or its policy takes future images.
    """
    max_deviation = options.pop("max_deviation", None)
    is_limit = isinstance(max_deviation, int | float) and max_deviation >= 0
    if max_deviation is not None and not is_limit:
        raise UsageError(
            f"max_deviation={max_deviation!r}",
            hint="give a number of at least 0, or None",
            code="usage.bad_value",
        )
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
    for name in options.keys() - SamplingOptions.model_fields.keys():
        raise UsageError(
            f"unknown argument {name!r}", hint="see help(load_policy)", code="usage.bad_value"
        )
    control = {
        "ensemble_decay": ensemble_decay,
        "grippers": [dict(row) for row in grippers],
        "inference_steps": int(inference_steps),
        **options,
    }
    overrides = [Override(key, value, "load_policy") for key, value in control.items()]
    config = load_config(RolloutConfig, overrides=overrides).config
    policy, trained = open_policy(str(checkpoint), weights, config)
    return PolicyRunner(
        policy,
        trained.origin,
        seed,
        options=control_options(config, policy),
        max_deviation=max_deviation,
    )
