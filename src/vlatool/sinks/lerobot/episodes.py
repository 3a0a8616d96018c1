"""Parts of one episode: its rows in a table, and a video per camera; numbers are given at the end.

Legend of shapes: F frames, C dimensions. Source: formats/lerobot-writing 1, 2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.artifacts.clips import EncodedClip, copy_clip, encode_video, encoded_clip
from vlatool.artifacts.images import decode_rgb
from vlatool.artifacts.lerobot.format import FRAME_INDEX
from vlatool.artifacts.lerobot.output import IMAGE_CELL, arrow_type, part_table, part_video
from vlatool.artifacts.lerobot.recording import LeRobotRecording, read_columns, task_sentences
from vlatool.artifacts.lerobot.statistics import (
    ImageStatistics,
    Stats,
    camera_entry,
    rows_statistics,
    sampled_frames,
)
from vlatool.episode import Array, Clip, Episode, EpisodeRef, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCode, FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.journal import Receipt
from vlatool.sinks.images import FRAMES_PER_READ, ImageEncoding, ImageWriter, read_frames
from vlatool.sinks.lerobot.config import LeRobotSinkConfig
from vlatool.sinks.lerobot.features import SetLayout
from vlatool.storage.atomic import open_atomic, write_bytes
from vlatool.transforms.statistics import to_arrays

LEROBOT_SINK = FindingCodes(
    "lerobot_sink",
    {
        "left_out": FindingCode(
            "warning",
            "A LeRobot data set has no place for depth, labels or calibration of other formats.",
            "none if the policy does not use them; else write shards with --sink lbm",
        )
    },
)
TASK_INDEX = "task_index"
_ANNOTATION = "annotation."
# Bytes of images after which a row group ends; a reader holds one in memory.
_GROUP_BYTES = 64 << 20


@dataclass
class _Parts:
    """Written parts of one episode.

    Attributes:
        files: Files of the episode.
        images: Map from camera to its column of images.
        stats: Statistics by camera.
        cameras: Facts on each camera.
    """

    files: list[FileEntry] = field(default_factory=list[FileEntry])
    images: dict[str, Iterator[bytes]] = field(default_factory=dict[str, Iterator[bytes]])
    stats: dict[str, Stats] = field(default_factory=dict[str, Stats])
    cameras: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


@dataclass(frozen=True)
class EpisodeWriter:
    """Writes the parts of an episode; picklable.

    Attributes:
        output: The output folder.
        config: Options of the sink.
        layout: Columns and cameras of the set.
    """

    output: Path
    config: LeRobotSinkConfig
    layout: SetLayout

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes the parts; the receipt has their facts and statistics.

        Raises:
            DataError: A column does not fit the data set, a camera is missing, or an image cannot
                be read.
        """
        recording = ref.extras.get("recording") if not self.layout.sources else None
        if isinstance(recording, LeRobotRecording):
            table, tasks, listed = copied_rows(recording, episode, self.layout)
        else:
            table, listed = _joined_rows(episode, self.layout), _sentences(episode)
            tasks = dict(enumerate(listed))
            table = table.append_column(TASK_INDEX, pa.array(np.zeros(len(table), np.int64)))
        parts = _Parts()
        self._write_cameras(ref, episode, recording, parts)
        self._write_rows(ref, table, parts)
        facts = {
            "rows": len(table),
            "tasks": {str(index): text for index, text in tasks.items()},
            "listed": [*listed],
            "cameras": parts.cameras,
            "stats": parts.stats,
        }
        counts = {
            "frames": episode.num_frames,
            "samples": episode.num_frames,
            "copied_clips": sum(facts.get("copied", False) for facts in parts.cameras.values()),
        }
        return Receipt(
            ref.id,
            counts=counts,
            files=tuple(parts.files),
            findings=tuple(_left_out(episode)),
            facts=facts,
            arrays=self._arrays(table),
        )

    def _arrays(self, table: pa.Table) -> dict[str, Array]:
        """Statistics of the numeric columns, and the task of each row."""
        columns = [
            _numbers(table.column(name), width) for name, width in self.layout.widths.items()
        ]
        arrays = {TASK_INDEX: table.column(TASK_INDEX).to_numpy()}
        return arrays | (to_arrays(rows_statistics(columns)) if columns else {})

    def _write_cameras(
        self, ref: EpisodeRef, episode: Episode, recording: Any, parts: _Parts
    ) -> None:
        for name, feature in self.layout.cameras.items():
            if name not in episode.cameras:
                raise _camera_error(ref, name, "has no images in this episode")
            source = episode.cameras[name]
            if len(source) < episode.num_frames:
                raise _camera_error(
                    ref, name, f"has {len(source)} images for {episode.num_frames} frames"
                )
            if feature in self.layout.videos:
                self._write_video(ref, feature, source, episode, recording, parts)
            else:
                parts.images[feature] = _stored_images(name, source, episode, feature, parts)
        for feature in self.layout.depth:
            self._copy_depth(ref, feature, episode, recording, parts)

    def _write_video(
        self,
        ref: EpisodeRef,
        feature: str,
        source: FrameSource,
        episode: Episode,
        recording: Any,
        parts: _Parts,
    ) -> None:
        """Copies the clip of a camera, else encodes its images."""
        count = episode.num_frames
        clip = getattr(source, "clip", None) if self.config.copy_videos else None
        copied = self._copied(clip, count)
        if copied is None:
            sampled = ImageStatistics()
            encoded = self._encoded(feature, source, count, sampled)
            parts.stats[feature] = sampled.entry()
        else:
            encoded = copied
            parts.stats[feature] = _published(recording, feature) or _sampled(
                feature, source, count
            )
        self._store_clip(ref, feature, encoded, parts, copied=copied is not None)

    def _copied(self, clip: Clip | None, count: int) -> EncodedClip | None:
        if clip is None:
            return None
        try:
            return copy_clip(clip, count, self.layout.rate)
        except av.error.FFmpegError:
            return None  # decoding reports it with the frame

    def _encoded(
        self, feature: str, source: FrameSource, count: int, sampled: ImageStatistics
    ) -> EncodedClip:
        chosen = {*sampled_frames(count)}

        def images() -> Iterator[UInt8Array]:
            for number, image in enumerate(_images(feature, source, count)):
                if number in chosen:
                    sampled.add(image)
                yield image

        options = {"crf": self.config.video_crf}
        options["keyframe_interval"] = self.config.keyframe_interval
        return encoded_clip(encode_video(images(), self.layout.rate, **options))

    def _copy_depth(
        self, ref: EpisodeRef, feature: str, episode: Episode, recording: Any, parts: _Parts
    ) -> None:
        """Copies a depth camera as it is stored; depth is never encoded anew."""
        if feature not in self.layout.videos:
            return  # its column is copied with the others
        copied = self._copied(recording.clips.get(feature), episode.num_frames)
        if copied is None:
            raise _camera_error(ref, feature, "has no video of depth that can be copied")
        self._store_clip(ref, feature, copied, parts, copied=True)

    def _store_clip(
        self, ref: EpisodeRef, feature: str, clip: EncodedClip, parts: _Parts, *, copied: bool
    ) -> None:
        name = part_video(ref.id, self.layout.camera_features.index(feature))
        write_bytes(self.output / name, clip.data)
        parts.files.append(file_entry(self.output, name))
        parts.cameras[feature] = {"kind": asdict(clip.kind), "delay": clip.delay, "copied": copied}

    def _write_rows(self, ref: EpisodeRef, table: pa.Table, parts: _Parts) -> None:
        """Writes the table, with the images of cameras that are no videos."""
        name = part_table(ref.id)
        with open_atomic(self.output / name) as file:
            writer: pq.ParquetWriter | None = None
            for group in _with_images(table, parts.images):
                writer = writer or pq.ParquetWriter(file, group.schema)
                writer.write_table(group, row_group_size=len(group))
            assert writer is not None, "an episode has rows"
            writer.close()
        parts.files.insert(0, replace(file_entry(self.output, name), samples=len(table)))


