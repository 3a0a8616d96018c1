"""Numbers and places of the episodes of a LeRobot set, given when all episodes are known.

Source: formats/lerobot 9; formats/lerobot-writing 2, 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.artifacts.lerobot.format import AUTOMATIC
from vlatool.artifacts.lerobot.output import (
    MEGABYTE,
    WrittenEpisode,
    data_path,
    video_path,
)
from vlatool.artifacts.lerobot.statistics import (
    Stats,
    column_entries,
    entry_values,
    merged_images,
    rows_statistics,
)
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt
from vlatool.sinks.lerobot.config import LeRobotSinkConfig
from vlatool.sinks.lerobot.episodes import TASK_INDEX
from vlatool.sinks.lerobot.features import SetLayout
from vlatool.sinks.lerobot.files import FilePlan, Part, Rolling
from vlatool.transforms.statistics import StatisticsAccumulator, from_arrays

_SIZE = ("height", "width")
# Sections of a camera that describe its video; v2.0 has the second name.
_VIDEO_KEYS = ("info", "video_info")


class Numbering:
    """Collects the receipts of the episodes, in order, and plans the final files.

    Attributes:
        episodes: Number of episodes.
        tasks: Sentences by task index.
        frames: Number of rows of all episodes.
    """

    def __init__(
        self,
        config: LeRobotSinkConfig,
        layout: SetLayout,
        task_tables: Sequence[Mapping[int, str]],
    ) -> None:
        self.episodes = 0
        self.frames = 0
        self._config, self._layout = config, layout
        self._tasks = _first_tasks(task_tables)
        self._columns, self._automatic = StatisticsAccumulator(), StatisticsAccumulator()
        self._images: dict[str, list[Array]] = {}
        self._cameras: dict[str, tuple[str, dict[str, Any]]] = {}
        self._rows: dict[str, list[Part]] = {}
        self._videos: dict[str, list[Part]] = {}
        self._delays: dict[str, int] = {}
        chunks = config.chunks_size
        self._data_files = Rolling(config.data_files_size_in_mb * MEGABYTE, chunks)
        self._video_files = {
            camera: Rolling(config.video_files_size_in_mb * MEGABYTE, chunks)
            for camera in layout.camera_features
        }
        self._frames_in_file: dict[str, int] = {}

    @property
    def tasks(self) -> list[str]:
        """Sentences by task index."""
        return [*self._tasks]

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Names of all columns of the data files, in order."""
        return tuple(name for name in self._layout.features if name not in self._layout.videos)

    def add(self, receipt: Receipt) -> WrittenEpisode | None:
        """The episode with its number; None for an episode that was dropped.

        Raises:
            DataError: Its images differ in size from those of earlier episodes.
        """
        if not receipt.files:
            return None
        number, first_row, length = self.episodes, self.frames, receipt.facts["rows"]
        self.episodes, self.frames = number + 1, first_row + length
        tasks = {int(index): text for index, text in receipt.facts["tasks"].items()}
        numbers = {index: self._task_number(text) for index, text in tasks.items()}
        is_same = all(index == number for index, number in numbers.items())
        table, *videos = receipt.files
        data = self._add_rows(table, number, first_row, () if is_same else tuple(numbers.items()))
        clips = self._add_videos(receipt, videos, number, length)
        rows = np.array([numbers[index] for index in receipt.arrays[TASK_INDEX].tolist()])
        distinct = dict.fromkeys(tasks[index] for index in receipt.arrays[TASK_INDEX].tolist())
        return WrittenEpisode(
            number,
            receipt.facts["listed"] or [*distinct],
            length,
            first_row,
            self._statistics(receipt, number, first_row, rows),
            data,
            clips,
        )

    def plans(self) -> list[FilePlan]:
        """All final files: data, then videos."""
        rows = [FilePlan(path, "rows", tuple(parts)) for path, parts in self._rows.items()]
        videos = [
            FilePlan(path, "video", tuple(parts), self._delays[path])
            for path, parts in self._videos.items()
        ]
        return [*rows, *videos]

    def features(self) -> dict[str, Any]:
        """Declarations for `meta/info.json`, with what is known of the cameras."""
        features = {name: dict(declared) for name, declared in self._layout.features.items()}
        for camera, (_, facts) in self._cameras.items():
            declared = features[camera].items()
            others = {key: value for key, value in declared if key not in _VIDEO_KEYS}
            features[camera] = others | self._camera_feature(camera, facts)
        return features

    def set_statistics(self) -> dict[str, Stats]:
        """Statistics of the whole set by feature: columns from all rows, cameras merged."""
        stats: dict[str, Stats] = {}
        columns, automatic = self._columns.total(), self._automatic.total()
        if columns is not None:
            stats |= column_entries(columns, self._layout.widths)
        stats |= {camera: merged_images(parts) for camera, parts in self._images.items()}
        if automatic is not None:
            stats |= column_entries(automatic, dict.fromkeys(AUTOMATIC, 1))
        return stats

    def _task_number(self, text: str) -> int:
        return self._tasks.setdefault(text, len(self._tasks))

    def _add_rows(
        self, table: FileEntry, number: int, first_row: int, tasks: tuple[tuple[int, int], ...]
    ) -> tuple[int, int]:
        """Chunk and file of the rows of an episode."""
        version = self._config.layout_version
        chunk, position, _ = self._data_files.place(table.bytes)
        path = data_path(version, self._template(number, chunk, position))
        part = Part(table.path, table.sha256, number, first_row, tasks)
        self._rows.setdefault(path, []).append(part)
        return chunk, position

    def _add_videos(
        self, receipt: Receipt, videos: Sequence[FileEntry], number: int, length: int
    ) -> dict[str, tuple[int, int, int]]:
        """(chunk, file, first frame) of the clip of each camera."""
        clips: dict[str, tuple[int, int, int]] = {}
        remaining = iter(videos)
        for camera, facts in receipt.facts["cameras"].items():
            self._check_camera(camera, receipt.item, facts["kind"])
            if camera not in self._layout.videos:
                continue
            entry = next(remaining)
            chunk, position, is_first = self._video_files[camera].place(entry.bytes, facts["kind"])
            values = self._template(number, chunk, position)
            path = video_path(self._config.layout_version, camera, values)
            start = 0 if is_first else self._frames_in_file[camera]
            self._frames_in_file[camera] = start + length
            self._videos.setdefault(path, []).append(Part(entry.path, entry.sha256))
            self._delays[path] = max(self._delays.get(path, 0), facts["delay"])
            clips[camera] = chunk, position, start
        return clips

    def _template(self, number: int, chunk: int, position: int) -> dict[str, int]:
        if self._config.layout_version == "v3.0":
            return {"chunk_index": chunk, "file_index": position}
        return {"episode_chunk": number // self._config.chunks_size, "episode_index": number}

    def _check_camera(self, camera: str, item: str, kind: Mapping[str, Any]) -> None:
        first, facts = self._cameras.setdefault(camera, (item, dict(kind)))
        if any(facts[key] != kind[key] for key in _SIZE):
            sizes = [f"{value['width']}x{value['height']}" for value in (kind, facts)]
            raise DataError(
                f"camera {camera!r} is {sizes[0]} in {item}, {sizes[1]} in {first}; a data set has "
                "one size per camera",
                hint="write them to separate outputs, or leave the camera out with --camera-names",
                code="data.cannot_merge",
                details={"camera": camera, "episode": item},
            )

    def _camera_feature(self, camera: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        declared = self._layout.features[camera]
        height, width = facts["height"], facts["width"]
        known = next(
            (declared[key] for key in _VIDEO_KEYS if isinstance(declared.get(key), Mapping)),
            {},
        )
        is_depth = camera in self._layout.depth
        channels = 1 if is_depth else 3
        shape = {"shape": [height, width, channels], "names": ["height", "width", "channels"]}
        if camera not in self._layout.videos:
            return {"dtype": "image", **shape}
        info = {
            **known,
            "video.fps": float(self._layout.rate),
            "video.height": height,
            "video.width": width,
            "video.channels": channels,
            "video.codec": facts["codec"],
            "video.pix_fmt": facts["pixel_format"],
            "video.is_depth_map": is_depth,
            "has_audio": False,
        }
        return {"dtype": "video", **shape, "info": info}

    def _statistics(
        self, receipt: Receipt, number: int, first_row: int, tasks: Any
    ) -> dict[str, Stats]:
        """Statistics of an episode; adds them to those of the set."""
        stats: dict[str, Stats] = {}
        if self._layout.widths:
            part = from_arrays(receipt.arrays)
            self._columns.add(part)
            stats |= column_entries(part, self._layout.widths)
        for camera, entry in receipt.facts["stats"].items():
            self._images.setdefault(camera, []).append(entry_values(entry))
            stats[camera] = entry
        frames = np.arange(len(tasks))
        times = (frames / float(self._layout.rate)).astype(np.float32)
        numbers = np.full(len(tasks), number)
        automatic = rows_statistics([times, frames, numbers, first_row + frames, tasks])
        self._automatic.add(automatic)
        return stats | dict(column_entries(automatic, dict.fromkeys(AUTOMATIC, 1)))


def _first_tasks(tables: Sequence[Mapping[int, str]]) -> dict[str, int]:
    """Sentence to task index of the sources; that of a single one keeps its order."""
    tasks: dict[str, int] = {}
    for table in tables:
        for _, text in sorted(table.items()):
            tasks.setdefault(text, len(tasks))
    return tasks
