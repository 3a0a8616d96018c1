"""Recordings of one world by three made robots that agree in nothing but the task.

They differ in names of cameras and fields, in widths, rate, rotation, relation, frame and units.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vlatool.episode import Array
from vlatool.transforms.relative import Pose, PoseGroupConfig
from vlatool.transforms.rotations import RotationForm, form_from_matrix, rot6d_from_matrix
from vlatool.world.recording import WorldEpisode, expert_episode
from vlatool.world.render import View, cameras_for
from vlatool.world.scene import FPS, OPEN, Scene

HAND, COMMAND = "hand", "command"
_DOWN = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Robot:
    """Convention of the recordings of one robot."""

    name: str
    fps: float
    cameras: tuple[str, str]  # of the scene and of the wrist
    state_rotation: RotationForm
    command: PoseGroupConfig  # convention of the actions; its keys are slices of `moves`
    gripper: tuple[float, float]  # numbers of the closed and of the open hand
    unit: float = 1.0  # of the measured position, per meter
    extra: int = 0  # further dimensions of the actions, which no other robot has

    def groups(self, **wrong: Any) -> list[dict[str, Any]]:
        """`pose_groups` of its recordings; `wrong`: keys that differ from the truth."""
        width = 3 + form_from_matrix(_DOWN, self.state_rotation).shape[-1]
        measured = PoseGroupConfig(
            name=HAND,
            position_key="state[0:3]",
            rotation_key=f"state[3:{width}]",
            rotation=self.state_rotation,
            scale=self.unit,
        )
        command = self.command.model_copy(update=wrong)
        return [group.model_dump(exclude_defaults=True) for group in (measured, command)]


def _command(rotation: RotationForm, width: int, **keys: Any) -> PoseGroupConfig:
    return PoseGroupConfig(
        name=COMMAND,
        position_key="moves[0:3]",
        rotation_key=f"moves[3:{3 + width}]",
        rotation=rotation,
        reference=HAND,
        **keys,
    )


ROBOTS = {
    robot.name: robot
    for robot in (
        Robot("a", 10, ("agent", "eye"), "quaternion_xyzw", _command("euler_xyz", 3), (0.0, 1.0)),
        Robot(
            "b",
            20,
            ("front", "hand"),
            "quaternion_wxyz",
            _command("axis_angle", 3, relation="delta", frame="tool", scale=20.0),
            (1.0, -1.0),
            unit=1000.0,
        ),
        Robot(
            "c",
            15,
            ("cam0", "cam1"),
            "euler_zyx",
            _command("rot_6d_columns", 6, relation="delta", frame="base"),
            (255.0, 0.0),
            extra=2,
        ),
    )
}


def write_set(folder: Path, robot: Robot, numbers: Iterable[int], *, images: bool = True) -> Path:
    """Episodes of a seed as HDF5 files in the layout of robomimic."""
    folder.mkdir(parents=True, exist_ok=True)
    views = [View(camera, camera.size("small")) for camera in cameras_for(2)] if images else []
    for number in numbers:
        episode = expert_episode(0, number)
        with h5py.File(folder / f"episode_{number:05d}.hdf5", "w") as file:
            _write(file, robot, episode, views, number)
    return folder


def _write(file: Any, robot: Robot, episode: WorldEpisode, views: list[View], number: int) -> None:
    times = np.arange(0, len(episode) - 1 + 1e-9, FPS / robot.fps)
    scenes = [_scene_at(episode, time) for time in times]
    poses = np.array([scene.gripper for scene in scenes])
    # The command of a frame is the state that the next frame has without disturbances.
    after = np.minimum(np.floor(times).astype(int), len(episode) - 1)
    share = (times - after)[:, None] + FPS / robot.fps
    planned = episode.states[after] + np.minimum(share, 1.0) * (
        episode.actions[after] - episode.states[after]
    )
    data = file.create_group("data")
    data.attrs["env_args"] = json.dumps(
        {"env_name": "made", "env_kwargs": {"control_freq": robot.fps}}
    )
    data.attrs["problem_info"] = json.dumps({"language_instruction": episode.instruction})
    demo = data.create_group(f"demo_{number}")
    demo.attrs["num_samples"] = len(times)
    hand = _pose(poses)
    numbers = robot.command.numbers(_pose(planned), hand)
    closed, opened = robot.gripper
    grip = np.where(episode.actions[after, 3:] > OPEN / 2, opened, closed)
    extra = np.full((len(times), robot.extra), 7.0)
    rotation = form_from_matrix(np.tile(_DOWN, (len(times), 1, 1)), robot.state_rotation)
    demo["actions"] = np.hstack([*numbers, grip, extra])
    demo["obs/state"] = np.hstack([robot.unit * poses[:, :3], rotation, poses[:, 3:]])
    for name, view in zip(robot.cameras, views, strict=False):
        drawn = np.stack([view.draw(scene) for scene in scenes])
        demo.create_dataset(f"obs/{name}_image", data=drawn, chunks=(1, *drawn.shape[1:]))


def _pose(poses: Array) -> Pose:
    return poses[:, :3], np.tile(rot6d_from_matrix(_DOWN), (len(poses), 1))


def _scene_at(episode: WorldEpisode, time: float) -> Scene:
    """Scene between two frames."""
    before = int(time)
    share = time - before
    scene = episode.scenes[before]
    if not share:
        return scene
    after = episode.scenes[before + 1]
    mix: Callable[[Array, Array], Array] = lambda a, b: (1 - share) * a + share * b  # noqa: E731
    return replace(
        scene, gripper=mix(scene.gripper, after.gripper), blocks=mix(scene.blocks, after.blocks)
    )


def made_options(robot: Robot, fps: float, **wrong: Any) -> dict[str, Any]:
    """Options of `preprocess` that make the recordings of all robots alike.

    `wrong`: keys of the commanded pose that differ from the truth.
    """
    groups = robot.groups(**wrong)
    width = int(groups[0]["rotation_key"].partition(":")[2].rstrip("]"))
    grip = int(groups[1]["rotation_key"].partition(":")[2].rstrip("]"))
    closed, opened = robot.gripper
    scale = 1 / (opened - closed)
    return {
        "rename": {
            "cameras": {
                "scene": f"{robot.cameras[0]}_image",
                "wrist": f"{robot.cameras[1]}_image",
            },
            "fields": {
                "state": f"obs.state[0:{width}]",
                "moves": f"actions[0:{grip}]",
                "width": f"obs.state[{width}:{width + 1}]",
                "gripper": {
                    "key": "actions",
                    "start": grip,
                    "stop": grip + 1,
                    "scale": scale,
                    "offset": -closed * scale,
                },
            },
        },
        "pose_groups": groups,
        "target": {"fps": fps, "proprioception_fields": ["hand__xyz", "width"]},
        "action_fields": ["command__xyz_relative", "command__rot_6d_relative", "gripper"],
    }