def copied_rows(
    recording: LeRobotRecording, episode: Episode, layout: SetLayout
) -> tuple[pa.Table, dict[int, str], Sequence[str]]:
    """Columns of a recording, sentences by the indices that rows use, and its listed sentences.

    Raises:
        DataError: The file cannot be read, or a column is not as the first data set declares it.
    """
    path, columns = recording.rows.path, layout.columns
    depth = [name for name in layout.depth if name not in layout.videos]
    try:
        table = read_columns(recording, [*columns, *depth, TASK_INDEX])
    except (pa.ArrowException, OSError) as error:
        raise DataError.at(path, f"cannot be read: {error}", code="data.bad_parquet") from error
    if len(table) != episode.num_frames:
        raise DataError.at(
            path, f"has {len(table)} rows, expected {episode.num_frames}", code="data.bad_parquet"
        )
    taken = {name: columns[name] for name in columns} | {
        name: layout.features[name] for name in depth
    }
    arrays = {name: _cast(table, name, declared, path) for name, declared in taken.items()}
    tasks = _tasks(recording, table, episode)
    indices = table.column(TASK_INDEX) if TASK_INDEX in table.column_names and len(tasks) else None
    if indices is None or not {*indices.to_pylist()} <= {*tasks}:
        first = next((index for index, text in tasks.items() if text == episode.task), None)
        if first is None:
            first = max(tasks, default=-1) + 1
            tasks[first] = episode.task
        indices = pa.array(np.full(len(table), first, np.int64))
    arrays[TASK_INDEX] = pa.array(indices.to_numpy(), pa.int64())
    return pa.table(arrays), tasks, recording.tasks


