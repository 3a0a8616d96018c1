"""The world as a Gymnasium environment."""

import string
from typing import Any, Literal, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vlatool.errors import UsageError
from vlatool.world import scene as world_scene
from vlatool.world.render import CameraCount, SizeName, View, cameras_for

Observation = dict[str, Any]

_LONGEST_INSTRUCTION = 200


class PickPlaceEnv(gymnasium.Env[Observation, NDArray[np.float64]]):
    """Environment with the task to put the named block into the bin.

    Observation: one image uint8 [H, W, 3] per camera under the camera's name, `proprio` float64 [4]
    (x, y, z, opening of the hand, in meters) and `instruction`. Action: target x, y, z, opening
    [4], absolute; the hand moves at most 0.045 per step. The reward is 1 when the named block is in
    the bin, which terminates the episode; it is truncated after 104 steps. With `scenes`, episodes
    start like the episodes of `vlatool sample --scenes` with that number.

    The info of every step has `instruction`, `target` (color of the named block), `placed` (color
    of the block in the bin, or None) and `success`.
    """

    # Gymnasium reads both keys from the class.
    metadata = {"render_modes": ["rgb_array"], "render_fps": world_scene.FPS}  # noqa: RUF012

    def __init__(
        self,
        cameras: CameraCount | Literal[0] = 2,
        size: SizeName = "small",
        render_mode: str | None = "rgb_array",
        scenes: int | None = None,
    ) -> None:
        self.render_mode = render_mode
        self._scenes = scenes
        selected = cameras_for(cameras) if cameras else ()
        self._views = [View(camera, camera.size(size)) for camera in selected]
        overview = cameras_for(2)[0]
        self._overview = View(overview, overview.size(size))
        self.draws_images = True  # False: the next observations have black images
        text = spaces.Text(_LONGEST_INSTRUCTION, min_length=0, charset=string.printable)
        images = {
            view.camera.name: spaces.Box(0, 255, (*view.size, 3), np.uint8) for view in self._views
        }
        self.observation_space = spaces.Dict(
            {**images, "proprio": _pose_space(), "instruction": text}
        )
        self.action_space = _pose_space()
        self._start(world_scene.random_scene(np.random.default_rng(0)), 0, None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Random start; `options` may set `target` (a color) and `instruction` (any text)."""
        super().reset(seed=seed)
        fixed = options or {}
        if self._scenes is None:
            scene = world_scene.random_scene(self.np_random)
        else:
            scene = world_scene.shared_scene(
                self.np_random, int(self.np_random.integers(self._scenes))
            )
        random_target = int(self.np_random.integers(len(world_scene.COLORS)))
        target = _block_index(fixed["target"]) if "target" in fixed else random_target
        self._start(scene, target, fixed.get("instruction"))
        return self._observe(), self._info()

    def step(
        self, action: NDArray[np.float64]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the hand towards the target pose for a tenth of a second."""
        self._scene = world_scene.step(self._scene, np.asarray(action, np.float64))
        self._steps += 1
        success = self._scene.is_in_bin(self._target)
        truncated = self._steps >= world_scene.MAX_STEPS and not success
        return self._observe(), float(success), success, truncated, self._info()

    def render(self) -> Any:
        """Image of the whole table, uint8 [H, W, 3]."""
        return self._overview.draw(self._scene) if self.render_mode == "rgb_array" else None

    def _start(self, scene: world_scene.Scene, target: int, instruction: str | None) -> None:
        self._scene = scene
        self._target = target
        self._instruction = instruction or world_scene.instruction_for(world_scene.COLORS[target])
        self._steps = 0

    def _observe(self) -> Observation:
        images: Observation = {}
        for view in self._views:
            if self.draws_images:
                images[view.camera.name] = view.draw(self._scene)
            else:
                images[view.camera.name] = np.zeros((*view.size, 3), np.uint8)
        proprio = self._scene.gripper.copy()
        return {**images, "proprio": proprio, "instruction": self._instruction}

    def _info(self) -> dict[str, Any]:
        placed = self._scene.placed(self._target)
        return {
            "instruction": self._instruction,
            "target": world_scene.COLORS[self._target],
            "placed": None if placed is None else world_scene.COLORS[placed],
            "success": self._scene.is_in_bin(self._target),
        }


class LiberoPickPlaceEnv(PickPlaceEnv):
    """The same task with the observations and actions of `vlatool sample libero`.

    Observation: `image` and `wrist_image` uint8 [H, W, 3], `state` float32 [8] (position,
    axis-angle, two fingers) and `instruction`. Action [7] from -1 to 1: displacement of the hand
    in units of 0.05 m, rotation, which has no effect, and gripper, closed above 0.
    """

    def __init__(
        self,
        size: SizeName = "small",
        render_mode: str | None = "rgb_array",
        scenes: int | None = None,
    ) -> None:
        super().__init__(2, size, render_mode, scenes)
        poses = self.observation_space
        assert isinstance(poses, spaces.Dict)
        images = [poses[view.camera.name] for view in self._views]
        self.observation_space = spaces.Dict(
            {
                **dict(zip(world_scene.IMAGE_COLUMNS, images, strict=True)),
                "state": spaces.Box(-np.pi, np.pi, (world_scene.STATE_WIDTH,), np.float32),
                "instruction": poses["instruction"],
            }
        )
        box = spaces.Box(-1.0, 1.0, (world_scene.ACTION_WIDTH,), np.float64)
        self.action_space = cast(spaces.Space[NDArray[np.float64]], box)

    def step(
        self, action: NDArray[np.float64]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the hand by an action of LIBERO for a tenth of a second."""
        return super().step(
            world_scene.world_target(np.asarray(action, np.float64), self._scene.gripper)
        )

    def _observe(self) -> Observation:
        seen = super()._observe()
        images = [seen[view.camera.name] for view in self._views]
        return {
            **dict(zip(world_scene.IMAGE_COLUMNS, images, strict=True)),
            "state": world_scene.libero_states(seen["proprio"][None])[0],
            "instruction": seen["instruction"],
        }


def _pose_space() -> spaces.Space[NDArray[np.float64]]:
    box = spaces.Box(np.zeros(4), np.array([1.0, 1.0, 1.0, world_scene.OPEN]), dtype=np.float64)
    return cast(spaces.Space[NDArray[np.float64]], box)


def _block_index(color: str) -> int:
    if color not in world_scene.COLORS:
        raise UsageError(
            f"unknown target {color!r}",
            hint=f"known: {', '.join(world_scene.COLORS)}",
            code="usage.unknown_name",
        )
    return world_scene.COLORS.index(color)
