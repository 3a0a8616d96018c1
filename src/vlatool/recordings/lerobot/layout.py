"""LeRobot data sets: names of all versions; writing of tables and meta files of v2.0 and v2.1.

Legend of shapes: L rows, C dimensions. Source: formats/lerobot 2, 3, 4, 5, 6, 9.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlatool.episode import Episode
from vlatool.storage.atomic import open_atomic, write_bytes, write_json

Stats = dict[str, Any]
SINK = "lerobot"
# Versions that are written.
Version = Literal["v3.0", "v2.1"]

INFO_FILE = "meta/info.json"
EPISODES_FILE = "meta/episodes.jsonl"
TASKS_FILE = "meta/tasks.jsonl"
STATS_FILE = "meta/stats.json"
EPISODE_STATS_FILE = "meta/episodes_stats.jsonl"
MODALITY_FILE = "meta/modality.json"
# v3.0: tables in place of the two lists.
EPISODES_FOLDER = "meta/episodes"
EPISODES_TABLES = "meta/episodes/chunk-*/file-*.parquet"
TASKS_TABLE = "meta/tasks.parquet"
SHARED_TABLES = "data/chunk-*/file-*.parquet"
META_FILES = (STATS_FILE, EPISODE_STATS_FILE, TASKS_FILE, EPISODES_FILE, INFO_FILE)
OWNED_FILES = (
    "data/chunk-*/episode_*.parquet",
    "videos/chunk-*/*/episode_*.mp4",
    *META_FILES,
)
# Defaults for keys that info.json lacks.
CHUNKS_SIZE = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
SHARED_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
SHARED_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

FRAME_INDEX = "frame_index"
EPISODE_INDEX = "episode_index"
# Columns of every data set.
AUTOMATIC: tuple[str, ...] = ("timestamp", FRAME_INDEX, EPISODE_INDEX, "index", "task_index")


@dataclass(frozen=True)
class Span:
    """Part of a file of v3.0 that belongs to one episode."""

    chunk: int  # number of the chunk of the file
    file: int  # number of the file in the chunk
    start: float  # first row, counted over the whole data set; of a video, seconds in the file
    stop: float  # end, exclusive, in the unit of `start`


@dataclass(frozen=True)
class EpisodeLine:
    """Entry of the list of episodes."""

    number: int
    tasks: tuple[str, ...]  # sentences of its tasks
    length: int | None  # number of rows; None if unknown
    rows: Span | None = None  # its rows (v3.0); None: it has a file of its own
    # map from camera to its part of a video (v3.0)
    clips: Mapping[str, Span] = field(default_factory=dict[str, Span])
    # what else the list says of it: numbers, booleans and texts; None for other values
    further: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class SetInfo:
    """Content of the meta files besides the episodes; `features` are declarations by `feature`."""

    version: str
    robot_type: str
    fps: int
    tasks: Sequence[str]
    features: Mapping[str, Any]


def template_values(index: int) -> dict[str, int]:
    return {"episode_chunk": index // CHUNKS_SIZE, "episode_index": index}


def vector_column(values: NDArray[np.float32]) -> pa.Array:
    """Column of lists of fixed size from [L, C]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def automatic_columns(
    frames: NDArray[Any], rate: float, number: int, first_row: int
) -> dict[str, pa.Array]:
    """The automatic columns besides `task_index`, for frames int [F] of an episode."""
    return {
        "timestamp": pa.array((frames / rate).astype(np.float32)),
        FRAME_INDEX: pa.array(frames),
        EPISODE_INDEX: pa.array(np.full(len(frames), number)),
        "index": pa.array(first_row + frames),
    }


def write_table(path: Path, columns: Mapping[str, pa.Array]) -> None:
    with open_atomic(path) as file:
        pq.write_table(pa.table(dict(columns)), file)


def automatic_features() -> dict[str, Any]:
    features: dict[str, Any] = {}
    for name in AUTOMATIC:
        features[name] = feature("float32" if name == "timestamp" else "int64", [1])
    return features


_SPAN = re.compile(r"^([0-9]{1,18}):([0-9]{1,18})\Z")


def split_spans(document: Mapping[str, Any]) -> dict[str, list[range] | None]:
    """Numbers of the episodes of each split of `meta/info.json`; None where they are unknown. A
    split that is not one range of a set that we write has several, separated by commas.
    """
    splits = document.get("splits")
    if not isinstance(splits, Mapping):
        return {}
    has_unit = document.get("split_unit", "episode") in ("episode", "episodes")
    spans: dict[str, list[range] | None] = {}
    for name, text in splits.items():
        spans[str(name)] = _ranges(str(text)) if has_unit else None
    return spans


