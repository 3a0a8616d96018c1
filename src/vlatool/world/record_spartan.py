"""Writer of raw Spartan episodes, file for file like real ones; only the right arm moves.

Joints, torques and wrenches are smooth synthetic functions of the pose of the hand. Names, shapes
and ranges are as in real recordings; the values have no physics. Source: formats/spartan 1, 2, 3,
4, 5.
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from numpy.typing import NDArray

from vlatool.storage.atomic import atomic_folder
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.render import LEFT_ARM_POSITION, View
from vlatool.world.scene import COLORS, FPS, OPEN, FloatArray

TASK = "WorldPutBlockInBin"
_STATION = "cabot"
# Constant, so that the same seed gives the same folders.
_DATE_STAMP = "2025-01-01T00-00-00-00-00"
_START_US = 1735689600_000000
_SKILL_TYPE = "SkillType.ROLLOUT"
_DEFLATE_LEVEL = 4
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # CSafeDumper is 5 times as fast

ROBOT_VERSION = 20241212.0
# First two rows of the rotation of a hand that points down: diag(1, -1, -1).
# Source: formats/lbm-preprocessing 2.7.
DOWNWARD_ROT_6D = np.array([1.0, 0.0, 0.0, 0.0, -1.0, 0.0])
LEFT_HAND = np.array([*LEFT_ARM_POSITION, OPEN])

_JOINTS = 7
_REST = np.array([0.0, -0.4, 0.0, -2.1, 0.0, 1.8, 0.8])
_JOINT_GAINS = np.cos(np.arange(_JOINTS * 3).reshape(3, _JOINTS)) * 0.9
_GRAVITY_TORQUE = np.array([0.0, -28.0, -3.0, 22.0, 1.5, 2.2, 0.1])
_HAND_WEIGHT = 7.2

Member = tuple[str, NDArray[Any]]


@dataclass(frozen=True)
class SpartanWriter:
    owned: ClassVar[Sequence[str]] = (f"tasks/{TASK}/**/*",)
    closing: ClassVar[Sequence[str]] = ()
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        del first_row  # episodes do not depend on each other
        with atomic_folder(episode_folder(self.setup.output, episode.index)) as folder:
            processed = folder / "processed"
            processed.mkdir()
            self._write_arrays(processed, episode)
            for view in self.setup.views:
                _write_camera_files(processed / f"images_{view.camera.id}", episode, view)
            _write_documents(processed, episode, self.setup.views)
        return recorded_episode(episode, [episode_folder(Path(), episode.index).as_posix()])

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Does nothing: the layout has no file for a whole data set."""

    def _write_arrays(self, folder: Path, episode: WorldEpisode) -> None:
        write_npz(folder / "observations.npz", self._observations(episode))
        write_npz(folder / "actions.npz", _actions(episode))
        cameras = [(view.camera.id, view) for view in self.setup.views]
        intrinsics = ((name, view.intrinsics.astype(np.float32)) for name, view in cameras)
        write_npz(folder / "intrinsics.npz", intrinsics)
        extrinsics = (
            (name, np.stack([view.camera.extrinsics(scene) for scene in episode.scenes]))
            for name, view in cameras
        )
        write_npz(folder / "extrinsics.npz", extrinsics)
        in_bin = [[scene.is_in_bin(episode.target)] for scene in episode.scenes]
        write_npz(folder / "summary.npz", [("episode_success", np.array([[episode.success]]))])
        write_npz(folder / "detailed_reward_traj.npz", [("reward", np.array(in_bin, float))])
        write_npz(folder / "detailed_task_predicate_traj.npz", [("in_bin", np.array(in_bin))])

    def _observations(self, episode: WorldEpisode) -> Iterable[Member]:
        """Yields one member after the other, so that memory holds one camera at a time."""
        for view in self.setup.views:
            yield view.camera.id, np.stack(list(episode.images(view)))
            if self.setup.depth:
                measured = list(episode.measurements(view))
                yield f"{view.camera.id}_depth", np.stack([frame.depth for frame in measured])
                yield f"{view.camera.id}_label", np.stack([frame.labels for frame in measured])
        yield "language_instruction", np.array([episode.instruction] * len(episode))
        yield from robot_signals(episode.states, episode.desired).items()


def episode_folder(output: Path, index: int) -> Path:
    session = Path("tasks", TASK, _STATION, "sim/bc/teleop", _DATE_STAMP, "diffusion_spartan")
    return output / session / f"episode_{index}"