def _tasks(recording: LeRobotRecording, table: pa.Table, episode: Episode) -> dict[int, str]:
    """Sentences of the task indices that rows and annotations use."""
    known = task_sentences(recording)
    used: set[int] = set()
    for name in (TASK_INDEX, *filter(_is_annotation, table.column_names)):
        if name in table.column_names and pa.types.is_integer(table.schema.field(name).type):
            used |= {value for value in table.column(name).to_pylist() if value is not None}
    return {index: known[index] for index in sorted(used) if index in known}


def _is_annotation(name: str) -> bool:
    return name.startswith(_ANNOTATION)


def _cast(table: pa.Table, name: str, declared: Mapping[str, Any], path: Path) -> pa.ChunkedArray:
    """A column in its declared type.

    Raises:
        DataError: It is missing or has another type.
    """
    if name not in table.column_names:
        raise _column_error(path, name, "is missing")
    column, dtype = table.column(name), arrow_type(declared)
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
        hint="repair the file, or exclude the episode with --exclude",
        code="data.column_mismatch",
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
            columns[name] = pa.FixedSizeListArray.from_arrays(
                pa.array(joined.ravel()), joined.shape[1]
            )
    if not columns:  # a table needs a column to have rows
        columns[FRAME_INDEX] = pa.array(np.arange(episode.num_frames))
    return pa.table(columns)


def _sentences(episode: Episode) -> list[str]:
    """All instructions of an episode, the original ones first; else the name of its task."""
    original = episode.language.get("original", ())
    texts = (*original, *(text for texts in episode.language.values() for text in texts))
    return [text for text in dict.fromkeys(texts) if text.strip()] or [episode.task]


