"""Tasks of Meta-World as Gymnasium environments, with images instead of object positions."""

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vlatool.world.metaworld.simulator import (
    FPS,
    INSTRUCTIONS,
    MAX_STEPS,
    VIEWS,
    FloatArray,
    Simulator,
)
from vlatool.world.render import SQUARE_SIZES, SizeName

Observation = dict[str, Any]


class MetaWorldEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Environment with a task of Meta-World, for policies that see images.

    Observation: `front`, `side` and `wrist` uint8 [H, W, 3], `proprio` float64 [4] (x, y, z of the
    hand in meters, opening of the gripper from 0 to 1) and `instruction`. Action [4] from -1 to 1:
    displacement of the hand in cm, and gripper, which closes above 0. The reward comes from
    Meta-World. An episode is truncated after 500 steps; it does not terminate.

    Starts are drawn from the whole range of the task and depend on the seed only. The registered
    environments of Meta-World choose from a fixed list instead, whatever the seed.

    The info of every step has `task` and `success`, as Meta-World defines it for this step.
    """

    # Gymnasium reads both keys from the class.
    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(
        self, task: str, size: SizeName = "large", render_mode: str | None = "rgb_array"
    ) -> None:
        self.render_mode = render_mode
        self._task = task
        height, width = SQUARE_SIZES[size]
        self._simulator = Simulator(task, (height, width))
        # At once: a machine that cannot render is no reason to count failed episodes.
        self._images = self._simulator.images()
        self.draws_images = True  # False: the next observations have black images
        self._steps = 0
        text = INSTRUCTIONS[task]
        self.observation_space = spaces.Dict(
            {
                **{name: spaces.Box(0, 255, (height, width, 3), np.uint8) for name in VIEWS},
                "proprio": spaces.Box(-np.inf, np.inf, (4,), np.float64),
                "instruction": spaces.Text(len(text), charset=frozenset(text)),
            }
        )
        box = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = cast(spaces.Space[NDArray[np.float32]], box)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        proprio = self._simulator.start(self.np_random)
        return self._observation(proprio), {"task": self._task, "success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes an action for 1/80 s."""
        done = self._simulator.step(action)
        self._steps += 1
        info = {"task": self._task, "success": done.success}
        is_truncated = self._steps >= MAX_STEPS
        return self._observation(done.proprio), done.reward, False, is_truncated, info

    def render(self) -> Any:
        """The images of the last observation side by side, uint8 [H, 3 W, 3]."""
        return np.hstack([*self._images.values()]) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._simulator.close()

    def _observation(self, proprio: FloatArray) -> Observation:
        if self.draws_images:
            self._images = self._simulator.images()
        else:
            self._images = {name: np.zeros_like(image) for name, image in self._images.items()}
        return {**self._images, "proprio": proprio, "instruction": INSTRUCTIONS[self._task]}
