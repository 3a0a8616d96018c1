"""What `drive.py` needs of a robot, and what commands it. Write one class for your arm: `world.py`
has the built-in simulated one, `so101.py` a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Observation = dict[str, Any]
Command = Mapping[str, NDArray[np.float64]]


class Robot(Protocol):
    """A robot that is commanded by position."""

    def connect(self) -> None:
        """Opens cameras and motors. The robot does not move yet."""
        ...

    def observe(self) -> Observation:
        """What the robot sees now, by the names of the policy: images uint8 [H, W, 3] in RGB, and
        measured values [C] in the units of the training data.
        """
        ...

    def act(self, command: Command) -> None:
        """Moves toward a command: action field to values [C]. Returns at once."""
        ...

    def stop(self) -> None:
        """Brings the robot to rest, from any state, and releases it. May be called again."""
        ...


class Commands(Protocol):
    """Source of commands: `vlatool.ControlLoop`, or a person who moves a leader arm."""

    def reset(self, seed: int | None = None, *, command: Mapping[str, Any] | None = None) -> None:
        """Starts an episode, or continues after a lost connection; `command`: what the robot
        holds.
        """
        ...

    def step(self, observation: Mapping[str, Any]) -> Command:
        """The command of the next step."""
        ...
