"""Suites of the LIBERO benchmark as Gymnasium environments. Source: reference/environments 2."""

import math
import string
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vlatool.episode import UInt8Array
from vlatool.errors import UsageError
from vlatool.world.libero.suites import SUITES
from vlatool.world.scene import ACTION_WIDTH, IMAGE_COLUMNS, STATE_WIDTH

Observation = dict[str, Any]

_KEYS = dict(zip(IMAGE_COLUMNS, ("agentview_image", "robot0_eye_in_hand_image"), strict=True))
_TRIALS = 50
_SETTLING_STEPS = 10
_WAIT = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
# The initial states do not fix everything: LIBERO draws the rest.
_SEED = 7
_LONGEST_INSTRUCTION = 500
_FPS = 20


class LiberoEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Environment with the tasks of a suite and their fixed initial states.

    A seed chooses task and initial state: 50 seeds in a row, from a multiple of 50, are the 50
    trials of a task; the next 50 seeds belong to the next task, and after the last task to the
    first again. A task with fewer states repeats them.

    Observation: `image` and `wrist_image` uint8 [H, W, 3], turned by 180 degrees as in the
    published data, `state` float32 [8] (position, axis-angle, two fingers) and `instruction`.
    Action [7]: displacement, rotation, and gripper, closed at 1. The reward is 1 at success, which
    terminates the episode. The info has `task` (its name), `trial` and `success`.
    """

    # Gymnasium reads both keys from the class.
    metadata = {"render_modes": ["rgb_array"], "render_fps": _FPS}  # noqa: RUF012

    def __init__(
        self,
        suite: str,
        task: int | None = None,  # index of a task, to run its trials only; None: all tasks
        size: int = 256,  # height and width of the images in pixels
        render_mode: str | None = "rgb_array",
    ) -> None:
        self.render_mode = render_mode  # `rgb_array`, or None
        self._suite: Any = import_module("libero.libero.benchmark").get_benchmark_dict()[suite]()
        self._max_steps = SUITES[suite]
        if task is not None and not 0 <= task < self._suite.n_tasks:
            raise UsageError(
                f"{suite} has no task {task}, only 0 to {self._suite.n_tasks - 1}",
                code="usage.unknown_name",
            )
        self._only = task
        self._size = size
        self._task = -1
        self._simulator: Any = None
        self._initial_states: Any = None
        self._seen: Observation = {}
        self._steps = 0
        self._info = {}
        image = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                **dict.fromkeys(IMAGE_COLUMNS, image),
                "state": spaces.Box(-np.inf, np.inf, (STATE_WIDTH,), np.float32),
                "instruction": spaces.Text(
                    _LONGEST_INSTRUCTION, min_length=0, charset=string.printable
                ),
            }
        )
        box = spaces.Box(-1.0, 1.0, (ACTION_WIDTH,), np.float32)
        self.action_space = cast(spaces.Space[NDArray[np.float32]], box)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start of the trial that the seed chooses, after the steps that settle the scene."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        task = number // _TRIALS % self._suite.n_tasks if self._only is None else self._only
        self._load(task)
        trial = number % _TRIALS % len(self._initial_states)
        self._simulator.seed(_SEED)
        self._simulator.reset()
        seen = self._simulator.set_init_state(self._initial_states[trial])
        for _ in range(_SETTLING_STEPS):
            seen, *_ = self._simulator.step([*_WAIT])
        self._steps = 0
        self._info = {"task": self._suite.get_task(task).name, "trial": trial, "success": False}
        return self._observation(seen), dict(self._info)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes an action for 1/20 s."""
        # LIBERO takes lists.
        seen, _, done, _ = self._simulator.step([float(value) for value in action])
        self._steps += 1
        self._info["success"] = bool(done)
        is_truncated = self._steps >= self._max_steps and not done
        observation = self._observation(seen)
        return observation, float(done), bool(done), is_truncated, dict(self._info)

    def render(self) -> Any:
        """The image of the last observation, uint8 [H, W, 3]."""
        return self._seen[IMAGE_COLUMNS[0]] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _load(self, task: int) -> None:
        """Makes the simulator of a task, unless it is loaded already."""
        if task == self._task:
            return
        self.close()
        described = self._suite.get_task(task)
        folder = (
            Path(import_module("libero.libero").get_libero_path("bddl_files"))
            / described.problem_folder
        )
        self._simulator = import_module("libero.libero.envs").OffScreenRenderEnv(
            bddl_file_name=str(folder / described.bddl_file),
            camera_heights=self._size,
            camera_widths=self._size,
        )
        self._initial_states = self._suite.get_task_init_states(task)
        self._task = task

    def _observation(self, seen: Any) -> Observation:
        images = {name: _turned(seen[key]) for name, key in _KEYS.items()}
        rotation = axis_angle(np.asarray(seen["robot0_eef_quat"], np.float64))
        parts = (seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"])
        instruction = self._suite.get_task(self._task).language
        state = np.concatenate(parts).astype(np.float32)
        self._seen = {**images, "state": state, "instruction": instruction}
        return self._seen


def axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle [3] of a quaternion x, y, z, w [4], as in the published data.

    The angle is from 0 to 2 pi: a library that chooses the shorter rotation gives other states.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return quaternion[:3] * 2.0 * math.acos(w) / sine


def _turned(image: Any) -> UInt8Array:
    return np.ascontiguousarray(np.asarray(image, np.uint8)[::-1, ::-1])
