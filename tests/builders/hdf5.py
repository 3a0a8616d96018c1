"""HDF5 recordings of several layouts, as their own programs write them."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

FRAMES = 5


def image(seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Smooth image uint8 [H, W, 3] whose channels differ."""
    rows, columns = np.indices(size)
    return np.stack([rows * 8 + seed, columns * 7, 255 - rows - seed], axis=-1).astype(np.uint8)


def images(count: int = FRAMES) -> np.ndarray:
    return np.stack([image(index) for index in range(count)])


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, quality=95)
    return buffer.getvalue()


def robomimic(
    path: Path, lengths: Mapping[str, int], change: Callable[[Any], None] | None = None
) -> Path:
    """A file with a group `data/demo_N` per episode; `change` edits the open file."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}
        )
        for number, (name, count) in enumerate(lengths.items()):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = count
            demo["actions"] = np.full((count, 2), number, np.float32)
            demo["obs/robot0_eef_pos"] = np.arange(count * 3.0).reshape(count, 3)
            demo["obs/object"] = np.zeros((count, 4))
            demo["next_obs/object"] = np.zeros((count, 4))
            demo.create_dataset("obs/front_image", data=images(count), compression="gzip")
        file["mask/train"] = np.array([name.encode() for name in list(lengths)[:1]])
        if change is not None:
            change(file)
    return path


def aloha(path: Path, rows: Sequence[bytes], form: str = "padded") -> Path:
    """A file that is one episode, with images filled up to one length, or of their own lengths."""
    longest = max(map(len, rows))
    filled = [row.ljust(longest, b"\0") for row in rows]
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["action"] = np.zeros((len(rows), 14), np.float32)
        file["observations/qpos"] = np.ones((len(rows), 14), np.float32)
        name = "observations/images/cam_high"
        if form == "vlen":
            images = file.create_dataset(name, len(rows), h5py.vlen_dtype(np.uint8))
            for index, row in enumerate(rows):
                images[index] = np.frombuffer(row, np.uint8)
        elif form == "opaque":
            file[name] = np.array([np.void(row) for row in filled])
        else:
            file[name] = np.stack([np.frombuffer(row, np.uint8) for row in filled])
    return path
