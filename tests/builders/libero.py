"""Builders of tiny LIBERO data sets and their windows."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.builders.lerobot import Columns, write_lines
from vlatool.config.resolve import config_of
from vlatool.datasets.jsonl.layout import Window, parse_window
from vlatool.errors import VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

CAMERAS = ("image", "wrist_image")
SIZE = 256
TASK = "put the bowl on the plate"
DATA = "data/chunk-000/episode_{:06d}.parquet"


def png(frame: int, camera: int = 0, size: int = SIZE, mode: str = "RGB", **options: Any) -> bytes:
    """A PNG image that differs by frame and camera."""
    image = Image.new("RGB", (size, size), (frame, 100 * camera, 7)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def actions(length: int) -> np.ndarray:
    """Actions [L, 7] with distinct values, the gripper last."""
    return (np.arange(length)[:, None] + np.arange(7) / 10).astype(np.float32)


def libero_dataset(
    root: Path,  # folder of the data set
    lengths: Sequence[int] = (3, 4),  # number of frames of each episode
    *,
    change: Callable[[int, Columns], None] = lambda _number, _columns: None,
    tasks: Sequence[str] = (TASK,),  # listed tasks of each episode
    size: int = SIZE,  # size of the images, in pixels
    cameras: Sequence[str] = CAMERAS,  # cameras in info.json
) -> Path:
    """Writes a data set and returns its folder."""
    _write_meta(root, lengths, tasks, size, cameras)
    for number, length in enumerate(lengths):
        rows = np.arange(length)
        columns: Columns = {
            name: [{"bytes": png(j, i, size), "path": None} for j in range(length)]
            for i, name in enumerate(CAMERAS)
        }
        columns |= {
            "state": np.zeros((length, 8), np.float32).tolist(),
            "actions": pa.array(actions(length).tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array(rows / 10, pa.float32()),
            "frame_index": rows,
            "episode_index": np.full(length, number),
            "index": rows,
            "task_index": np.zeros(length, np.int64),
        }
        change(number, columns)
        path = root / DATA.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    return root


def _write_meta(
    root: Path, lengths: Sequence[int], tasks: Sequence[str], size: int, cameras: Sequence[str]
) -> None:
    names = ["height", "width", "channel"]
    features: dict[str, Any] = {
        name: {"dtype": "image", "shape": [size, size, 3], "names": names} for name in cameras
    }
    for name, width in {"state": 8, "actions": 7, "timestamp": 1}.items():
        features[name] = {"dtype": "float32", "shape": [width], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    info = {"codebase_version": "v2.0", "fps": 10, "features": features}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    listed = [
        {"episode_index": number, "tasks": list(tasks), "length": length}
        for number, length in enumerate(lengths)
    ]
    write_lines(root / "meta/episodes.jsonl", listed)
    table = [{"task_index": number, "task": text} for number, text in enumerate(tasks)]
    write_lines(root / "meta/tasks.jsonl", table)


def convert(
    source: Path, output: Path, /, *, reporter: Reporter = NULL, **options: Any
) -> PreprocessResult:
    """Runs `preprocess` into windows; the default format is `libero`."""
    where = {"format": "libero", "sources": [str(source)], "output": str(output), "workers": 1}
    tree = {**where, **options}
    return preprocess(config_of(PreprocessConfig, tree), reporter=reporter)


def convert_error(source: Path, output: Path, /, **options: Any) -> VlatoolError:
    """Error of such a run."""
    with pytest.raises(VlatoolError) as caught:
        convert(source, output, **options)
    return caught.value


def windows(output: Path, episode: int = 0) -> list[Window]:
    path = output / f"data/episode_{episode:06d}.jsonl"
    return [parse_window(line) for line in path.read_bytes().splitlines()]
