"""Commands for a robot, one per step: when to plan, and planning in the background.

Does not import torch, so that it runs on a robot beside `vlatool.connect`.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, Self

import numpy as np

from vlatool.episode import Array
from vlatool.errors import UsageError
from vlatool.events import counted


class PolicyClient(Protocol):
    """Policy that `load_policy` or `connect` returned."""

    horizon: int
    history: int

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode."""
        ...

    def act(
        self, observation: Mapping[str, Any], *, executed: int = 1, delay: int = 0
    ) -> dict[str, Array]:
        """Returns an action chunk by field [T, C]."""
        ...

    def observe(self, observation: Mapping[str, Any], *, executed: int = 1) -> None:
        """Adds an observation."""
        ...


class ControlLoop:
    """Commands of a policy for one robot, one per step; a context manager.

        policy = vlatool.load_policy("runs/mine")
        with vlatool.ControlLoop(policy, execute_steps=8, delay_steps=3) as loop:
            while robot.moves():
                robot.execute(loop.step(robot.observation()))

    Every `execute_steps` steps a chunk is planned. With `delay_steps` it is computed in a thread
    while the robot executes that many steps of the chunk before, and takes effect after them: the
    commands do not depend on the time that the policy takes. A plan that is late is waited for.

    Args:
        policy: Policy that `load_policy` or `connect` returned; a new episode of it starts.
        execute_steps: Steps from one plan to the next.
        delay_steps: Steps that computing a plan may take.

    Attributes:
        num_late: Number of plans of this episode that were waited for.

    Raises:
        UsageError: The chunks of the policy are too short for these numbers.
    """

    def __init__(
        self, policy: PolicyClient, *, execute_steps: int = 4, delay_steps: int = 0
    ) -> None:
        is_valid = 0 <= delay_steps <= execute_steps <= policy.horizon - delay_steps
        if execute_steps < 1 or not is_valid:
            raise UsageError(
                f"delay_steps={delay_steps}, execute_steps={execute_steps}: a chunk has "
                f"{counted(policy.horizon, 'step')}",
                hint="delay_steps is at most execute_steps, and their sum at most a chunk",
                code="usage.delay_steps",
                details={"delay_steps": delay_steps, "horizon": policy.horizon},
            )
        self._policy = policy
        self._steps = execute_steps
        self._delay = delay_steps
        self._thread = ThreadPoolExecutor(1, "plan") if delay_steps else None
        self._pending: Future[dict[str, Array]] | None = None
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode, after the plan that is being computed; see `load_policy`."""
        if self._pending is not None:
            self._pending.exception()
            self._pending = None
        self._policy.reset(seed)
        self._chunk: Mapping[str, Array] = {}
        self._row = 0
        # Observations since the one of the plan that is being computed.
        self._unseen: list[Mapping[str, Any]] = []
        self._unreported = 0
        self._reported = 0  # with the plan that is being computed
        self.num_late = 0

    def step(self, observation: Mapping[str, Any]) -> dict[str, Array]:
        """Returns the commands [C] of the next step by field.

        Args:
            observation: As for `act` of the policy.

        Raises:
            VlatoolError: As `act` of the policy; that of a plan comes when the plan is due.
        """
        if self._pending is not None and self._row == self._steps + self._delay:
            self._join(self._pending)
        is_due = self._row == self._steps
        if not self._chunk or (is_due and self._thread is None):
            executed = max(1, self._unreported)
            self._begin(self._policy.act(observation, executed=executed), 0)
            self._unreported = 0
        elif is_due and self._thread is not None:
            self._plan(observation, self._thread)
        elif self._policy.history:
            if self._pending is None:
                self._policy.observe(observation, executed=self._unreported)
                self._unreported = 0
            else:
                self._unseen.append(_copied(observation))
        commands = {name: values[self._row].copy() for name, values in self._chunk.items()}
        self._row += 1
        self._unreported += 1
        return commands

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _plan(self, observation: Mapping[str, Any], thread: ThreadPoolExecutor) -> None:
        self._pending = thread.submit(
            self._policy.act,
            _copied(observation),
            executed=self._unreported,
            delay=self._delay,
        )
        self._reported = self._unreported
        self._unreported = 0

    def _join(self, pending: "Future[dict[str, Array]]") -> None:
        """Begins the plan that is due, and adds the observations since its own."""
        self.num_late += not pending.done()
        self._pending = None
        self._chunk = {}
        unseen = self._unseen
        self._unseen = []
        try:
            chunk = pending.result()
        except BaseException:
            self._unreported += self._reported  # a failed plan is undone
            raise
        self._begin(chunk, self._delay)
        for observation in unseen:
            self._policy.observe(observation)
            self._unreported -= 1

    def _begin(self, chunk: Mapping[str, Array], row: int) -> None:
        self._chunk = chunk
        self._row = row


def _copied(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Observation that stays if a camera writes its next image into the same array."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in observation.items()
    }
