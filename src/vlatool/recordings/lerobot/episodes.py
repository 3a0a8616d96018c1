"""The parts of one episode of a written set: its rows in a table, and a video per camera.

Rows and encoded video of a LeRobot set are copied where they need no change. Images of cameras that
are not stored as videos become a column of the table. Legend of shapes: F frames, C dimensions.
Source: formats/lerobot 4; formats/lerobot-writing 1, 2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.episode import Array, Clip, Episode, EpisodeRef, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, warning
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.journal import Receipt
from vlatool.media.images import decode_rgb
from vlatool.media.video import EncodedClip, copy_clip, encode_video, encoded_clip
from vlatool.recordings import writing
from vlatool.recordings.lerobot import output as lerobot_output
from vlatool.recordings.lerobot.folder import EpisodeFiles, known_texts
from vlatool.recordings.lerobot.layout import (
    FRAME_INDEX,
    PERSISTENT,
    PERSISTENT_STYLES,
    persistent_texts,
    vector_column,
)
from vlatool.recordings.lerobot.set_layout import LeRobotSinkConfig, SetLayout
from vlatool.recordings.lerobot.tables import read_rows
from vlatool.storage.atomic import open_atomic, write_bytes
from vlatool.transforms.geometry import ResizedFrames
from vlatool.transforms.statistics import to_arrays

LEROBOT_SINK = FindingCodes(
    "lerobot_sink",
    left_out=warning(
        "Depth, labels, calibration or texts of frames that the layout lacks are left out.",
        "none if the policy does not use them; else write shards with --sink lbm",
    ),
)
TASK_INDEX = "task_index"
_ORIGINAL = "original"
_ANNOTATION = "annotation."
# Bytes of images after which a row group ends; a reader holds one in memory.
_GROUP_BYTES = 64 << 20


@dataclass
class _Parts:
    """Written parts of one episode."""

    files: list[FileEntry] = field(default_factory=list[FileEntry])  # files of the episode
    # map from camera to its column of images
    images: dict[str, Iterator[bytes]] = field(default_factory=dict[str, Iterator[bytes]])
    stats: dict[str, lerobot_output.Stats] = field(
        default_factory=dict[str, lerobot_output.Stats]
    )  # statistics by camera
    # facts on each camera
    cameras: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


@dataclass(frozen=True)
class LerobotEpisodeWriter:
    """Writes the parts of an episode; picklable."""

    output: Path  # the output folder
    config: LeRobotSinkConfig  # options of the sink
    layout: SetLayout  # columns and cameras of the set

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes the parts; the receipt has their facts and statistics."""
        layout = self.layout
        recording = ref.extras.get("recording")
        if layout.sources or not isinstance(recording, EpisodeFiles):
            recording = None
        if recording is not None:
            table, tasks = _copied_rows(recording, episode, layout)
            listed = list(recording.tasks)
        else:
            table = _joined_rows(episode, layout)
            listed, indices = _tasks(episode)
            tasks = dict(enumerate(listed))
            table = table.append_column(TASK_INDEX, pa.array(indices, pa.int64()))

        parts = _Parts()
        for name, column in layout.cameras.items():
            if name not in episode.cameras:
                raise _camera_error(ref, name, "has no images in this episode")
            source = self._resized(episode.cameras[name])
            if len(source) < episode.num_frames:
                problem = f"has {len(source)} images for {episode.num_frames} frames"
                raise _camera_error(ref, name, problem)
            if column in layout.videos:
                self._write_video(ref, column, source, episode.num_frames, recording, parts)
            else:
                parts.images[column] = _stored_images(name, source, episode, column, parts)
        for column in layout.depth:
            if column in layout.videos:  # else its column is copied with the others
                assert recording is not None, "depth is of a LeRobot set"
                clip = self._copied(recording.clips.get(column), episode.num_frames)
                if clip is None:  # depth is never encoded anew
                    raise _camera_error(ref, column, "has no depth video that can be copied")
                self._store_clip(ref, column, clip, parts, is_copied=True)
        self._write_rows(ref, table, parts)

        columns = [_numbers(table.column(name), width) for name, width in layout.widths.items()]
        arrays = {TASK_INDEX: table.column(TASK_INDEX).to_numpy()}
        if columns:
            arrays |= to_arrays(lerobot_output.rows_statistics(columns))
        return Receipt(
            ref.id,
            counts={
                "frames": episode.num_frames,
                "samples": episode.num_frames,
                "copied_clips": sum(facts.get("copied", False) for facts in parts.cameras.values()),
            },
            files=tuple(parts.files),
            findings=tuple(_left_out(episode, layout, is_copied=recording is not None)),
            facts={
                "rows": len(table),
                "tasks": {str(index): text for index, text in tasks.items()},
                "listed": listed,
                "cameras": parts.cameras,
                "stats": parts.stats,
            },
            arrays=arrays,
        )

    def _resized(self, source: FrameSource) -> FrameSource:
        config = self.config
        size = writing.height_and_width(config.resize_images_size)
        if size is None or source.size == size:
            return source
        method = config.image_resizing_method
        return ResizedFrames(source, size, method, config.image_resizing_filter)

    def _write_video(
        self,
        ref: EpisodeRef,
        column: str,
        source: FrameSource,
        count: int,  # frames
        recording: EpisodeFiles | None,
        parts: _Parts,
    ) -> None:
        """Writes the video of a camera, copied if it can be."""
        copied = self._copied(source.clip, count) if self.config.copy_videos else None
        if copied is not None:
            published = recording.statistics() if recording is not None else {}
            stats = lerobot_output.camera_entry(published.get(column, {}))
            parts.stats[column] = stats or _sampled(column, source, count)
            self._store_clip(ref, column, copied, parts, is_copied=True)
            return
        sampled = lerobot_output.ImageStatistics()
        images = _sampling(_images(column, source, count), sampled, count)
        clip = encode_video(
            images,
            self.layout.rate,
            crf=self.config.video_crf,
            preset=self.config.video_preset,
            keyframe_interval=self.config.keyframe_interval,
        )
        encoded = encoded_clip(clip)
        parts.stats[column] = sampled.entry()
        self._store_clip(ref, column, encoded, parts, is_copied=False)

    def _copied(self, clip: Clip | None, count: int) -> EncodedClip | None:
        """The encoded video of a clip; None if it has to be encoded anew."""
        if clip is None:
            return None
        try:
            return copy_clip(clip, count, self.layout.rate)
        except av.error.FFmpegError:
            return None  # decoding reports it with the frame

    def _store_clip(
        self, ref: EpisodeRef, feature: str, clip: EncodedClip, parts: _Parts, *, is_copied: bool
    ) -> None:
        name = lerobot_output.part_video(ref.id, self.layout.camera_features.index(feature))
        write_bytes(self.output / name, clip.data)
        parts.files.append(file_entry(self.output, name))
        facts = {"kind": asdict(clip.kind), "delay": clip.delay, "copied": is_copied}
        parts.cameras[feature] = facts

    def _write_rows(self, ref: EpisodeRef, table: pa.Table, parts: _Parts) -> None:
        name = lerobot_output.part_table(ref.id)
        with open_atomic(self.output / name) as file:
            writer: pq.ParquetWriter | None = None
            for group in _with_images(table, parts.images):
                if writer is None:
                    writer = pq.ParquetWriter(file, group.schema)
                writer.write_table(group, row_group_size=len(group))
            assert writer is not None, "an episode has rows"
            writer.close()
        parts.files.insert(0, replace(file_entry(self.output, name), samples=len(table)))


