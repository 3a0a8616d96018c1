"""Gives a robot one command per step: plans in time, in the background, and within limits.

Part of the client package, too: no torch, nothing newer than Python 3.8, relative imports.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# Deadlines, in lengths of a chunk, unless they are given.
_CHUNKS = 2.0


class PolicyClient(Protocol):
    """Policy that `load_policy` or `connect` returned."""

    actions: Mapping[str, int]
    fps: float
    horizon: int
    history: int
    num_far: dict[str, int]

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode."""
        ...

    def act(
        self, observation: Mapping[str, Any], *, executed: int = 1, delay: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Returns an action chunk by field [T, C]."""
        ...

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Adds an observation."""
        ...


class ControlLoop:
    """Asks a policy for one command per step, for one robot; use it in a `with` block.

        policy = vlatool.load_policy("runs/mine")
        limits = {"hand": {"low": [0.2, -0.4, 0.0], "high": [0.7, 0.4, 0.5], "speed": 0.5}}
        with vlatool.ControlLoop(policy, execute_steps=8, delay_steps=3, limits=limits) as loop:
            while robot.moves():
                robot.execute(loop.step(robot.observation()))

    A chunk is planned every `execute_steps` steps. With `delay_steps`, a thread computes it while
    the robot executes that many steps of the previous chunk, and it takes effect after them. So the
    commands do not depend on how long the policy takes. If a plan is late, the loop waits, for
    `max_plan_s` at most.

    Args:
        policy: Policy that `load_policy` or `connect` returned; the loop starts a new episode.
        execute_steps: Steps from one plan to the next.
        delay_steps: Steps that computing a plan is allowed to take.
        limits: Action field to `low` and `high`, the range of a command, and `speed`, its largest
            change per second. Each is a number, or one number per dimension, in the units of the
            robot; infinite: no limit. Commands outside are moved to the limit, and counted.
        max_plan_s: Seconds to wait for a plan at most; None: twice the duration of a chunk. The
            first plan of an episode may take longer, because the robot stands still.
        max_age_s: Greatest age in seconds of the observation behind a command; None: twice the
            duration of a chunk. Use `math.inf` for both in a simulator that waits for you.

    Attributes:
        num_late: Number of plans in this episode for which the loop had to wait.
        num_limited: Number of steps in this episode in which a limit acted, by limit, such as
            `hand.2 speed`.

    A state far outside the training data is reported once per field; `num_far` of the policy counts
    its observations, and with `max_deviation` the policy refuses it.

    Raises:
        UsageError: The chunks of the policy are too short for these numbers, or a limit or
            deadline is not usable.
    """

    def __init__(
        self,
        policy: PolicyClient,
        *,
        execute_steps: int = 4,
        delay_steps: int = 0,
        limits: Mapping[str, Mapping[str, Any]] | None = None,
        max_plan_s: float | None = None,
        max_age_s: float | None = None,
    ) -> None:
        is_valid = 0 <= delay_steps <= execute_steps <= policy.horizon - delay_steps
        if execute_steps < 1 or not is_valid:
            raise UsageError(
                f"delay_steps={delay_steps}, execute_steps={execute_steps}: a chunk has "
                f"{policy.horizon} steps",
                hint="delay_steps may not exceed execute_steps, nor their sum a chunk",
                code="usage.bad_value",
                details={"delay_steps": delay_steps, "horizon": policy.horizon},
            )
        chunk_s = policy.horizon / policy.fps
        self._policy = policy
        self._steps = execute_steps
        self._delay = delay_steps
        self._limits = _checked_limits(limits or {}, policy)
        self._max_plan_s = _checked_deadline("max_plan_s", max_plan_s, _CHUNKS * chunk_s)
        self._max_age_s = _checked_deadline("max_age_s", max_age_s, _CHUNKS * chunk_s)
        self._thread = ThreadPoolExecutor(1, "plan")
        self._pending: Future[dict[str, NDArray[Any]]] | None = None
        self.num_limited: dict[str, int] = {}
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reset(self, seed: int | None = None, *, command: Mapping[str, Any] | None = None) -> None:
        """Starts an episode, after the plan that is being computed.

        Args:
            seed: Seed of the sampled noise; see `load_policy`.
            command: Values [C] by field that the robot holds now. The speed of the first commands
                is limited relative to these values. Without them the first command of a field has
                no limit of speed.

        Raises:
            UsageError: `command` names something that is no action, or its values are not finite,
                or not as many as the field has.
            EnvironmentProblem: The plan that is being computed does not end in time.
        """
        last = _checked_command(command or {}, self._policy)
        if self._pending is not None:
            self._wait(self._pending, time.monotonic())
            self._pending = None
        self._report_limits()
        self._policy.reset(seed)
        self._chunk: Mapping[str, NDArray[Any]] = {}
        self._row = 0
        self._is_started = False
        # Observations since the one of the plan that is being computed.
        self._unseen: list[Mapping[str, Any]] = []
        self._unreported = 0
        self._reported = 0  # with the plan that is being computed
        self._observed_at = 0.0  # of the chunk that is executed
        self._pending_at = 0.0  # of the plan that is being computed
        self._last = last
        self.num_late = 0
        self.num_limited = {}

    def step(self, observation: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Returns the commands [C] of the next step by field.

        Args:
            observation: As for `act` of the policy.

        Raises:
            VlatoolError: As for `act` of the policy; an error of a plan is raised when the plan is
                due.
            EnvironmentProblem: `environment.policy_failed`: a plan is late, or the commands come
                from an observation that is too old. Stop the robot, and call `reset`.
        """
        if self._pending is not None and self._row == self._steps + self._delay:
            self._begin(self._delay)
        is_due = self._row == self._steps
        if not self._chunk or (is_due and not self._delay):
            self._plan(observation, 0)
            self._begin(0)
        elif is_due:
            self._plan(observation, self._delay)
        elif self._policy.history:
            if self._pending is None:
                self._policy.observe(observation, executed=self._unreported)
                self._unreported = 0
            else:
                self._unseen.append(_copied(observation))
        self._check_age()
        commands = {name: values[self._row].copy() for name, values in self._chunk.items()}
        self._row += 1
        self._unreported += 1
        return self._limited(commands)

    def close(self) -> None:
        """Ends the thread, after the plan that is being computed or `max_plan_s`."""
        self._report_limits()
        if self._pending is not None:
            concurrent.futures.wait([self._pending], _timeout(self._max_plan_s))
        self._thread.shutdown(wait=False)

    def _plan(self, observation: Mapping[str, Any], delay: int) -> None:
        """Starts to compute the next chunk."""
        executed = self._unreported if self._chunk else max(1, self._unreported)
        self._pending = self._thread.submit(
            self._policy.act, _copied(observation), executed=executed, delay=delay
        )
        self._pending_at = time.monotonic()
        self._reported = self._unreported
        self._unreported = 0

    def _begin(self, row: int) -> None:
        """Waits for the pending chunk, begins it at a row, and adds the observations since."""
        pending = self._pending
        assert pending is not None
        if row and not pending.done():
            self.num_late += 1
        if self._is_started:
            self._wait(pending, self._pending_at)
        self._chunk = {}
        unseen = self._unseen
        self._unseen = []
        try:
            self._chunk = pending.result()
        except BaseException:
            if pending.done():  # else Ctrl-C, and `reset` waits for the plan
                self._pending = None
                self._unreported += self._reported  # a failed plan is undone
            raise
        self._pending = None
        self._observed_at = self._pending_at if self._is_started else time.monotonic()
        self._is_started = True
        self._row = row
        for observation in unseen:
            self._policy.observe(observation)
            self._unreported -= 1

    def _wait(self, pending: Future[dict[str, NDArray[Any]]], since: float) -> None:
        """Waits for a plan; raises EnvironmentProblem if it is late by the time from `since` on."""
        left = self._max_plan_s - (time.monotonic() - since)
        done, _ = concurrent.futures.wait([pending], _timeout(left))
        if not done:
            raise EnvironmentProblem(
                f"a plan is not ready after {self._max_plan_s:.2f} s",
                hint="stop the robot and call reset(); if a plan may take so long, raise "
                "max_plan_s (math.inf in a simulator that waits)",
                code="environment.policy_failed",
                details={"max_plan_s": self._max_plan_s},
            )

    def _check_age(self) -> None:
        age = time.monotonic() - self._observed_at
        if age > self._max_age_s:
            raise EnvironmentProblem(
                f"the next command comes from an observation {age:.2f} s ago",
                hint="stop the robot and call reset(); lower execute_steps to plan more "
                "often, or raise max_age_s (math.inf in a simulator that waits)",
                code="environment.policy_failed",
                details={"age_s": age, "max_age_s": self._max_age_s},
            )

    def _limited(self, commands: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The commands [C] by field, moved into the limits; counts steps in which one was moved."""
        for name, limit in self._limits.items():
            values = commands[name]
            within = np.clip(values, limit.low, limit.high)
            self._count(name, "range", within != values)
            last = self._last.get(name)
            if last is not None:
                slow = np.clip(within, last - limit.step, last + limit.step)
                self._count(name, "speed", slow != within)
                within = slow
            commands[name] = within
            self._last[name] = within.copy()
        return commands

    def _count(self, field: str, kind: str, moved: NDArray[Any]) -> None:
        for dimension in np.flatnonzero(moved).tolist():
            text = f"{field}.{dimension} {kind}"
            if text not in self.num_limited:
                _log.warning("a limit changes the commands: %s", text)
            self.num_limited[text] = self.num_limited.get(text, 0) + 1

    def _report_limits(self) -> None:
        for text, count in self.num_limited.items():
            _log.warning("a limit changed the commands in %d steps of the episode: %s", count, text)
        for field, count in self._policy.num_far.items():
            text = "%d observations of the episode were far outside the training data: %s"
            _log.warning(text, count, field)


@dataclass(frozen=True)
class _Limit:
    """Limits of a field, each float64 [C]; infinite: none."""

    low: NDArray[Any]
    high: NDArray[Any]
    step: NDArray[Any]  # largest change from one command to the next


_NO_LIMIT = {"low": -math.inf, "high": math.inf, "speed": math.inf}


def _checked_command(command: Mapping[str, Any], policy: PolicyClient) -> dict[str, NDArray[Any]]:
    checked: dict[str, NDArray[Any]] = {}
    for field, values in command.items():
        width = _width_of("command", field, policy)
        checked[field] = _numbers(f"command[{field!r}]", values, width)
        if not np.isfinite(checked[field]).all():
            raise _number_error(f"command[{field!r}] is not finite")
    return checked


def _checked_limits(
    limits: Mapping[str, Mapping[str, Any]], policy: PolicyClient
) -> dict[str, _Limit]:
    checked: dict[str, _Limit] = {}
    for field, given in limits.items():
        name = f"limits[{field!r}]"
        width = _width_of("limits", field, policy)
        unknown = [key for key in given if key not in _NO_LIMIT]
        if unknown:
            raise _number_error(f"{name} has no key {unknown[0]!r}", list(_NO_LIMIT))
        values: dict[str, NDArray[Any]] = {}
        for key, default in _NO_LIMIT.items():
            values[key] = _numbers(f"{name}[{key!r}]", given.get(key, default), width)
        if (values["low"] > values["high"]).any():
            raise _number_error(f"{name}: low is above high")
        if (values["speed"] <= 0).any():
            raise _number_error(f"{name}: a speed is not positive")
        checked[field] = _Limit(values["low"], values["high"], values["speed"] / policy.fps)
    return checked


def _width_of(argument: str, field: str, policy: PolicyClient) -> int:
    if field not in policy.actions:
        problem = f"{argument}: the policy has no action {field!r}"
        raise _number_error(problem, list(policy.actions))
    return policy.actions[field]


def _numbers(name: str, value: Any, width: int) -> NDArray[Any]:
    """A number per dimension, float64 [width]."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise _number_error(f"{name} is not a number, nor one number per dimension") from None
    if numbers.shape not in ((), (width,)):
        raise _number_error(f"{name} has the shape {list(numbers.shape)}, not {width} numbers")
    if np.isnan(numbers).any():
        raise _number_error(f"{name} has NaN")
    return np.broadcast_to(numbers, (width,))


def _number_error(problem: str, known: list[str] | None = None) -> UsageError:
    hint = f"known are {', '.join(known)}" if known else "see help(vlatool.ControlLoop)"
    return UsageError(problem, hint=hint, code="usage.bad_value")


def _checked_deadline(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not value > 0:
        raise UsageError(
            f"{name}={value!r}",
            hint="give seconds above 0, math.inf for no deadline, or None for two chunks",
            code="usage.bad_value",
        )
    return value


def _timeout(seconds: float) -> float | None:
    """Seconds for a wait; None: without an end."""
    return None if math.isinf(seconds) else max(seconds, 0.0)


def _copied(observation: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the observation, because a camera may write its next image into the same array."""
    copied: dict[str, Any] = {}
    for name, value in observation.items():
        copied[name] = value.copy() if isinstance(value, np.ndarray) else value
    return copied
