"""A trained policy for the user's own control loop."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import Weights
from vlatool.evaluation.history import History, ImageFit, RobotState
from vlatool.evaluation.trained_policy import TrainedPolicy, load_trained
from vlatool.plugins import did_you_mean

_INSTRUCTION = "instruction"
_log = logging.getLogger(__name__)


class PolicyRunner:
    """Runs a trained policy for one robot and keeps the history of observations and actions.

    Attributes:
        cameras: Cameras that the policy takes.
        fields: Measured fields that an observation needs, name to width: the inputs of the policy
            and the poses that its actions are relative to.
        actions: Action fields, name to width; all absolute, so no name ends in `_relative`.
        fps: Steps per second.
        horizon: Steps of an action chunk.
        checkpoint: Checkpoint that the weights are from.
        weights: `ema` or `raw`.
    """

    def __init__(self, trained: TrainedPolicy, inference_steps: int, seed: int) -> None:
        policy = trained.policy
        self.cameras = policy.cameras
        self.fields = policy.fields
        self.actions = policy.actions
        self.fps = trained.assets.fps
        self.horizon = policy.length - policy.past
        self.checkpoint = trained.checkpoint
        self.weights = trained.weights
        self._policy = policy
        self._inference_steps = inference_steps
        self._seed = seed
        self._fit = ImageFit(policy.images, partial(_log.warning, "%s"))
        self._names = [*self.cameras, *self.fields, _INSTRUCTION]
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Clears the history; call it before each episode.

        The same observations then give the same action chunks.

        Args:
            seed: Seed of the sampled noise; None: that of `load_policy`.

        Raises:
            UsageError: The seed is not an integer of at least 0.
        """
        rng = torch.Generator().manual_seed(self._seed if seed is None else _seed(seed))
        self._history = History(self._policy, self._fit)
        self._rng = rng
        self._chunk: dict[str, Array] = {}
        self._num_executed = 0

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
        policy_input = self._history.observation(observation[_INSTRUCTION])
        chunks = self._policy.act([policy_input], steps=self._inference_steps, rng=self._rng)
        self._chunk = {name: chunks[name][0] for name in self.actions}
        self._num_executed = 0
        return {name: chunk.copy() for name, chunk in self._chunk.items()}

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Adds an observation without computing a chunk; arguments and errors as for `act`."""
        state = self._robot_state(observation)
        left = self.horizon - self._num_executed if self._chunk else None
        is_count = _is_int(executed) and executed >= 1
        if not is_count or (left is not None and executed > left):
            raise UsageError(
                f"executed={executed!r}: the last chunk has {self.horizon} steps, "
                f"{self._num_executed} of them were executed before",
                hint="give the number of steps executed since the last call of act or observe, as "
                "an integer",
                code="usage.executed_steps",
            )
        self._history.add_observation(state, executed)
        if self._chunk:
            for step in range(self._num_executed, self._num_executed + executed):
                self._history.add_action({name: row[step] for name, row in self._chunk.items()})
            self._num_executed += executed

    def _robot_state(self, observation: Mapping[str, Any]) -> RobotState:
        # Callers are not type-checked: a control loop gets a clear error, not a traceback.
        if not isinstance(observation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(
                f"the observation is of type {type(observation).__name__}, not a mapping",
                hint=f"give a dict with {', '.join(self._names)}",
                code="data.no_observation",
            )
        for name in observation:
            if name not in self._names:
                raise DataError(
                    f"the policy takes no observation {name!r}",
                    hint=did_you_mean(str(name), self._names),
                    code="data.unknown_observation",
                    details={"name": str(name), "known": self._names},
                )
        missing = [name for name in self._names if name not in observation]
        if missing:
            raise DataError(
                f"the observation lacks {', '.join(map(repr, missing))}",
                hint=f"the policy needs {', '.join(self._names)}",
                code="data.missing_observation",
                details={"missing": missing},
            )
        instruction = observation[_INSTRUCTION]
        if not isinstance(instruction, str):
            raise DataError(
                f"the instruction is of type {type(instruction).__name__}, not a string",
                hint="give one sentence; '' for no instruction",
                code="data.no_instruction",
            )
        images = {name: _array(name, observation[name]) for name in self.cameras}
        fields = {name: _vector(name, observation[name], n) for name, n in self.fields.items()}
        return RobotState(images, fields)


def _array(name: str, values: Any) -> Array:
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
    array = _array(name, values)
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


def load_policy(
    checkpoint: str | Path, *, weights: Weights = "auto", inference_steps: int = 8, seed: int = 0
) -> PolicyRunner:
    """Loads a trained policy for a control loop.

        import vlatool

        policy = vlatool.load_policy("runs/mine")
        chunk = policy.act({"front": image, "pose": pose, "instruction": "pick up the cube"})

    Args:
        checkpoint: Run folder of `vlatool train`, whose newest checkpoint is loaded, or one of
            its checkpoints/step_*.
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
    return PolicyRunner(load_trained(str(checkpoint), weights), inference_steps, _seed(seed))
