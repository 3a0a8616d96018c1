"""What `lerobot.py` runs in the environments of LeRobot (`..._there`) and of vlatool (`..._here`).

    python -P benchmarks/lerobot_sides.py FUNCTION ARGUMENTS ...

Works with the public interfaces of both. -P: `lerobot` is the package, not the script beside this.
"""

import itertools
import json
import sys
import time
from typing import Any

FPS = 10
SIDE = 256  # pixels
CAMERAS = ("scene_right_0_image", "wrist_right_minus_image")
ACTIONS = 16  # actions of a window
BATCH = 16
SECONDS = 8  # of a measurement of windows


def convert_there(output: str, *recordings: str) -> None:
    """HDF5 to a LeRobot set, frame by frame, encoded while frames are added, which is faster."""
    import h5py
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    numbers = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]}
    features: dict[str, Any] = {"observation.state": numbers, "action": numbers}
    names = ["height", "width", "channels"]
    for camera in CAMERAS:
        video = {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": names}
        features[f"observation.images.{camera}"] = video
    dataset = LeRobotDataset.create(
        "local/set", FPS, features, root=output, streaming_encoding=True
    )
    for path in recordings:
        with h5py.File(path) as file:
            problem = json.loads(file["data"].attrs["problem_info"])
            for demo in file["data"].values():
                add_episode(dataset, demo, problem["language_instruction"])
    dataset.finalize()


def add_episode(dataset: Any, demo: Any, task: str) -> None:
    """Adds the frames of a recording to a LeRobot set."""
    import numpy as np

    states = np.concatenate([demo["obs/eef_pos"][:], demo["obs/gripper_width"][:]], axis=1)
    actions = demo["actions"][:]
    for number in range(len(actions)):
        frame = {"observation.state": states[number], "action": actions[number], "task": task}
        for camera in CAMERAS:
            frame[f"observation.images.{camera}"] = demo[f"obs/{camera}"][number]
        dataset.add_frame(frame)
    dataset.save_episode()


def windows_there(folder: str, backend: str, workers: str) -> None:
    """Prints windows per second of a LeRobot set; `backend`: pyav or torchcodec."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    deltas = {"action": [step / FPS for step in range(ACTIONS)]}
    for camera in CAMERAS:
        deltas[f"observation.images.{camera}"] = [-1 / FPS, 0]
    dataset = LeRobotDataset(
        "local/set",
        root=folder,
        delta_timestamps=deltas,
        video_backend=backend,
        return_uint8=True,
    )
    print_rate(DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=int(workers)))


def windows_here(folder: str, workers: str) -> None:
    """Prints windows per second of data of vlatool, which are shuffled."""
    from torch.utils.data import DataLoader

    from vlatool import open_dataset

    dataset = open_dataset(folder, image_indices=[-1, 0])
    assert len(dataset[0]["action"]) == ACTIONS
    print_rate(DataLoader(dataset, batch_size=BATCH, num_workers=int(workers)))


def print_rate(loader: Any) -> None:
    """Prints samples per second, without those of the first batches, which start the workers."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(batches, 8):
        assert batch["action"].shape[1] == ACTIONS
    count = 0
    start = time.perf_counter()
    while time.perf_counter() < start + SECONDS:
        next(batches)
        count += BATCH
    print(json.dumps(count / (time.perf_counter() - start)))


def merge_there(output: str, *folders: str) -> None:
    """One LeRobot set of several."""
    from lerobot.datasets.dataset_tools import merge_datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets = [LeRobotDataset("local/set", root=folder) for folder in folders]
    merge_datasets(datasets, output_repo_id="local/merged", output_dir=output)


def statistics_there(folder: str) -> None:
    """Statistics of all numbers of a LeRobot set, computed again."""
    from lerobot.datasets.dataset_tools import recompute_stats
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    recompute_stats(LeRobotDataset("local/set", root=folder))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
