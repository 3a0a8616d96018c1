"""Folders of videos, images and tables, as people have them."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vlatool.media.images import encode_png
from vlatool.media.video import encode_video

SIZE = 32


def image(frame: int) -> np.ndarray[Any, Any]:
    """Image uint8 [32, 32, 3] that no other frame has."""
    row, column = np.mgrid[:SIZE, :SIZE]
    parts = (column * 4 + frame * 7, row * 4, np.full_like(row, frame * 5))
    return np.stack([part % 256 for part in parts], axis=-1).astype(np.uint8)


def write_video(path: Path, frames: int, fps: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_video((image(frame) for frame in range(frames)), fps))


def write_uneven_video(path: Path, seconds: Sequence[float]) -> None:
    """A video whose frames have these times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("h264", rate=30)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            frame.pts, frame.time_base = round(second * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_images(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode_png(image(number)))


def joints(frames: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Six joints and a gripper [F, 7]."""
    return 0.5 * np.sin(0.2 * np.arange(frames)[:, None] + np.arange(7) * 0.7 + seed)


def table(frames: int, rate: float = 30.0, separator: str = ",", seed: int = 0) -> str:
    """CSV of times, joints `q0 ..` with a gripper, and actions that are the next row."""
    states = joints(frames, seed)
    actions = np.vstack([states[1:], states[-1:]])
    names = [*(f"q{number}" for number in range(6)), "gripper"]
    names += [f"action_{number}" for number in range(7)]
    lines = [separator.join(["timestamp", *names])]
    for step in range(frames):
        values = (step / rate, *states[step], *actions[step])
        lines.append(separator.join(f"{value:.6f}" for value in values))
    return "\n".join(lines) + "\n"


def write_episode(
    folder: Path, frames: int = 8, *, clip: int | None = None, text: str = ""
) -> Path:
    """`front.mp4`, `wrist.mp4`, `data.csv` and `meta.json`; `clip`: frames of the videos."""
    write_video(folder / "front.mp4", clip or frames)
    write_video(folder / "wrist.mp4", clip or frames)
    (folder / "data.csv").write_text(text or table(frames))
    facts = {"instruction": "put the cup on the plate", "success": True, "fps": 30}
    (folder / "meta.json").write_text(json.dumps(facts))
    return folder


def write_set(root: Path, episodes: int = 2, **keys: Any) -> Path:
    for number in range(episodes):
        write_episode(root / f"episode_{number}", **keys)
    return root
