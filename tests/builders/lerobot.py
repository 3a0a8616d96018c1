"""Builders of tiny LeRobot data sets."""

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tests.builders import lerobot_shared

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
TASKS = ("put the ball in the box", "put the ring on the peg")

Columns = dict[str, Any]


def image(frame: int, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """Image uint8 [H, W, 3] whose gray level is its frame (mod 50), even after encoding."""
    image = np.full((height, width, 3), 5 * (frame % 50), np.uint8)
    image[: height // 4, : width // 4] = (200, 30, 30)
    return image


def frame_of(image: NDArray[np.uint8]) -> int:
    """Frame (mod 50) of an image from `image`."""
    height, width, _ = image.shape
    return round(float(image[height // 2 :, width // 2 :].mean()) / 5)


def write_video(path: Path, frames: int, *, fps: int = 10, **codec_options: str) -> None:
    """Writes an h264 video of `image`; options such as `g="250"`, `bf="2"` go to the encoder.

    Equal frames give equal bytes without `bf`; with it they vary between runs on a busy machine.
    """
    codec_options = {"bf": "0", "threads": "1", **codec_options}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=codec_options)
        height, width, _ = image(0).shape
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encoded_image(frame: int, kind: str = "PNG") -> bytes:
    """`image(frame)` as the content of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image(frame)).save(buffer, kind)
    return buffer.getvalue()


def lerobot_dataset(
    root: Path,  # folder of the data set
    lengths: Sequence[int] = (6, 4),  # number of frames of each episode
    *,
    cameras: Mapping[str, str] | None = None,
    version: str = "v2.1",  # `v2.0`, `v2.1` or `v3.0`
    info: Mapping[str, Any] | None = None,  # keys of info.json to replace; null values remove them
    change: Callable[[int, Columns], None] = lambda _number, _columns: None,
    per_file: int = 2,  # number of episodes per file in v3.0
) -> Path:
    """Writes a data set and returns its folder."""
    cameras = {"observation.images.front": "video"} if cameras is None else cameras
    _write_meta(root, lengths, cameras, version, info or {})
    parts = root / ".parts" if version == "v3.0" else root
    tables: list[pa.Table] = []
    videos: dict[str, list[Path]] = {name: [] for name in cameras if cameras[name] == "video"}
    first = 0
    for number, length in enumerate(lengths):
        columns = _columns(number, first, length)
        for name in (name for name, kind in cameras.items() if kind == "image"):
            columns[name] = [{"bytes": encoded_image(j), "path": None} for j in range(length)]
        change(number, columns)
        tables.append(pa.table(columns))
        for name, paths in videos.items():
            path = VIDEO_PATH.format(episode_chunk=0, video_key=name, episode_index=number)
            paths.append(parts / path)
            write_video(paths[-1], length)
        first += length
    if version == "v3.0":
        lerobot_shared.write_shared(root, tables, videos, TASKS, fps=10, per_file=per_file)
        shutil.rmtree(parts, ignore_errors=True)
        return root
    for number, table in enumerate(tables):
        path = root / DATA_PATH.format(episode_chunk=0, episode_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    return root


def _columns(number: int, first: int, length: int) -> Columns:
    rows = np.arange(length)
    state = (100 * number + rows[:, None] + np.arange(3) / 10).astype(np.float32)
    action = pa.FixedSizeListArray.from_arrays(pa.array((state[:, :2] + 0.5).ravel()), 2)
    return {
        "observation.state": state.tolist(),
        "observation.gripper": pa.array(rows / 10, pa.float32()),
        "action": action,
        "timestamp": pa.array(rows / 10, pa.float32()),
        "frame_index": rows,
        "episode_index": np.full(length, number),
        "index": first + rows,
        "task_index": np.full(length, number % len(TASKS)),
    }


def _write_meta(
    root: Path,
    lengths: Sequence[int],
    cameras: Mapping[str, str],
    version: str,
    changes: Mapping[str, Any],
) -> None:
    names = ["height", "width", "channel"]
    features: dict[str, Any] = {
        name: {"dtype": kind, "shape": [*image(0).shape], "names": names}
        for name, kind in cameras.items()
    }
    widths = {"observation.state": 3, "observation.gripper": 1, "action": 2, "timestamp": 1}
    for name, width in widths.items():
        features[name] = {"dtype": "float32", "shape": [width], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "fps": 10,
        "data_path": lerobot_shared.DATA_PATH if version == "v3.0" else DATA_PATH,
        "video_path": lerobot_shared.VIDEO_PATH if version == "v3.0" else VIDEO_PATH,
        "features": features,
        **changes,
    }
    info = {key: value for key, value in info.items() if value is not None}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    black = {key: [[[0.0]]] * 3 for key in ("min", "max", "mean", "std")}
    stats = {name: {**black, "count": [1]} for name in cameras}
    (root / "meta/stats.json").write_text(json.dumps(stats))
    if version == "v3.0":
        return
    write_lines(
        root / "meta/episodes.jsonl",
        [
            {"episode_index": number, "tasks": [TASKS[number % len(TASKS)]], "length": length}
            for number, length in enumerate(lengths)
        ],
    )
    write_lines(
        root / "meta/tasks.jsonl",
        [{"task_index": number, "task": text} for number, text in enumerate(TASKS)],
    )
    if version == "v2.1":
        write_lines(root / "meta/episodes_stats.jsonl", [])


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON-lines file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
