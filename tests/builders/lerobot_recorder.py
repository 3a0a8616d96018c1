"""Records a set with LeRobot, and ends like a killed process within the last episode.

    python -P lerobot_recorder.py FOLDER 3 2

has a session of three episodes and one of two.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

FRAMES = 5
KILLED = 9  # exit code


def gray(episode: int, frame: int) -> int:
    """Value of all pixels of an image."""
    return (37 * episode + 20 * frame) % 250


def record(root: str, sessions: Sequence[int]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    action = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    features = {"action": action, "observation.images.front": image}
    dataset: Any = LeRobotDataset.create("lab/killed", fps=10, features=features, root=root)
    episode = 0
    for number, count in enumerate(sessions):
        if number:
            dataset.finalize()
            dataset = LeRobotDataset.resume("lab/killed", root=root)
        for _ in range(count):
            for frame in range(FRAMES):
                _add_frame(dataset, episode, frame)
            dataset.save_episode()
            episode += 1
    _add_frame(dataset, episode, 0)


def _add_frame(dataset: Any, episode: int, frame: int) -> None:
    image = np.full((64, 64, 3), gray(episode, frame), np.uint8)
    values = {"action": np.zeros(2, np.float32), "observation.images.front": image}
    dataset.add_frame({**values, "task": f"task {episode % 2}"})


if __name__ == "__main__":
    record(sys.argv[1], [*map(int, sys.argv[2:])])
    os._exit(KILLED)
