"""The built-in world as a robot: copy this file for yours."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from robot import Command, Observation

from vlatool.world.registration import ENVIRONMENT, register_environments

# Names in the data of `vlatool sample`: yours are in `policy.names` and `policy.actions`.
ARM = "robot__actual__poses__right::panda"
HAND = "robot__actual__grippers__right::panda_hand"
XYZ_COMMAND = "robot__action__poses__right::panda__xyz"
HAND_COMMAND = "robot__action__grippers__right::panda_hand"
LEFT = "robot__actual__poses__left::panda"
LEFT_HAND = "robot__actual__grippers__left::panda_hand"
DOWN = np.array([1.0, 0.0, 0.0, 0.0, -1.0, 0.0])  # rotation of the hand, first two columns


class WorldRobot:
    """Simulated arm over a table; its time passes in `act`."""

    def __init__(self, names: Collection[str], seed: int = 0) -> None:
        self._names = names
        self._seed = seed
        self._seen: dict[str, Any] = {}
        self.is_done = False  # the task is done
        self.is_stopped = True
        self._env: Any = None

    def connect(self) -> None:
        import gymnasium

        register_environments()
        self._env = gymnasium.make(ENVIRONMENT)
        self._seen, _ = self._env.reset(seed=self._seed)
        self.is_stopped = False

    def observe(self) -> Observation:
        hand = self._seen["proprio"]  # x, y, z and opening in meters
        values: Observation = {
            **self._seen,
            f"{ARM}__xyz": hand[:3],
            f"{ARM}__rot_6d": DOWN,
            HAND: hand[3:],
            f"{LEFT}__xyz": np.array([-0.15, 0.75, 0.35]),
            f"{LEFT}__rot_6d": DOWN,
            LEFT_HAND: np.array([0.1]),
        }
        return {name: values[name] for name in self._names}

    def act(self, command: Command) -> None:
        target = np.concatenate([command[XYZ_COMMAND], command[HAND_COMMAND]])
        space = self._env.action_space
        self._seen, _, is_done, _, _ = self._env.step(np.clip(target, space.low, space.high))
        self.is_done = self.is_done or is_done

    def stop(self) -> None:
        self.is_stopped = True
