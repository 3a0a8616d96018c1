"""Recordings of every format with a camera, a text and an action that nothing takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tests.builders import hdf5, mcap
from tests.builders.folder import write_episode
from tests.builders.lerobot import lerobot_dataset
from tests.builders.tfrecords import example, record

FRAMES = 24
TEXT = [b"note"] * FRAMES
FIELD = "zq17_torque"  # an ordinary field that no rule knows
CAMERA = np.zeros((FRAMES, 24, 32, 3), np.int16)
ACTION = np.zeros((FRAMES, 300), np.float32)
VALUES = np.arange(3.0 * FRAMES, dtype=np.float32).reshape(FRAMES, 3)


def plant_hdf5(folder: Path) -> Path:
    def change(file: Any) -> None:
        demo = file["data/demo_0"]
        demo.attrs["task"] = demo.attrs["language_instruction"] = "pick"
        demo["obs/odd_camera"] = CAMERA
        demo["obs/memo"] = np.array(TEXT)
        demo["obs/big_action"] = ACTION
        demo[f"obs/{FIELD}"] = VALUES

    return hdf5.robomimic(folder / "a.hdf5", {"demo_0": FRAMES}, change)


def plant_zarr(folder: Path) -> Path:
    root = zarr.open_group(str(folder / "a.zarr"), mode="w", zarr_format=3)
    root.attrs["instruction"] = "pick"
    arrays: dict[str, Any] = {
        "data/action": np.ones((FRAMES, 2), np.float32),
        "data/state": np.ones((FRAMES, 2), np.float32),
        "data/front": hdf5.images(FRAMES),
        "data/odd_camera": CAMERA,
        "data/memo": np.array(["note"] * FRAMES),
        "data/big_action": ACTION,
        f"data/{FIELD}": VALUES,
        "meta/episode_ends": np.array([FRAMES]),
    }
    for name, values in arrays.items():
        root.create_array(name, data=values)
    return folder / "a.zarr"


def plant_rlds(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)

    def tensor(*shape: int) -> dict[str, Any]:
        sides = {"dimensions": [str(side) for side in shape]}
        return {"tensor": {"shape": sides, "dtype": "float32", "encoding": "none"}}

    features = {
        "action": tensor(2),
        "big_action": tensor(300),
        FIELD: tensor(3),
        "odd_camera": tensor(24, 32, 2),
        "front": {"image": {"shape": {"dimensions": ["24", "32", "3"]}, "dtype": "uint8"}},
        "memo": {"text": {}},
        "language_instruction": {"text": {}},
    }
    steps = {"sequence": {"feature": {"featuresDict": {"features": features}}}}
    document = {"featuresDict": {"features": {"steps": steps}}}
    (folder / "features.json").write_text(json.dumps(document))
    values = {
        "steps/action": np.ones(2 * FRAMES, np.float32),
        "steps/big_action": ACTION.ravel(),
        f"steps/{FIELD}": VALUES.ravel(),
        "steps/odd_camera": np.zeros(24 * 32 * 2 * FRAMES, np.float32),
        "steps/front": [hdf5.encoded(image) for image in hdf5.images(FRAMES)],
        "steps/memo": TEXT,
        "steps/language_instruction": [b"pick"] * FRAMES,
    }
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(record(example(values)))
    return folder


def plant_mcap(folder: Path) -> Path:
    path = folder / "a.mcap"
    front = [
        ("/front/image", step / 10, mcap.image(image, "rgb8", step / 10))
        for step, image in enumerate(hdf5.images(FRAMES))
    ]
    planted: list[Any] = [("/memo", 0.0, mcap.ros(mcap.STRING, "note"))]
    for step in range(FRAMES):
        odd = mcap.image(hdf5.image(step), "odd9", step / 10)
        planted += [
            ("/odd_camera/image", step / 10, odd),
            ("/big_action", step / 10, mcap.numbers(*ACTION[step])),
            (f"/{FIELD}", step / 10, mcap.numbers(*VALUES[step])),
        ]
    return mcap.bag(path, [*mcap.standard(FRAMES), *front, *planted])


def plant_lerobot(folder: Path) -> Path:
    root = folder / "set"

    def change(_number: int, columns: Any) -> None:
        columns["memo"] = ["note"] * FRAMES
        columns["big_action"] = [row.tolist() for row in ACTION]
        columns[FIELD] = [row.tolist() for row in VALUES]

    lerobot_dataset(root, (FRAMES,), change=change)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"] |= {
        "memo": {"dtype": "string", "shape": [1], "names": None},
        "big_action": {"dtype": "float32", "shape": [300], "names": None},
        FIELD: {"dtype": "float32", "shape": [3], "names": None},
        "observation.odd_camera": {"dtype": "int16", "shape": [24, 32, 3], "names": None},
    }
    path.write_text(json.dumps(info))
    return root


def plant_folder(folder: Path) -> Path:
    source = folder / "set/episode_0"
    write_episode(source, FRAMES)
    arrays = {"odd_camera": CAMERA, "big_action": ACTION, FIELD: VALUES}
    np.savez(source / "more.npz", **arrays)
    (source / "notes.csv").write_text("memo,value\n" + "a note,1\n" * FRAMES)
    return folder / "set"


PLANTS: dict[str, Callable[[Path], Path]] = {
    "hdf5": plant_hdf5,
    "zarr": plant_zarr,
    "rlds": plant_rlds,
    "mcap": plant_mcap,
    "lerobot": plant_lerobot,
    "folder": plant_folder,
}
PLANTED = ("odd_camera", "memo", "big_action")
