"""Environment that hangs; without heavy imports, so that a process has it at once."""

import time
from typing import Any

HOUR_S = 3600.0


class SleepingEnv:
    """Counter of steps that sleeps for an hour in one of them; `at`: the step; 0 is the reset."""

    action_space: Any = None

    def __init__(self, at: int, seed: int) -> None:
        self._at, self._sleepy_seed = at, seed

    def reset(self, *, seed: int, options: Any = None) -> tuple[Any, dict[str, Any]]:
        del options
        self._seed, self._steps = seed, -1
        return self._next(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        del action
        return self._next(), 0.0, False, False, {}

    def close(self) -> None:
        pass

    def _next(self) -> dict[str, int]:
        self._steps += 1
        if self._seed == self._sleepy_seed and self._steps == self._at:
            time.sleep(HOUR_S)
        return {"steps": self._steps}
