"""Numbers and places of the episodes of a written set, which are known once all are written.

`Numbering` takes the receipts of the episodes in order. It numbers episodes, rows and tasks, fills
the final files one after the other, adds up statistics, and plans the final files. Source:
formats/lerobot-writing 2, 3.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot import output as lerobot_output
from vlatool.recordings.lerobot.episodes import TASK_INDEX
from vlatool.recordings.lerobot.set_layout import LeRobotSinkConfig, SetLayout
from vlatool.transforms.statistics import StatisticsAccumulator, from_arrays


@dataclass(frozen=True)
class SetPart:
    """Part of an episode in a final file."""

    path: str  # its file, relative to the output
    sha256: str  # digest of the file
    number: int = 0  # number of the episode
    first_row: int = 0  # number of its first row in the whole set
    # task index in the part to task index in the set; empty: they are equal
    tasks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FilePlan:
    """A final file."""

    path: str  # its path, relative to the output
    kind: Literal["rows", "video"]
    parts: tuple[SetPart, ...]  # its parts, in order
    delay: int = 0  # largest delay of the clips of a video

    @property
    def id(self) -> str:
        """Name in the journal, which is a valid file name."""
        return hashlib.sha256(self.path.encode()).hexdigest()[:32]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


@dataclass
class Rolling:
    """Numbers of chunk and file, of files that are filled one after the other. Source:
    formats/lerobot-writing 2.
    """

    limit: int
    chunks_size: int
    size: int = 0
    position: int = 0
    kind: Any = None
    is_started: bool = False

    def place(self, size: int, kind: Any = None) -> tuple[int, int, bool]:
        """Chunk and file of the next part, and True if it is the first one in the file."""
        is_full = self.size + size >= self.limit or kind != self.kind
        if self.is_started and is_full:
            self.position = self.position + 1
            self.size = 0
        is_first = not self.is_started or self.size == 0
        self.size = self.size + size
        self.kind = kind
        self.is_started = True
        chunk, number = divmod(self.position, self.chunks_size)
        return chunk, number, is_first


# Sections of a camera that describe its video; v2.0 has the second name.
_VIDEO_KEYS = ("info", "video_info")


class Numbering:
    """Collects the receipts of the episodes, in order, and plans the final files."""

    def __init__(
        self,
        config: LeRobotSinkConfig,
        layout: SetLayout,
        task_tables: Sequence[Mapping[int, str]],
        *,
        has_own_files: bool = False,
    ) -> None:
        """`has_own_files`: no two episodes are in one file."""
        self.episodes = 0
        self.frames = 0  # number of rows of all episodes
        self._config = config
        self._layout = layout
        self._task_numbers: dict[str, int] = {}
        for table in task_tables:
            for _, text in sorted(table.items()):
                self._task_numbers.setdefault(text, len(self._task_numbers))
        self._columns = StatisticsAccumulator()
        self._automatic = StatisticsAccumulator()
        self._images: dict[str, list[Array]] = {}
        self._cameras: dict[str, tuple[str, dict[str, Any]]] = {}
        self._rows: dict[str, list[SetPart]] = {}
        self._videos: dict[str, list[SetPart]] = {}
        self._delays: dict[str, int] = {}
        chunks = config.chunks_size
        unit = 0 if has_own_files else lerobot_output.MEGABYTE
        self._data_files = Rolling(config.data_files_size_in_mb * unit, chunks)
        self._video_files: dict[str, Rolling] = {}
        for camera in layout.camera_features:
            self._video_files[camera] = Rolling(config.video_files_size_in_mb * unit, chunks)
        self._frames_in_file: dict[str, int] = {}

    @property
    def tasks(self) -> list[str]:
        """Sentences by task index."""
        return list(self._task_numbers)

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Names of all columns of the data files, in order."""
        return tuple(name for name in self._layout.features if name not in self._layout.videos)

    def add(self, receipt: Receipt) -> lerobot_output.WrittenEpisode | None:
        """The episode with its number; None for an episode that was dropped."""
        if not receipt.files:
            return None
        number = self.episodes
        first_row = self.frames
        length = receipt.facts["rows"]
        self.episodes += 1
        self.frames += length

        numbers: dict[int, int] = {}  # task index in the part to task index in the set
        for index, text in receipt.facts["tasks"].items():
            known = self._task_numbers.setdefault(text, len(self._task_numbers))
            numbers[int(index)] = known
        changed: tuple[tuple[int, int], ...] = ()
        if any(index != known for index, known in numbers.items()):
            changed = tuple(numbers.items())

        table, *videos = receipt.files
        chunk, position, _ = self._data_files.place(table.bytes)
        values = self._template(number, chunk, position)
        path = lerobot_output.data_path(self._config.layout_version, values)
        part = SetPart(table.path, table.sha256, number, first_row, changed)
        self._rows.setdefault(path, []).append(part)
        clips = self._add_videos(receipt, videos, number, length)

        row_tasks: list[int] = receipt.arrays[TASK_INDEX].tolist()
        sentences: list[str] = receipt.facts["listed"]
        if not sentences:
            sentences = [receipt.facts["tasks"][str(index)] for index in dict.fromkeys(row_tasks)]
        rows = np.array([numbers[index] for index in row_tasks])
        return lerobot_output.WrittenEpisode(
            number,
            sentences,
            length,
            first_row,
            self._statistics(receipt, number, first_row, rows),
            (chunk, position),
            clips,
        )

    def _add_videos(
        self, receipt: Receipt, videos: Sequence[FileEntry], number: int, length: int
    ) -> dict[str, tuple[int, int, int]]:
        """(chunk, file, first frame) of the clip of each camera."""
        clips: dict[str, tuple[int, int, int]] = {}
        remaining = iter(videos)
        for camera, facts in receipt.facts["cameras"].items():
            kind = facts["kind"]
            self._check_size(camera, receipt.item, kind)
            if camera not in self._layout.videos:
                continue
            entry = next(remaining)
            chunk, position, is_first = self._video_files[camera].place(entry.bytes, kind)
            values = self._template(number, chunk, position)
            path = lerobot_output.video_path(self._config.layout_version, camera, values)
            start = 0 if is_first else self._frames_in_file[camera]
            self._frames_in_file[camera] = start + length
            self._videos.setdefault(path, []).append(SetPart(entry.path, entry.sha256))
            self._delays[path] = max(self._delays.get(path, 0), facts["delay"])
            clips[camera] = (chunk, position, start)
        return clips

    def _check_size(self, camera: str, item: str, kind: Mapping[str, Any]) -> None:
        """Raises DataError unless the images of a camera have the size of the first episode."""
        first, known = self._cameras.setdefault(camera, (item, dict(kind)))
        size = f"{kind['width']}x{kind['height']}"
        first_size = f"{known['width']}x{known['height']}"
        if size != first_size:
            raise DataError(
                f"camera {camera!r} has images of {size} in {item} and of {first_size} in {first}; "
                "LeRobot needs one size per camera",
                hint="make them equal with --resize-images-size WIDTH,HEIGHT, or leave the camera "
                "out with --camera-names",
                code="data.mismatch",
                details={"camera": camera, "episode": item},
            )

    def _template(self, number: int, chunk: int, position: int) -> dict[str, int]:
        """Values for the template of the path of a file."""
        if self._config.layout_version == "v3.0":
            return {"chunk_index": chunk, "file_index": position}
        return {"episode_chunk": number // self._config.chunks_size, "episode_index": number}

    def _statistics(
        self, receipt: Receipt, number: int, first_row: int, tasks: Array
    ) -> dict[str, lerobot_output.Stats]:
        """Adds the statistics of an episode to the data set. `tasks`: index of each row."""
        stats: dict[str, lerobot_output.Stats] = {}
        if self._layout.widths:
            part = from_arrays(receipt.arrays)
            self._columns.add(part)
            stats |= lerobot_output.column_entries(part, self._layout.widths)
        for camera, entry in receipt.facts["stats"].items():
            self._images.setdefault(camera, []).append(lerobot_output.entry_values(entry))
            stats[camera] = entry
        frames = np.arange(len(tasks))
        times = (frames / float(self._layout.rate)).astype(np.float32)
        numbers = np.full(len(tasks), number)
        automatic = lerobot_output.rows_statistics(
            [times, frames, numbers, first_row + frames, tasks]
        )
        self._automatic.add(automatic)
        widths = dict.fromkeys(lerobot_layout.AUTOMATIC, 1)
        stats |= lerobot_output.column_entries(automatic, widths)
        return stats

    def take_plans(self) -> list[FilePlan]:
        """The final files of the episodes since the last call: data, then videos."""
        plans: list[FilePlan] = []
        for path, parts in self._rows.items():
            plans.append(FilePlan(path, "rows", tuple(parts)))
        for path, parts in self._videos.items():
            plans.append(FilePlan(path, "video", tuple(parts), self._delays[path]))
        self._rows = {}
        self._videos = {}
        return plans

    def set_statistics(self) -> dict[str, lerobot_output.Stats]:
        """Statistics of the whole set by feature: columns from all rows, cameras merged."""
        stats: dict[str, lerobot_output.Stats] = {}
        columns = self._columns.total()
        if columns is not None:
            stats |= lerobot_output.column_entries(columns, self._layout.widths)
        for camera, parts in self._images.items():
            stats[camera] = lerobot_output.merged_images(parts)
        automatic = self._automatic.total()
        if automatic is not None:
            widths = dict.fromkeys(lerobot_layout.AUTOMATIC, 1)
            stats |= lerobot_output.column_entries(automatic, widths)
        return stats

    def features(self) -> dict[str, Any]:
        """Declarations for `meta/info.json`, with what is known of the cameras."""
        features = {name: dict(declared) for name, declared in self._layout.features.items()}
        for camera, (_, facts) in self._cameras.items():
            declared = features[camera]
            sections = [declared.pop(key, None) for key in _VIDEO_KEYS]
            is_depth = camera in self._layout.depth
            height = facts["height"]
            width = facts["width"]
            channels = 1 if is_depth else 3
            declared["dtype"] = "image"
            declared["shape"] = [height, width, channels]
            declared["names"] = ["height", "width", "channels"]
            if camera not in self._layout.videos:
                continue
            info: dict[str, Any] = {}
            for section in sections:
                if isinstance(section, Mapping):
                    info = dict(section)
                    break
            info |= {
                "video.fps": float(self._layout.rate),
                "video.height": height,
                "video.width": width,
                "video.channels": channels,
                "video.codec": facts["codec"],
                "video.pix_fmt": facts["pixel_format"],
                "video.is_depth_map": is_depth,
                "has_audio": False,
            }
            declared["dtype"] = "video"
            declared["info"] = info
        return features