def _ranges(text: str) -> list[range] | None:
    """Ranges of a text such as `0:3,7:9`; None if it is another one."""
    spans: list[range] = []
    for part in text.split(","):
        match = _SPAN.match(part)
        if match is None or int(match[1]) > int(match[2]):
            return None
        spans.append(range(int(match[1]), int(match[2])))
    return spans


def spans_text(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges, such as `0:3,7:9`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] = number + 1
        else:
            spans.append([number, number + 1])
    return ",".join(f"{start}:{stop}" for start, stop in spans)


PERSISTENT = "language_persistent"
# Styles of texts that hold until the next one of their style. Source: formats/lerobot 8.
PERSISTENT_STYLES = ("subtask", "plan", "memory", "motion")
_PERSISTENT_ROW = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        ("content", pa.string()),
        ("style", pa.string()),
        pa.field("timestamp", pa.float32(), nullable=False),
        ("camera", pa.string()),
        ("tool_calls", pa.list_(pa.string())),
    ]
)


def persistent_texts(episode: Episode, fps: float) -> pa.Array:
    """Column of the texts of an episode, equal in all its rows; null: the text before ends."""
    rows: list[dict[str, Any]] = []

    def add(time: float, style: str, text: str | None) -> None:
        rows.append({"role": "assistant", "content": text, "style": style, "timestamp": time})

    for style in PERSISTENT_STYLES:
        whole: str | None = None
        for text in episode.language.get(style, ())[:1]:
            whole = text
            add(0.0, style, text)
        spans = [span for span in episode.language_spans if span.kind == style]
        spans.sort(key=lambda span: span.first)
        for number, span in enumerate(spans):
            add(span.first / fps, style, span.text)
            stop = span.last + 1
            is_last = number + 1 == len(spans)
            following = episode.num_frames if is_last else spans[number + 1].first
            if stop < following:
                add(stop / fps, style, whole)
    rows.sort(key=lambda row: row["timestamp"])
    row = pa.array([rows], pa.list_(_PERSISTENT_ROW))
    return row.take(np.zeros(episode.num_frames, np.int64))


def feature(dtype: str, shape: list[int], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


def write_meta(output: Path, dataset: SetInfo, episodes: Sequence[EpisodeLine]) -> None:
    """Writes the lists and, last, `meta/info.json` of a set of v2.0 or v2.1."""
    lines: list[dict[str, Any]] = []
    frames = 0
    for episode in episodes:
        frames += episode.length or 0
        line = {"episode_index": episode.number, "tasks": episode.tasks, "length": episode.length}
        lines.append(line)
    write_lines(output / EPISODES_FILE, lines)
    tasks = [{"task_index": number, "task": task} for number, task in enumerate(dataset.tasks)]
    write_lines(output / TASKS_FILE, tasks)
    videos = sum(declared["dtype"] == "video" for declared in dataset.features.values())
    info = {
        "codebase_version": dataset.version,
        "robot_type": dataset.robot_type,
        "total_episodes": len(episodes),
        "total_frames": frames,
        "total_tasks": len(dataset.tasks),
        "total_videos": videos * len(episodes),
        "total_chunks": math.ceil(len(episodes) / CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": dataset.fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": dict(dataset.features),
    }
    write_json(output / INFO_FILE, info, indent=4)


def write_lines(path: Path, documents: Iterable[Mapping[str, Any]]) -> None:
    write_bytes(path, b"".join(map(json_line, documents)))


def json_line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def moments(values: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """`min`, `max`, `mean` and population `std` of each dimension of [L, C], float64 [C]."""
    table = values.astype(np.float64)
    return {
        "min": table.min(axis=0),
        "max": table.max(axis=0),
        "mean": table.mean(axis=0),
        "std": table.std(axis=0),
    }


def table_stats(columns: Mapping[str, pa.Array]) -> dict[str, Stats]:
    """Statistics of each column that holds no images."""
    stats: dict[str, Stats] = {}
    for name, column in columns.items():
        if not pa.types.is_struct(column.type):
            values = np.array(column.to_pylist()).reshape(len(column), -1)
            stats[name] = {key: value.tolist() for key, value in moments(values).items()}
            stats[name]["count"] = [len(values)]
    return stats


def merge_stats(parts: Sequence[Stats]) -> Stats:
    """Merges the statistics of the episodes of a data set, without the count."""
    counts = np.array([part["count"][0] for part in parts], np.float64)[:, None]
    weights = counts / counts.sum()
    means = np.array([part["mean"] for part in parts])
    mean = (weights * means).sum(axis=0)
    variances = np.array([part["std"] for part in parts]) ** 2 + (means - mean) ** 2
    return {
        "mean": mean.tolist(),
        "std": np.sqrt((weights * variances).sum(axis=0)).tolist(),
        "min": np.min([part["min"] for part in parts], axis=0).tolist(),
        "max": np.max([part["max"] for part in parts], axis=0).tolist(),
    }
