"""Writing of LeRobot v3.0 and v2.1: statistics, names and types of columns, and the meta files.

Statistics are made of all rows of columns, and of sampled images of cameras. Legend of shapes: F
frames, C dimensions, N images. Source: formats/lerobot 2, 3, 5, 6, 9.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.episode import Array, UInt8Array
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.storage.atomic import open_atomic, write_json
from vlatool.transforms import statistics
from vlatool.transforms.neighbors import spread

Stats = dict[str, Any]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_MOMENTS = ("min", "max", "mean", "std")
_IMAGE_ROWS = (*_MOMENTS, *QUANTILES, "count")
_MOST_IMAGES = 100
_WIDEST = 2**20  # numbers of a row
# Larger images are thinned to about this many pixels per side. Source: formats/lerobot 9
_THINNED_SIDE = 150
_THIN_FROM = 300


def rows_statistics(columns: Sequence[Array]) -> statistics.WindowStatistics:
    """Partial statistics of columns [F, C], concatenated; rows that are not finite do not count."""
    return statistics.window_statistics(
        [values[:, None] for values in columns], np.ones((len(columns[0]), 1), bool)
    )


def column_entries(
    stats: statistics.WindowStatistics, widths: Mapping[str, int]
) -> Iterator[tuple[str, Stats]]:
    """(column, statistics) of each column; `widths` maps columns to dimensions, in order."""
    start = 0
    for name, width in widths.items():
        yield name, _entry(stats.dimensions(start, start + width))
        start += width


def _entry(stats: statistics.WindowStatistics) -> Stats:
    count = stats.count[0]
    variance = stats.m2[0] / np.maximum(count, 1)
    values = {
        "min": stats.minimum[0],
        "max": stats.maximum[0],
        "mean": stats.mean[0],
        "std": np.sqrt(variance),
    }
    values |= {name: statistics.quantile(stats.digest, share) for name, share in QUANTILES.items()}
    entry: Stats = {name: statistics.finite_lists(value) for name, value in values.items()}
    return {**entry, "count": [int(count.max(initial=0))]}


def sampled_frames(num_frames: int) -> list[int]:
    """Evenly spaced frames, at most 100, of which camera statistics are made."""
    return spread(num_frames, _MOST_IMAGES)


class ImageStatistics:
    """Accumulator of the values of sampled images of a camera, per channel, exact."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0

    def add(self, image: UInt8Array) -> None:
        """Adds an image [H, W, 3]."""
        height, width = image.shape[:2]
        step = 1 if max(height, width) < _THIN_FROM else max(height, width) // _THINNED_SIDE
        thinned = image[::step, ::step]
        for channel in range(3):
            self._counts[channel] += np.bincount(thinned[..., channel].ravel(), minlength=256)
        self._images += 1

    def entry(self) -> Stats:
        """Statistics in 0..1, with the shape (3, 1, 1) of the format."""
        levels = np.arange(256) / 255.0
        shares = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = shares @ levels
        deviations = (levels - mean[:, None]) ** 2
        present = self._counts > 0
        values = {
            "min": levels[present.argmax(axis=1)],
            "max": levels[255 - present[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt((shares * deviations).sum(axis=1)),
        }
        below = np.cumsum(shares, axis=1)
        for name, share in QUANTILES.items():
            values[name] = levels[(below < share - 1e-12).sum(axis=1)]
        return _camera_stats(values, self._images)


def _camera_stats(values: Mapping[str, Array], images: int) -> Stats:
    """Statistics of three channels with the shape (3, 1, 1) of the format."""
    entry: Stats = {name: value.reshape(3, 1, 1).tolist() for name, value in values.items()}
    entry["count"] = [images]
    return entry


def camera_entry(published: Mapping[str, Any]) -> Stats | None:
    """Published statistics of a camera in the form of the format; None if they are incomplete.
    Quantiles are optional; those that are not finite numbers of three channels are left out.
    """
    count = _numbers(published.get("count"))
    if count is None or count.size != 1 or not count[0] > 0:
        return None
    values: dict[str, Array] = {}
    for name in (*_MOMENTS, *QUANTILES):
        numbers = _numbers(published.get(name))
        if numbers is not None and numbers.size == 3:
            values[name] = numbers
        elif name in _MOMENTS:
            return None
    return _camera_stats(values, int(count[0]))


def _numbers(value: Any) -> Array | None:
    """Finite numbers as float64 [N]; None if there are others."""
    try:
        numbers = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def entry_values(entry: Stats) -> Array:
    """Statistics of a camera as float64 [10, 3], which is small; NaN for those that it lacks."""
    rows = [np.ravel(entry.get(name, np.nan)) for name in _IMAGE_ROWS]
    return np.array([np.broadcast_to(row, 3) for row in rows], np.float64)


def merged_images(parts: Sequence[Array]) -> Stats:
    """Merges the statistics of the episodes of a camera, as `entry_values` returns them.

    Quantiles are the means over the episodes, weighted by their images; left out where an
    episode has none.
    """
    columns = np.ascontiguousarray(np.stack(parts, axis=1))
    values = dict(zip(_IMAGE_ROWS, columns, strict=True))
    counts = values["count"][:, 0]
    weights = counts / counts.sum()
    mean = weights @ values["mean"]
    variance = weights @ (values["std"] ** 2 + (values["mean"] - mean) ** 2)
    merged = {
        "min": values["min"].min(axis=0),
        "max": values["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
    }
    for name in QUANTILES:
        if not np.isnan(values[name]).any():
            merged[name] = weights @ values[name]
    return _camera_stats(merged, int(counts.sum()))


# Parts of single episodes, which the final files are made of.
PARTS_FOLDER = "episodes"
PART_FILES = (f"{PARTS_FOLDER}/*.parquet", f"{PARTS_FOLDER}/*.mp4")
CLOSING_FILES = (
    lerobot_layout.INFO_FILE,
    lerobot_layout.STATS_FILE,
    lerobot_layout.TASKS_FILE,
    lerobot_layout.TASKS_TABLE,
    lerobot_layout.EPISODES_FILE,
    lerobot_layout.EPISODE_STATS_FILE,
    lerobot_layout.MODALITY_FILE,
)
WRITTEN_FILES = (
    "data/chunk-*/*.parquet",
    "videos/chunk-*/*/*.mp4",
    "videos/*/chunk-*/*.mp4",
    lerobot_layout.EPISODES_TABLES,
    "meta/*s.parquet",
    "meta/*s.jsonl",
    *CLOSING_FILES,
)
MEGABYTE = 1 << 20
IMAGE_CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_EPISODES_TABLE = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_STATS = ("min", "max", "mean", "std", "count")
# Bytes of rows as JSON that are in memory as Python objects, which are several times as large.
_PART_BYTES = 4 * MEGABYTE


def part_table(episode: str) -> str:
    """Name of the file with the rows of an episode before it has a number."""
    return f"{PARTS_FOLDER}/{episode}.parquet"


def part_video(episode: str, camera: int) -> str:
    """Name of the video of an episode before it has a number; cameras are counted."""
    return f"{PARTS_FOLDER}/{episode}.{camera}.mp4"


def data_path(version: lerobot_layout.Version, values: Mapping[str, int]) -> str:
    """Path of a data file; `values` fill the template."""
    template = lerobot_layout.SHARED_DATA_PATH if version == "v3.0" else lerobot_layout.DATA_PATH
    return template.format(**values)


def video_path(version: lerobot_layout.Version, camera: str, values: Mapping[str, int]) -> str:
    """Path of a video; `values` fill the template."""
    template = lerobot_layout.SHARED_VIDEO_PATH if version == "v3.0" else lerobot_layout.VIDEO_PATH
    return template.format(video_key=camera, **values)


def arrow_type(declared: Mapping[str, Any]) -> pa.DataType | None:
    """Type of the column of a feature; None if its declaration does not say it."""
    dtype = str(declared.get("dtype"))
    if dtype == "image":
        return IMAGE_CELL
    if dtype == "string":
        return pa.string()
    try:
        value = pa.bool_() if dtype == "bool" else pa.from_numpy_dtype(np.dtype(dtype))
    except (TypeError, pa.ArrowNotImplementedError):
        return None
    shape = declared.get("shape")
    if shape in ([1], [], (1,), ()):  # one plain value per row
        return value
    if not isinstance(shape, list) or len(shape) != 1:
        return None
    size = shape[0]
    return pa.list_(value, size) if isinstance(size, int) and 0 < size <= _WIDEST else None


@dataclass(frozen=True)
class WrittenEpisode:
    """Entry of the list of episodes of a written set."""

    number: int
    tasks: Sequence[str]  # its sentences
    length: int  # number of rows
    first_row: int  # number of its first row in the whole set
    stats: Mapping[str, Stats]  # statistics by feature
    data: tuple[int, int] = (0, 0)  # numbers of chunk and file of its rows (v3.0)
    # map from camera to (chunk, file, first frame) of its clip (v3.0)
    videos: Mapping[str, tuple[int, int, int]] = field(
        default_factory=dict[str, tuple[int, int, int]]
    )


def write_texts(
    output: Path, version: lerobot_layout.Version, name: str, texts: Mapping[int, str]
) -> str:
    """Writes the table of the texts that numbers `NAME_index` stand for, such as `meta/tasks`;
    returns the name of the file.
    """
    key = f"{name}_index"
    if version == "v2.1":
        path = f"meta/{name}s.jsonl"
        lines = [{key: number, name: text} for number, text in texts.items()]
        lerobot_layout.write_lines(output / path, lines)
        return path
    path = f"meta/{name}s.parquet"
    table = pa.table({key: pa.array(texts.keys(), pa.int64()), name: [*texts.values()]})
    # The official loader reads the file with pandas and takes the index for the sentences.
    columns = [_pandas_column(key, "int64", "int64"), _pandas_column(name, "unicode", "object")]
    described = {"index_columns": [name], "column_indexes": [], "columns": columns}
    table = table.replace_schema_metadata({"pandas": json.dumps(described)})
    with open_atomic(output / path) as file:
        pq.write_table(table, file)
    return path


def _pandas_column(name: str, kind: str, numpy_type: str) -> dict[str, Any]:
    return {
        "name": name,
        "field_name": name,
        "pandas_type": kind,
        "numpy_type": numpy_type,
        "metadata": None,
    }


@dataclass
class EpisodeTables:
    """The list of episodes of a set with their statistics, in the tables of v3.0."""

    output: Path
    fps: float  # frames per second
    limit: int  # bytes of a table as JSON, after which the next file begins
    names: list[str] = field(default_factory=list[str])  # of the files
    # Parts of the last file, and their bytes as JSON.
    _parts: list[pa.Table] = field(default_factory=list[pa.Table])
    _size: int = 0

    def write(self, episodes: Iterable[WrittenEpisode]) -> list[str]:
        """Writes the files with more episodes; returns the names of all files. Rows become columns,
        which are small, part by part.
        """
        rows: list[dict[str, Any]] = []
        part_size = 0
        is_ended = not self._parts  # the next row begins a file
        for episode in episodes:
            if is_ended:
                self.names.append(_episodes_path(len(self.names)))
            row = _episode_row(episode, self.fps)
            rows.append(row)
            row_size = len(json.dumps(row))
            self._size += row_size
            part_size += row_size
            is_ended = self._size >= self.limit
            if part_size >= _PART_BYTES or is_ended:
                self._parts.append(_table(rows))
                rows = []
                part_size = 0
            if is_ended:
                self._write_file()
                self._parts = []
                self._size = 0
        if rows:
            self._parts.append(_table(rows))
        if self._parts:
            self._write_file()
        return self.names

    def _write_file(self) -> None:
        table = pa.concat_tables(self._parts, promote_options="default").combine_chunks()
        self._parts = [table]
        number = len(self.names) - 1
        for name, value in _file_numbers(number).items():
            column = pa.array(np.full(len(table), value))
            table = table.append_column(f"meta/episodes/{name}", column)
        with open_atomic(self.output / self.names[number]) as file:
            pq.write_table(table, file)


def _file_numbers(number: int) -> dict[str, int]:
    chunk, file_number = divmod(number, lerobot_layout.CHUNKS_SIZE)
    return {"chunk_index": chunk, "file_index": file_number}


def _episodes_path(number: int) -> str:
    return _EPISODES_TABLE.format(**_file_numbers(number))


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Table of rows; a key that some rows lack is null there."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    """Column of the list of episodes; statistics have one type, even where all are null."""
    if name == "tasks":
        return pa.array(values, pa.list_(pa.string()))
    if not name.startswith("stats/"):
        return pa.array(values)
    dtype = pa.int64() if name.endswith("/count") else pa.float64()
    level = next(value for value in values if value is not None)
    while isinstance(level, list):
        dtype = pa.list_(dtype)
        level = level[0] if level else None
    return pa.array(values, dtype)


def _episode_row(episode: WrittenEpisode, fps: float) -> dict[str, Any]:
    """Row of the table of episodes. Source: formats/lerobot 5."""
    row: dict[str, Any] = {
        "episode_index": episode.number,
        "tasks": [*episode.tasks],
        "length": episode.length,
        "data/chunk_index": episode.data[0],
        "data/file_index": episode.data[1],
        "dataset_from_index": episode.first_row,
        "dataset_to_index": episode.first_row + episode.length,
    }
    for camera, (chunk, number, start) in episode.videos.items():
        row[f"videos/{camera}/chunk_index"] = chunk
        row[f"videos/{camera}/file_index"] = number
        row[f"videos/{camera}/from_timestamp"] = start / fps
        row[f"videos/{camera}/to_timestamp"] = (start + episode.length) / fps
    for feature, entry in episode.stats.items():
        for name, value in entry.items():
            row[f"stats/{feature}/{name}"] = value
    return row


def write_episode_lines(output: Path, episodes: Iterable[WrittenEpisode]) -> list[str]:
    """Writes the list of episodes with their statistics of v2.1; returns the names of the files."""
    stats_path = output / lerobot_layout.EPISODE_STATS_FILE
    list_path = output / lerobot_layout.EPISODES_FILE
    with open_atomic(stats_path) as stats_file, open_atomic(list_path) as list_file:
        for episode in episodes:
            stats: dict[str, Stats] = {}
            for name, entry in episode.stats.items():
                stats[name] = {key: entry[key] for key in _STATS}
            line: dict[str, Any] = {"episode_index": episode.number, "stats": stats}
            stats_file.write(lerobot_layout.json_line(line))
            line = {
                "episode_index": episode.number,
                "tasks": [*episode.tasks],
                "length": episode.length,
            }
            list_file.write(lerobot_layout.json_line(line))
    return [lerobot_layout.EPISODE_STATS_FILE, lerobot_layout.EPISODES_FILE]


@dataclass(frozen=True)
class WrittenSet:
    """Content of `meta/info.json`."""

    version: lerobot_layout.Version  # version of the layout
    fps: float  # frames per second
    robot_type: str | None  # free text; None if unknown
    features: Mapping[str, Any]  # declarations of columns and cameras
    chunks_size: int  # number of files per chunk, or of episodes (v2.1)
    data_mb: int  # size of a data file in MiB (v3.0)
    video_mb: int  # size of a video in MiB (v3.0)
    splits: Mapping[str, Sequence[int]]  # map from split to the numbers of its episodes
    extra: Mapping[str, Any]  # keys without a meaning here that the source has


def write_info(output: Path, dataset: WrittenSet, episodes: int, frames: int, tasks: int) -> None:
    """Writes `meta/info.json`, the last file of a set."""
    cameras = sum(declared["dtype"] == "video" for declared in dataset.features.values())
    if dataset.version == "v3.0":
        data_path = lerobot_layout.SHARED_DATA_PATH
        video_path = lerobot_layout.SHARED_VIDEO_PATH
        sizes: dict[str, Any] = {
            "data_files_size_in_mb": dataset.data_mb,
            "video_files_size_in_mb": dataset.video_mb,
        }
    else:
        data_path = lerobot_layout.DATA_PATH
        video_path = lerobot_layout.VIDEO_PATH
        chunks = math.ceil(episodes / dataset.chunks_size)
        sizes = {"total_videos": cameras * episodes, "total_chunks": chunks}
    splits: dict[str, str] = {}
    for name, numbers in dataset.splits.items():
        splits[name] = lerobot_layout.spans_text(numbers)
    info = {
        "codebase_version": dataset.version,
        "robot_type": dataset.robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": dataset.chunks_size,
        **sizes,
        "fps": int(dataset.fps) if dataset.fps == int(dataset.fps) else dataset.fps,
        "splits": splits,
        "data_path": data_path,
        "video_path": video_path if cameras else None,
        "features": dict(dataset.features),
    }
    for key, value in dataset.extra.items():
        if key not in _REPLACED:
            info.setdefault(key, value)
    write_json(output / lerobot_layout.INFO_FILE, info, indent=4)


# Keys of the other version or of the source, which say nothing about the written set.
_REPLACED = (
    "data_files_size_in_mb",
    "split_unit",
    "total_chunks",
    "total_videos",
    "video_files_size_in_mb",
)


def write_statistics(output: Path, entries: Mapping[str, Stats]) -> str:
    """Writes the statistics of the whole set; returns the name of the file."""
    write_json(output / lerobot_layout.STATS_FILE, dict(entries), indent=4)
    return lerobot_layout.STATS_FILE


def numeric_width(declared: Mapping[str, Any]) -> int | None:
    """Number of values per row of a numeric feature; None for others."""
    dtype = str(declared.get("dtype"))
    shape = declared.get("shape")
    if dtype in ("image", "video", "string", "language") or not isinstance(shape, list):
        return None
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        return None
    return int(np.prod(shape, dtype=np.int64)) if kind in "iufb" else None