def _left_out(episode: Episode) -> Iterator[Finding]:
    """Finding on the parts of an episode that have no place in the data set."""
    parts = {"depth": episode.depth, "labels": episode.labels, "calibration": episode.calibration}
    cameras = {kind: ", ".join(names) for kind, names in parts.items() if names}
    if not cameras:
        return
    keys = "".join(f" --{kind} true" for kind in ("depth", "labels") if kind in cameras)
    named = "; ".join(f"{kind} of {names}" for kind, names in cameras.items())
    problem = f"left out: {named}; --sink lbm{keys} stores them"
    yield LEROBOT_SINK("left_out", f"{episode.id}: {problem}", episode=episode.id)


def _numbers(column: pa.ChunkedArray, width: int) -> Array:
    """Values of a numeric column as float64 [F, C]; NaN where rows are missing or ragged."""
    array = column.combine_chunks()
    rows = len(array)
    while pa.types.is_nested(array.type) and hasattr(array, "flatten"):
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    values = np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    return (
        values.reshape(rows, width)
        if values.size == rows * width
        else np.full((rows, width), np.nan)
    )


def _images(camera: str, source: FrameSource, count: int) -> Iterator[UInt8Array]:
    for start in range(0, count, FRAMES_PER_READ):
        yield from read_frames(camera, source, range(start, min(start + FRAMES_PER_READ, count)))


def _stored_images(
    camera: str, source: FrameSource, episode: Episode, feature: str, parts: _Parts
) -> Iterator[bytes]:
    """Image files of a camera; statistics and size are in `parts` once all are consumed."""
    chosen = {*sampled_frames(episode.num_frames)}
    sampled = ImageStatistics()
    writer = ImageWriter(ImageEncoding(None, "center_crop", "lanczos_vips"))
    for number, (_, data) in enumerate(writer.images(camera, source, episode.num_frames)):
        if number in chosen:
            sampled.add(decode_rgb(data))
        yield data
    height, width = next(iter(writer.sizes))
    if len(writer.sizes) > 1:
        listed = ", ".join(f"{size[1]}x{size[0]}" for size in writer.sizes)
        raise DataError(
            f"{episode.id}, camera {camera}: images have different sizes: {listed}",
            hint="exclude the episode with --exclude",
            code="data.mixed_sizes",
            details={"camera": camera},
        )
    parts.stats[feature] = sampled.entry()
    parts.cameras[feature] = {"kind": {"height": height, "width": width}}


def _with_images(table: pa.Table, images: Mapping[str, Iterator[bytes]]) -> Iterator[pa.Table]:
    """Row groups: the whole table, or pieces of bounded size where it has images."""
    if not images:
        yield table
        return
    start, size = 0, 0
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in images}
    for row in range(len(table)):
        for name, source in images.items():
            data = next(source)
            cells[name].append({"bytes": data, "path": f"frame_{row:06d}.png"})
            size += len(data)
        if size >= _GROUP_BYTES or row == len(table) - 1:
            group = table.slice(start, row + 1 - start)
            for name, values in cells.items():
                group = group.append_column(name, pa.array(values, IMAGE_CELL))
                values.clear()
            yield group
            start, size = row + 1, 0
    for source in images.values():  # ends the generators, which then have their statistics
        next(source, None)


def _sampled(camera: str, source: FrameSource, count: int) -> Stats:
    sampled = ImageStatistics()
    for frame in sampled_frames(count):
        sampled.add(read_frames(camera, source, [frame])[0])
    return sampled.entry()


def _published(recording: Any, feature: str) -> Stats | None:
    """Statistics of a camera that the source has for the episode, if they are complete."""
    published = getattr(recording, "statistics", dict)()
    entry = published.get(feature)
    return None if entry is None else camera_entry(entry)


def _camera_error(ref: EpisodeRef, camera: str, problem: str) -> DataError:
    return DataError(
        f"{ref.id}: camera {camera} {problem}",
        hint="choose with --camera-names, --exclude or --skip-episodes-missing-cameras",
        code="data.missing_camera",
        details={"camera": camera},
    )