# Rows


def _copied_rows(
    recording: EpisodeFiles, episode: Episode, layout: SetLayout
) -> tuple[pa.Table, dict[int, str]]:
    """Columns of a recording, and the sentences by the indices that its rows use."""
    declared = dict(layout.columns)
    for name in (*layout.depth, *layout.labels):
        if name not in layout.videos:
            declared[name] = layout.features[name]
    rows = read_rows(recording.segment(), episode.id, [*declared, TASK_INDEX])
    table = rows.table
    columns = {name: _cast(table, name, tree, rows.path) for name, tree in declared.items()}

    known = known_texts(recording)
    used: set[int] = set()
    for column in table.schema:
        is_task = column.name == TASK_INDEX or column.name.startswith(_ANNOTATION)
        if is_task and pa.types.is_integer(column.type):
            used.update(value for value in rows.values(column.name) if value is not None)
    tasks = {index: known[index] for index in sorted(used) if index in known}

    task_indices: Any = None
    if tasks and TASK_INDEX in table.column_names:
        task_indices = table.column(TASK_INDEX)
        if not {*task_indices.to_pylist()} <= {*tasks}:
            task_indices = None
    if task_indices is None:  # all rows have the task of the episode
        episode_task = max(tasks, default=-1) + 1
        for index, text in tasks.items():
            if text == episode.task:
                episode_task = index
                break
        tasks[episode_task] = episode.task
        task_indices = pa.array(np.full(len(table), episode_task, np.int64))
    columns[TASK_INDEX] = pa.array(task_indices.to_numpy(), pa.int64())

    for name, texts in layout.texts.items():  # numbers of the written set
        own = known_texts(recording, name)
        numbers = {text: number for number, text in texts.items()}
        values: list[Any] = []
        for value in columns[name].to_pylist():
            values.append(numbers[own[value]] if value in own else value)
        columns[name] = pa.chunked_array([pa.array(values, columns[name].type)])
    return pa.table(columns).slice(0, episode.num_frames), tasks


