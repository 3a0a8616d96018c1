"""The parts that both LeRobot layouts of the world have: tables, meta files, statistics.

Source: lerobot-format 2 to 6 and 9.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlatool.storage.atomic import open_atomic, write_json, write_text
from vlatool.world.recording import RecordedEpisode
from vlatool.world.scene import COLOURS, FPS, instruction_for

Stats = dict[str, Any]

CHUNK_SIZE = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
META_FILES = (
    "meta/stats.json",
    "meta/episodes_stats.jsonl",
    "meta/tasks.jsonl",
    "meta/episodes.jsonl",
    "meta/info.json",
)
OWNED_FILES = (
    "data/chunk-*/episode_*.parquet",
    "videos/chunk-*/*/episode_*.mp4",
    *META_FILES,
)
TASKS = tuple(instruction_for(colour) for colour in COLOURS)
_AUTOMATIC = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def template_values(index: int) -> dict[str, int]:
    """What the path templates need for an episode."""
    return {"episode_chunk": index // CHUNK_SIZE, "episode_index": index}


def automatic_columns(index: int, length: int, first_row: int, task: int) -> dict[str, pa.Array]:
    """The columns every set has [length]."""
    frames = np.arange(length)
    return {
        "timestamp": pa.array((frames / FPS).astype(np.float32)),
        "frame_index": pa.array(frames),
        "episode_index": pa.array(np.full(length, index)),
        "index": pa.array(first_row + frames),
        "task_index": pa.array(np.full(length, task)),
    }


def vector_column(values: NDArray[np.float32]) -> pa.Array:
    """A column of lists of fixed size from [L, C]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def write_table(path: Path, columns: Mapping[str, pa.Array]) -> None:
    """Writes one episode's parquet file."""
    with open_atomic(path) as file:
        pq.write_table(pa.table(dict(columns)), file)


def automatic_features() -> dict[str, Any]:
    """Declarations of the automatic columns."""
    return {
        name: feature("float32" if name == "timestamp" else "int64", [1]) for name in _AUTOMATIC
    }


def feature(dtype: str, shape: list[int], names: list[str] | None = None) -> dict[str, Any]:
    """Declaration of one column."""
    return {"dtype": dtype, "shape": shape, "names": names}


def write_meta(
    output: Path,
    version: str,
    episodes: list[RecordedEpisode],
    features: Mapping[str, Any],
    robot_type: str,
) -> None:
    """Writes episodes, tasks and, last of all, info."""
    lengths = [
        {"episode_index": one.index, "tasks": [one.instruction], "length": one.frames}
        for one in episodes
    ]
    write_lines(output / "meta/episodes.jsonl", lengths)
    tasks = [{"task_index": number, "task": task} for number, task in enumerate(TASKS)]
    write_lines(output / "meta/tasks.jsonl", tasks)
    videos = sum(declared["dtype"] == "video" for declared in features.values())
    info = {
        "codebase_version": version,
        "robot_type": robot_type,
        "total_episodes": len(episodes),
        "total_frames": sum(one.frames for one in episodes),
        "total_tasks": len(TASKS),
        "total_videos": videos * len(episodes),
        "total_chunks": -(-len(episodes) // CHUNK_SIZE),
        "chunks_size": CHUNK_SIZE,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": dict(features),
    }
    write_json(output / "meta/info.json", info, indent=4)


def write_lines(path: Path, documents: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines."""
    write_text(path, "".join(json.dumps(document) + "\n" for document in documents))


def vector_stats(values: NDArray[Any]) -> Stats:
    """Statistics of [L] or [L, C] per dimension; population deviation."""
    table = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
        "mean": table.mean(axis=0).tolist(),
        "std": table.std(axis=0).tolist(),
        "count": [len(table)],
    }


def table_stats(columns: Mapping[str, pa.Array]) -> dict[str, Stats]:
    """Statistics of every numeric column."""
    return {
        name: vector_stats(np.array(column.to_pylist()))
        for name, column in columns.items()
        if not pa.types.is_struct(column.type)
    }


def merge_stats(parts: list[Stats]) -> Stats:
    """Statistics of a whole set from those of its episodes, without the count."""
    counts = np.array([part["count"][0] for part in parts], np.float64)[:, None]
    weights = counts / counts.sum()
    means = np.array([part["mean"] for part in parts])
    mean = (weights * means).sum(axis=0)
    spread = np.array([part["std"] for part in parts]) ** 2 + (means - mean) ** 2
    return {
        "mean": mean.tolist(),
        "std": np.sqrt((weights * spread).sum(axis=0)).tolist(),
        "min": np.min([part["min"] for part in parts], axis=0).tolist(),
        "max": np.max([part["max"] for part in parts], axis=0).tolist(),
    }
