"""Simulates one task of Meta-World: random starts, images, the scripted expert.

Legend of shapes: L frames. Source: reference/environments 1.
"""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatool.episode import UInt8Array
from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.plugins import did_you_mean

PREFIX = "metaworld/"
# Meta-World ends an episode after this number of steps.
MAX_STEPS = 500

# Meta-World has no language: the sentences are ours.
INSTRUCTIONS: Mapping[str, str] = {
    "assembly-v3": "pick up the nut and place it onto the peg",
    "basketball-v3": "dunk the basketball into the basket",
    "bin-picking-v3": "grasp the puck and move it from one bin to the other",
    "box-close-v3": "grasp the cover and close the box with it",
    "button-press-topdown-v3": "press the button from the top",
    "button-press-topdown-wall-v3": "bypass the wall and press the button from the top",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "bypass the wall and press the button",
    "coffee-button-v3": "push the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "pick the nut off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door by turning the lock",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door by turning the lock",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet clockwise",
    "faucet-open-v3": "turn the faucet counterclockwise",
    "hammer-v3": "hammer the screw into the wall",
    "hand-insert-v3": "insert the gripper into the hole",
    "handle-press-side-v3": "press the handle down sideways",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up sideways",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg sideways",
    "peg-unplug-side-v3": "unplug the peg sideways",
    "pick-out-of-hole-v3": "pick the puck out of the hole",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "pick-place-wall-v3": "pick up the puck, bypass the wall and place it at the goal",
    "plate-slide-back-side-v3": "slide the plate out of the cabinet sideways",
    "plate-slide-back-v3": "slide the plate out of the cabinet",
    "plate-slide-side-v3": "slide the plate into the cabinet sideways",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "bypass the wall and push the puck to the goal",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "bypass the wall and reach the goal",
    "shelf-place-v3": "pick up the puck and place it on the shelf",
    "soccer-v3": "kick the ball into the goal",
    "stick-pull-v3": "grasp the stick and pull the box with it",
    "stick-push-v3": "grasp the stick and push the box with it",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises UsageError if Meta-World has no task of a name."""
    for task in tasks:
        if task not in INSTRUCTIONS:
            raise UsageError(
                f"--task {task}: Meta-World has no such task",
                hint=did_you_mean(task, [*INSTRUCTIONS]),
                code="usage.unknown_name",
                details={"task": task, "known": [*INSTRUCTIONS]},
            )


def environment_ids() -> list[str]:
    return [f"{PREFIX}{task}" for task in INSTRUCTIONS]


def register_environments() -> None:
    """Registers an environment for each task; can be called repeatedly."""
    # Imported here, because they are no core dependencies.
    from gymnasium.envs.registration import register, registry

    load_simulator()
    for task in INSTRUCTIONS:
        if f"{PREFIX}{task}" not in registry:
            register(
                id=f"{PREFIX}{task}",
                entry_point="vlatool.world.metaworld.env:MetaWorldEnv",
                kwargs={"task": task},
                max_episode_steps=MAX_STEPS,
            )


FloatArray = NDArray[np.float64]

FPS = 80
PROPRIO_WIDTH = 4


@dataclass(frozen=True)
class ViewPoint:
    """Position of a camera around the middle of the table."""

    azimuth: float  # direction of view in the plane of the table, in degrees
    elevation: float  # direction of view against this plane, in degrees; negative: downwards


# Together they show all three coordinates of hand and objects. Meta-World's cameras of the table
# are upside down, or the arm hides the objects; its camera of the hand shows what the hand hides.
VIEWS: Mapping[str, ViewPoint | str] = {
    "front": ViewPoint(-90, -50),
    "side": ViewPoint(180, -15),
    "wrist": "gripperPOV",
}
_MIDDLE = (0.0, 0.7, 0.12)
_DISTANCE = 1.0


@dataclass(frozen=True)
class SimulatorStep:
    proprio: FloatArray  # x, y, z of the hand in meters, and opening of the gripper from 0 to 1 [4]
    reward: float  # reward of Meta-World
    success: bool  # True if Meta-World counts this state as success


def load_simulator() -> None:
    """Imports Meta-World, which then renders without a display."""
    # MuJoCo reads it at import; its default needs a display.
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    # Meta-World imports packaging, and its metadata does not say so.
    for package in ("packaging", "metaworld"):
        try:
            import_module(package)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # drivers of OpenGL raise anything
            raise _no_rendering(error) from error


def _mujoco() -> Any:
    return import_module("mujoco")


def _no_rendering(error: Exception) -> EnvironmentProblem:
    kind = os.environ.get("MUJOCO_GL", "")
    return EnvironmentProblem(
        f"MuJoCo cannot render with MUJOCO_GL={kind}: {error}".partition("\n")[0],
        hint="install libEGL and unset MUJOCO_GL, or set osmesa (libOSMesa) or glfw (a display)",
        code="environment.missing_dependency",
    )


def _camera(view: ViewPoint) -> Any:
    camera = _mujoco().MjvCamera()
    camera.lookat[:] = _MIDDLE
    camera.distance = _DISTANCE
    camera.azimuth = view.azimuth
    camera.elevation = view.elevation
    return camera


class Simulator:
    """One task of Meta-World; `size`: (height, width) of images in pixels."""

    def __init__(self, task: str, size: tuple[int, int]) -> None:
        load_simulator()
        environments: Any = import_module("metaworld.env_dict")
        experts: Any = import_module("metaworld.policies")
        # The expert sees the goal; `proprio` has no part of it.
        name = f"{task}-goal-observable"
        self._env: Any = environments.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[name](seed=0)
        # Otherwise the seed decides all starts.
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._expert: Any = experts.ENV_POLICY_MAP[task]()
        self._size = size
        self._renderer: Any = None
        self._seen: FloatArray = np.zeros(0)

    def start(self, rng: np.random.Generator) -> FloatArray:
        """Starts an episode at a random start, which depends on `rng` only; returns `proprio`."""
        self._env.np_random = rng
        self._env.reset()
        # Until this call goals and parts of objects are at an earlier start, in images and in the
        # observation that the reset returns.
        _mujoco().mj_forward(self._env.model, self._env.data)
        self._seen = self._env._get_obs()
        return self._proprio()

    def step(self, action: NDArray[Any]) -> SimulatorStep:
        """Executes an action [4] from -1 to 1: displacement of the hand in cm, and gripper."""
        self._seen, reward, _, _, info = self._env.step(np.asarray(action, np.float32))
        return SimulatorStep(self._proprio(), float(reward), bool(info["success"]))

    def expert_action(self) -> FloatArray:
        """Action [4] from -1 to 1 of the scripted expert of Meta-World."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # actions over 1, which are limited here
            action = self._expert.get_action(self._seen)
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)

    def images(self) -> dict[str, UInt8Array]:
        """An image uint8 [H, W, 3] of each view."""
        if self._renderer is None:
            mujoco = _mujoco()
            quality = self._env.model.vis.quality
            # Shadows and samples per pixel take most of the time of a renderer without a GPU.
            quality.shadowsize = 0
            quality.offsamples = 0
            try:
                renderer = mujoco.Renderer(self._env.model, *self._size)
            except Exception as error:  # drivers of OpenGL raise anything
                raise _no_rendering(error) from error
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0
            self._renderer = renderer
        images: dict[str, UInt8Array] = {}
        for name, view in VIEWS.items():
            camera = _camera(view) if isinstance(view, ViewPoint) else view
            self._renderer.update_scene(self._env.data, camera)
            images[name] = self._renderer.render().copy()
        return images

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _proprio(self) -> FloatArray:
        return np.array(self._seen[:PROPRIO_WIDTH], np.float64)
