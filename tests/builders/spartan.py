"""Builders of tiny raw Spartan episodes. Source: formats/spartan 1, 2, 3, 4, 5."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

TASK = "PutCupOnSaucer"
STAMP = "2024-11-14T15-59-59-08-00"
CAMERAS = {"6CD146030E99": "scene_right_0", "BFS_23595718": "wrist_left_minus"}

Documents = dict[str, dict[str, Any]]
Change = Callable[[Documents], None]


def image(frame: int, camera: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A smooth image uint8 [H, W, 3] that differs by frame and camera."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (rows * 3 + frame * 7, columns * 2 + camera * 50, rows + columns + frame)
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


def poses(frames: int, side: int, shift: float = 0.0) -> dict[str, NDArray[np.float64]]:
    """xyz [F, 3] and rot_6d [F, 6] of an arm that moves and rotates about the vertical axis."""
    time = np.arange(frames) + shift
    angle = 0.1 * time + side
    zero_column, one_column = np.zeros(frames), np.ones(frames)
    rows = [np.cos(angle), -np.sin(angle), zero_column, np.sin(angle), np.cos(angle), zero_column]
    return {
        "xyz": np.stack([0.01 * time, 0.3 * one_column + side, 0.5 - 0.02 * time], axis=1),
        "rot_6d": np.stack(rows, axis=1),
    }


def robot_signals(frames: int) -> dict[str, NDArray[np.float64]]:
    """Measured and desired signals of both arms; desired is half a frame ahead."""
    signals: dict[str, NDArray[np.float64]] = {}
    for kind, shift in (("actual", 0.0), ("desired", 0.5)):
        for side, name in enumerate(("left", "right")):
            for part, values in poses(frames, side, shift).items():
                signals[f"robot__{kind}__poses__{name}::panda__{part}"] = values
            opening = 0.1 - 0.01 * (np.arange(frames) + shift)[:, None]
            signals[f"robot__{kind}__grippers__{name}::panda_hand"] = opening
    signals["robot__version"] = np.full((frames, 1), 20241212.0)
    return signals


def action_vectors(frames: int) -> NDArray[np.float64]:
    """Actions [F, 20]: the desired poses of the next frame. Source: formats/spartan 3."""
    sides = [poses(frames, side, 1.5) for side in (1, 0)]
    gripper = 0.1 - 0.01 * (np.arange(frames) + 1.5)[:, None]
    parts = [values for arm in sides for values in (arm["xyz"], arm["rot_6d"])]
    return np.concatenate([*parts, gripper, gripper], axis=1)


def spartan_episode(
    folder: Path,
    frames: int = 6,  # number of frames
    size: tuple[int, int] = (24, 32),  # (height, width) of the images
    *,
    cameras: Mapping[str, str] = CAMERAS,  # hardware id to semantic name
    # Text of `language_instruction`; None: no such array.
    instruction: str | None = "put the cup on the saucer",
    change: Change | None = None,
) -> Path:
    """Writes `folder/processed/...` and returns `folder`."""
    observations: dict[str, Any] = {}
    for number, camera in enumerate(cameras):
        images = [image(frame, number, size) for frame in range(frames)]
        observations[camera] = np.array(images, np.uint8).reshape(frames, *size, 3)
        observations[f"{camera}_depth"] = np.full((frames, *size), 700, np.uint16)
        observations[f"{camera}_label"] = np.zeros((frames, *size), np.int16)
    if instruction is not None:
        observations["language_instruction"] = np.array([instruction] * frames)
    observations |= robot_signals(frames)
    matrix = np.array([[30, 0, size[1] / 2], [0, 30, size[0] / 2], [0, 0, 1]], np.float32)
    moving_poses = np.tile(np.eye(4), (frames, 1, 1))
    moving_poses[:, 0, 3] = np.arange(frames)
    documents: Documents = {
        "metadata": {"camera_id_to_semantic_name": dict(cameras), "station": "cabot"},
        "observations": observations,
        "actions": {
            "actions": action_vectors(frames),
            "skill_type": np.array(["SkillType.ROLLOUT"] * frames, dtype=object),
        },
        "intrinsics": dict.fromkeys(cameras, matrix),
        "extrinsics": dict.fromkeys(cameras, moving_poses),
    }
    if change is not None:
        change(documents)
    _write(folder / "processed", documents)
    return folder


def _write(folder: Path, documents: Documents) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in documents.items():
        if name == "metadata":
            (folder / "metadata.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        else:
            # `skill_type` of real episodes is a pickled array; vlatool never loads it.
            np.savez_compressed(folder / f"{name}.npz", **content)


def spartan_task(
    root: Path,  # parent of the folder `tasks`
    episodes: int = 3,  # number of episodes
    frames: int = 6,  # number of frames of each
    *,
    task: str = TASK,
    stamp: str = STAMP,  # name of the recording session
    changes: Mapping[int, Change] | None = None,
    **options: Any,  # further arguments of `spartan_episode`
) -> Path:
    """Writes tasks/<Task>/<station>/sim/bc/teleop/<stamp>/diffusion_spartan; returns `root`."""
    session = session_folder(root, task, stamp)
    for number in range(episodes):
        change = (changes or {}).get(number)
        spartan_episode(session / f"episode_{number}", frames, change=change, **options)
    return root


def session_folder(root: Path, task: str = TASK, stamp: str = STAMP) -> Path:
    """Folder with the episodes of `spartan_task`."""
    return root / "tasks" / task / "cabot/sim/bc/teleop" / stamp / "diffusion_spartan"
