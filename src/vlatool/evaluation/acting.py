"""A trained policy for a control loop of one's own."""

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
    """Sees the newest moment, remembers the past, plans the next steps of one robot.

    Attributes:
        cameras: Cameras that it sees.
        fields: EvalResult fields that it needs, name to width: what it sees, and the poses that
            its actions are relative to.
        actions: Fields that it commands, name to width; all absolute, so no name ends in
            `_relative`.
        fps: Steps per second.
        chunk: Steps of a plan.
        checkpoint: Where its weights came from.
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
        """Forgets what was seen and done; an episode begins.

        The same observations then give the same plans.

        Args:
            seed: Of the noise that plans are sampled from; None: that of `load_policy`.

        Raises:
            UsageError: It is no whole number from 0 on.
        """
        rng = torch.Generator().manual_seed(self._seed if seed is None else _seed(seed))
        self._memory = History(self._policy, self._fit)
        self._rng = rng
        self._plan: dict[str, Array] = {}
        self._done = 0

    def act(self, observation: Mapping[str, Any], *, executed: int = 1) -> dict[str, Array]:
        """Plans the next steps.

        A step lasts 1 / `fps` seconds. `executed` says how many steps of the last plan were
        carried out since the last call of `act` or `see`; a loop that carries out four and then
        asks again says 4. The policy then knows what it commanded. It has not seen the moments
        between, which it takes to look like the newest one; `see` shows them.

        Args:
            observation: Each of `cameras` to uint8 [H, W, 3], RGB, of any size, as the recordings
                had it before preprocessing; each of `fields` to its values [C]; `instruction` to
                a text.
            executed: At least 1; without meaning on the first call after `reset`.

        Returns:
            Each of `actions` to float64 [T, C], T = `chunk`, in the units of the data, absolute:
            the first row is the command for now.

        Raises:
            DataError: Something is missing, unknown, or of another type, shape or width.
            UsageError: `executed` is no whole number, or the last plan has not so many steps left.
        """
        self.observe(observation, executed=executed)
        seen = self._memory.observation(observation[_INSTRUCTION])
        plans = self._policy.act([seen], steps=self._inference_steps, rng=self._rng)
        self._plan = {name: plans[name][0] for name in self.actions}
        self._done = 0
        return {name: plan.copy() for name, plan in self._plan.items()}

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Takes in a moment while the last plan is being carried out; the same as `act` else."""
        moment = self._moment(observation)
        left = self.horizon - self._done if self._plan else None
        is_count = _is_whole(executed) and executed >= 1
        if not is_count or (left is not None and executed > left):
            raise UsageError(
                f"executed={executed!r}: the last plan has {self.horizon} steps, {self._done} were "
                "carried out before",
                hint="say how many were carried out since the last call of act or see, as a whole "
                "number",
                code="usage.executed_steps",
            )
        self._memory.add_observation(moment, executed)
        if self._plan:
            for step in range(self._done, self._done + executed):
                self._memory.add_action({name: plan[step] for name, plan in self._plan.items()})
            self._done += executed

    def _moment(self, observation: Mapping[str, Any]) -> RobotState:
        # Callers are not type-checked: what reaches a robot's loop is told, not a traceback.
        if not isinstance(observation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(
                f"the observation is of type {type(observation).__name__}, not a mapping",
                hint=f"give a dict with {', '.join(self._names)}",
                code="data.no_observation",
            )
        for name in observation:
            if name not in self._names:
                raise DataError(
                    f"the policy knows no {name!r}",
                    hint=did_you_mean(str(name), self._names),
                    code="data.unknown_observation",
                    details={"name": str(name), "known": self._names},
                )
        missing = [name for name in self._names if name not in observation]
        if missing:
            raise DataError(
                f"the observation lacks {', '.join(map(repr, missing))}",
                hint=f"a policy of these data needs {', '.join(self._names)}",
                code="data.missing_observation",
                details={"missing": missing},
            )
        told = observation[_INSTRUCTION]
        if not isinstance(told, str):
            raise DataError(
                f"the instruction is of type {type(told).__name__}, not a text",
                hint="give one sentence; '' where the robot is told nothing",
                code="data.no_instruction",
            )
        images = {name: _array(name, observation[name]) for name in self.cameras}
        fields = {name: _vector(name, observation[name], n) for name, n in self.fields.items()}
        return RobotState(images, fields)


def _array(name: str, values: Any) -> Array:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, on a GPU, with a gradient
        told = str(error).partition("\n")[0]
        raise DataError(
            f"{name!r} is a {type(values).__name__} that makes no array: {told}",
            hint="give a numpy array, or a tensor as tensor.detach().cpu().numpy()",
            code="data.no_array",
            details={"name": name},
        ) from None


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _seed(value: Any) -> int:
    if not _is_whole(value) or not 0 <= value < 2**63:
        raise UsageError(
            f"seed={value!r}",
            hint="a seed is a whole number from 0 to 2^63 - 1",
            code="usage.bad_value",
        )
    return int(value)


def _vector(name: str, values: Any, width: int) -> Array:
    """A measured field as float64 [C]."""
    given = _array(name, values)
    if given.dtype.kind not in "fiu" or given.shape not in [
        (width,),
        *([()] if width == 1 else []),
    ]:
        raise DataError(
            f"the field {name!r} is {given.dtype} {list(given.shape)}, not {width} numbers",
            hint="give the newest values only, in the order and units of the data",
            code="data.field_shape",
            details={"field": name, "width": width},
        )
    if not np.isfinite(given).all():
        raise DataError(
            f"the field {name!r} has values that are not finite",
            hint="a policy cannot act on a broken measurement",
            code="data.field_not_finite",
            details={"field": name},
        )
    return given.astype(np.float64).reshape(width)


def load_policy(
    checkpoint: str | Path, *, weights: Weights = "auto", inference_steps: int = 8, seed: int = 0
) -> PolicyRunner:
    """A trained policy that acts.

        import vlatool

        policy = vlatool.load_policy("runs/mine")
        plan = policy.act({"front": picture, "pose": pose, "instruction": "pick up the cube"})

    Args:
        checkpoint: Run folder of `vlatool train`, which gives its newest checkpoint, or one of
            its checkpoints/step_*.
        weights: `ema`, `raw`, or `auto`: averaged where there are some.
        inference_steps: Evaluations of the network per plan.
        seed: Of the noise that plans are sampled from.

    Raises:
        UsageError: An argument cannot be one, or averaged weights are asked for and there are none.
        DataError: There is no checkpoint, it is broken, or its policy wants future pictures.
    """
    is_count = _is_whole(inference_steps) and inference_steps >= 1
    if weights not in ("auto", "ema", "raw") or not is_count:
        raise UsageError(
            f"weights={weights!r}, inference_steps={inference_steps!r}",
            hint="weights are auto, ema or raw; inference_steps is 1 or more",
            code="usage.bad_value",
        )
    if not isinstance(checkpoint, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"checkpoint={checkpoint!r}",
            hint="give the path of a run folder or checkpoint",
            code="usage.bad_value",
        )
    return PolicyRunner(load_trained(str(checkpoint), weights), inference_steps, _seed(seed))