def _cast(table: pa.Table, name: str, declared: Mapping[str, Any], path: Path) -> pa.ChunkedArray:
    """A column in the declared type; raises DataError if it is missing or of another one."""
    if name not in table.column_names:
        raise _column_error(path, name, "is missing")
    column = table.column(name)
    dtype = lerobot_output.arrow_type(declared)
    if dtype is None:
        return column
    try:
        if pa.types.is_list(column.type) and not pa.types.is_nested(dtype):
            column = pa.chunked_array([column.combine_chunks().flatten()])  # lists of one
            if len(column) != len(table):
                raise pa.ArrowInvalid("its rows are lists")
        return column.cast(dtype)
    except pa.ArrowException as error:
        raise _column_error(path, name, f"is not {dtype}: {error}") from error


def _column_error(path: Path, name: str, problem: str) -> DataError:
    return DataError.at(
        path,
        f"the column {name!r} {problem}",
        hint="correct the column, or leave the episode out with --exclude",
        code="data.mismatch",
        field=name,
    )


def _joined_rows(episode: Episode, layout: SetLayout) -> pa.Table:
    """Columns made of the fields of an episode, float32 or text."""
    columns: dict[str, Any] = {}
    for name, fields in layout.sources.items():
        values = [episode.lowdim[field] for field in fields]
        if values[0].dtype.kind == "U":
            columns[name] = pa.array(values[0].tolist(), pa.string())
            continue
        flat = [array.reshape(len(array), -1).astype(np.float32) for array in values]
        joined = np.concatenate(flat, axis=1)
        if joined.shape[1] == 1:
            columns[name] = pa.array(joined[:, 0])
        else:
            columns[name] = vector_column(joined)
    if PERSISTENT in layout.features:
        columns[PERSISTENT] = persistent_texts(episode, float(layout.rate))
    if not columns:  # a table needs a column to have rows
        columns[FRAME_INDEX] = pa.array(np.arange(episode.num_frames))
    return pa.table(columns)


def _tasks(episode: Episode) -> tuple[list[str], list[int]]:
    """Returns the instructions of an episode, else its task name, and the index for each row."""
    of_rows = [episode.instruction_at(frame) for frame in range(episode.num_frames)]
    if not any(of_rows):
        of_rows = [episode.task] * episode.num_frames
    numbers: dict[str, int] = {}
    for text in of_rows:
        numbers.setdefault(text, len(numbers))
    for texts in (episode.language.get(_ORIGINAL, ()), *episode.language.values()):
        for text in texts:
            if text.strip():
                numbers.setdefault(text, len(numbers))
    return list(numbers), [numbers[text] for text in of_rows]


def _numbers(column: pa.ChunkedArray, width: int) -> Array:
    """Values of a numeric column as float64 [F, C]; NaN where rows are missing or ragged."""
    array = column.combine_chunks()
    rows = len(array)
    while pa.types.is_nested(array.type) and hasattr(array, "flatten"):
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    values = np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if values.size != rows * width:
        return np.full((rows, width), np.nan)
    return values.reshape(rows, width)