def write_npz(path: Path, members: Iterable[Member]) -> None:
    """Writes a deflated npz like numpy, member by member, without the current time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_DEFLATE_LEVEL) as archive:
        for name, array in members:
            # A member opened by name has the date 1980, as in files of numpy.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                # Real episodes have one member of dtype object (`skill_type`). It is pickled
                # here to test readers; vlatool never unpickles it.
                np.lib.format.write_array(file, array, allow_pickle=True)


def _actions(episode: WorldEpisode) -> list[Member]:
    skill_types = np.array([_SKILL_TYPE] * len(episode), dtype=object)
    return [("actions", action_vectors(episode.actions)), ("skill_type", skill_types)]


def _write_camera_files(folder: Path, episode: WorldEpisode, view: View) -> None:
    folder.mkdir()
    height, width = view.size
    focal = view.intrinsics[0, 0]
    center = view.intrinsics[:2, 2]
    info = {
        "camera_matrix": {"rows": 3, "cols": 3, "data": view.intrinsics.ravel().tolist()},
        "focal_length": float(focal),
        "principal_point": center.tolist(),
        "image_height": height,
        "image_width": width,
    }
    _write_yaml(folder / "camera_info.yaml", info)
    # The unit quaternion w, x, y, z of a rotation [3, 3]; w is not negative.
    rotation = view.camera.rotation()
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    outer = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, zx + xz],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, zx + xz, zy + yz, zz - xx - yy],
        ]
    )
    # 4 q q^T - 1, so q is the eigenvector of the largest eigenvalue; never divides by a small w.
    vector = np.linalg.eigh(outer)[1][:, -1]
    w, x, y, z = (vector if vector[0] >= 0 else -vector).tolist()
    poses = {
        number: {
            "camera_to_world": {
                "quaternion": {"w": w, "x": x, "y": y, "z": z},
                "translation": dict(zip("xyz", view.camera.center(scene).tolist(), strict=True)),
            },
            "rgb_image_filename": f"{number:06d}_rgb.png",
            "timestamp": _START_US + number * 1_000_000 // FPS,
        }
        for number, scene in enumerate(episode.scenes)
    }
    _write_yaml(folder / "pose_data.yaml", poses)


def _write_documents(folder: Path, episode: WorldEpisode, views: tuple[View, ...]) -> None:
    metadata = {
        "camera_id_to_semantic_name": {view.camera.id: view.camera.name for view in views},
        "episode_id": str(episode.index),
        "skill_type": _SKILL_TYPE,
        "source": "vlatool world",
        "station": _STATION,
    }
    _write_yaml(folder / "metadata.yaml", metadata)
    start = episode.scenes[0]
    blocks = dict(zip(COLORS, start.blocks.tolist(), strict=True))
    scenario = {"blocks": blocks, "bin": start.bin.tolist(), "gripper": start.gripper.tolist()}
    scenario["language_instruction"] = episode.instruction
    _write_yaml(folder / "resolved_scenario.yaml", scenario)
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = {
        name: f"s3://private/{TASK}/episode_{episode.index}/{name}" for name in sorted(written)
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files}, indent=2) + "\n")


def _write_yaml(path: Path, document: dict[Any, Any]) -> None:
    path.write_text(yaml.dump(document, Dumper=_DUMPER, sort_keys=False))


def robot_signals(states: FloatArray, desired: FloatArray) -> dict[str, FloatArray]:
    """Arrays [L, C] float64 by raw name; measured and commanded x, y, z, opening [L, 4]."""
    left = np.tile(LEFT_HAND, (len(states), 1))
    signals: dict[str, FloatArray] = {}
    for kind, right in (("actual", states), ("desired", desired)):
        for side, hand in (("left", left), ("right", right)):
            signals |= _arm_signals(kind, side, hand)
    signals["robot__version"] = np.full((len(states), 1), ROBOT_VERSION)
    return dict(sorted(signals.items()))


def action_vectors(actions: FloatArray) -> FloatArray:
    """Actions x, y, z, opening [L, 4] as published [L, 20]. Source: formats/spartan 3."""
    rotation = np.tile(DOWNWARD_ROT_6D, (len(actions), 1))
    left = np.tile(LEFT_HAND, (len(actions), 1))
    right_pose = [actions[:, :3], rotation]
    return np.hstack([*right_pose, left[:, :3], rotation, actions[:, 3:], left[:, 3:]])


def _arm_signals(kind: str, side: str, hand: FloatArray) -> dict[str, FloatArray]:
    joints = _REST + (hand[:, :3] - [0.5, 0.5, 0.2]) @ _JOINT_GAINS
    velocity = np.gradient(joints, axis=0) * FPS if len(hand) > 1 else np.zeros_like(joints)
    grip = 1 - hand[:, 3:] / OPEN
    external = 0.3 * np.sin(3 * joints) + 0.2 * grip
    force = np.hstack([0.4 * np.sin(4 * hand[:, :3]), 0.05 * np.cos(4 * hand[:, :3])])
    values = {
        "joint_position": joints,
        "joint_velocity": velocity,
        "joint_torque": _GRAVITY_TORQUE * np.cos(0.5 * (joints - _REST)) + external,
        "joint_torque_external": external,
        "wrench": force + np.array([0.0, 0.0, -_HAND_WEIGHT, 0.0, 0.0, 0.0]),
        "external_wrench": force,
    }
    prefix = f"robot__{kind}__"
    arm = {f"{prefix}{name}__{side}::panda": value for name, value in values.items()}
    arm[f"{prefix}grippers__{side}::panda_hand"] = hand[:, 3:]
    arm[f"{prefix}poses__{side}::panda__xyz"] = hand[:, :3]
    arm[f"{prefix}poses__{side}::panda__rot_6d"] = np.tile(DOWNWARD_ROT_6D, (len(hand), 1))
    return arm