def _left_out(episode: Episode, layout: SetLayout, *, is_copied: bool) -> Iterator[Finding]:
    """Yields findings on what the layout has no place for; copied columns are complete."""
    kinds = {span.kind for span in episode.language_spans} - {_ORIGINAL}
    if PERSISTENT in layout.features:
        kinds -= {*PERSISTENT_STYLES}
    if kinds and not is_copied:
        named = ", ".join(sorted(kinds))
        problem = f"left out: {named} of single frames; --sink lbm stores them"
        yield LEROBOT_SINK("left_out", f"{episode.id}: {problem}", episode=episode.id)

    lost: list[str] = []
    options = ""
    if episode.depth and not layout.depth:
        lost.append(f"depth of {', '.join(episode.depth)}")
        options += " --depth true"
    if episode.labels and not layout.labels:
        lost.append(f"labels of {', '.join(episode.labels)}")
        options += " --labels true"
    if episode.calibration:
        lost.append(f"calibration of {', '.join(episode.calibration)}")
    if lost:
        problem = f"left out: {'; '.join(lost)}; --sink lbm{options} stores them"
        yield LEROBOT_SINK("left_out", f"{episode.id}: {problem}", episode=episode.id)


# Images


def _images(camera: str, source: FrameSource, count: int) -> Iterator[UInt8Array]:
    for start in range(0, count, writing.FRAMES_PER_READ):
        stop = min(start + writing.FRAMES_PER_READ, count)
        yield from writing.read_frames(camera, source, range(start, stop))


def _sampling(
    images: Iterator[UInt8Array], sampled: lerobot_output.ImageStatistics, count: int
) -> Iterator[UInt8Array]:
    """Yields the images; adds the images for statistics to `sampled`."""
    numbers = {*lerobot_output.sampled_frames(count)}
    for number, image in enumerate(images):
        if number in numbers:
            sampled.add(image)
        yield image


def _sampled(camera: str, source: FrameSource, count: int) -> lerobot_output.Stats:
    sampled = lerobot_output.ImageStatistics()
    for frame in lerobot_output.sampled_frames(count):
        sampled.add(writing.read_frames(camera, source, [frame])[0])
    return sampled.entry()


def _stored_images(
    camera: str, source: FrameSource, episode: Episode, feature: str, parts: _Parts
) -> Iterator[bytes]:
    """Image files of a camera; statistics and size are in `parts` once all are consumed."""
    numbers = {*lerobot_output.sampled_frames(episode.num_frames)}
    sampled = lerobot_output.ImageStatistics()
    writer = writing.ImageWriter(writing.ImageEncoding(None, "center_crop", "lanczos_vips"))
    for number, (_, data) in enumerate(writer.images(camera, source, episode.num_frames)):
        if number in numbers:
            sampled.add(decode_rgb(data))
        yield data
    if len(writer.sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in writer.sizes)
        raise DataError(
            f"{episode.id}, camera {camera}: images have different sizes: {listed}",
            hint="leave the episode out with --exclude",
            code="data.mismatch",
            details={"camera": camera},
        )
    [(height, width)] = writer.sizes
    parts.stats[feature] = sampled.entry()
    parts.cameras[feature] = {"kind": {"height": height, "width": width}}


def _with_images(table: pa.Table, images: Mapping[str, Iterator[bytes]]) -> Iterator[pa.Table]:
    """Row groups: the whole table, or pieces of bounded size where it has images."""
    if not images:
        yield table
        return
    start = 0
    size = 0
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in images}
    for row in range(len(table)):
        for name, source in images.items():
            data = next(source)
            cells[name].append({"bytes": data, "path": f"frame_{row:06d}.png"})
            size += len(data)
        if size >= _GROUP_BYTES or row == len(table) - 1:
            group = table.slice(start, row + 1 - start)
            for name, values in cells.items():
                group = group.append_column(name, pa.array(values, lerobot_output.IMAGE_CELL))
                values.clear()
            yield group
            start = row + 1
            size = 0
    for source in images.values():  # ends the generators, which then have their statistics
        next(source, None)


def _camera_error(ref: EpisodeRef, camera: str, problem: str) -> DataError:
    return DataError(
        f"{ref.id}: camera {camera} {problem}",
        hint="choose cameras with --camera-names, or add --skip-episodes-missing-cameras",
        code="data.missing",
        details={"camera": camera},
    )
