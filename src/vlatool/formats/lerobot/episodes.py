"""Options of the `lerobot` sink, and the parts of one episode of a written set.

Parts are its rows in a table, and a video per camera. Columns and cameras are those of all
episodes. Legend of shapes: F frames, C dimensions. Source: formats/lerobot 4;
formats/lerobot-writing 1, 2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Literal

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.config.base import option
from vlatool.episode import Array, Clip, Episode, EpisodeRef, FieldSpec, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, warning
from vlatool.formats import writing
from vlatool.formats.lerobot import output as lerobot_output
from vlatool.formats.lerobot.folder import EpisodeFiles, known_texts
from vlatool.formats.lerobot.layout import (
    AUTOMATIC,
    CHUNKS_SIZE,
    FRAME_INDEX,
    PERSISTENT,
    PERSISTENT_STYLES,
    Version,
    automatic_features,
    feature,
    persistent_texts,
    vector_column,
)
from vlatool.formats.lerobot.meta import is_feature_name
from vlatool.formats.lerobot.tables import read_rows
from vlatool.formats.media.images import decode_rgb
from vlatool.formats.media.video import EncodedClip, copy_clip, encode_video, encoded_clip
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.journal import Receipt
from vlatool.report.text import few_text
from vlatool.storage.atomic import open_atomic, write_bytes
from vlatool.storage.uri import as_native_file
from vlatool.transforms.statistics import to_arrays


class LeRobotSinkConfig(writing.SinkConfig):
    """A LeRobot data set."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "layout_version", "robot_type", "modality"),
        "Images": ("use_videos", "copy_videos", "video_crf", "keyframe_interval"),
        "Files": ("data_files_size_in_mb", "video_files_size_in_mb", "chunks_size"),
    }

    type: Literal["lerobot"] = option("lerobot", "Form of the output: a LeRobot data set.")
    layout_version: Version = option("v3.0", "Version of the layout.")
    robot_type: str | None = option(
        None, "Name of the robot; null: that of the source, if it has one."
    )
    modality: bool = option(False, "Write meta/modality.json, which GR00T reads.")
    use_videos: bool | None = option(
        None,
        "Store cameras as videos, or as images in the table; null: as a LeRobot source "
        "does, videos for others.",
    )
    copy_videos: bool = option(
        True, "Copy encoded video where it needs no change; otherwise encode it anew."
    )
    video_crf: int = option(18, "Quality of encoded videos; lower is better.", ge=0, le=51)
    keyframe_interval: int = option(
        2, "Frames from one keyframe to the next; low numbers make single frames cheap.", ge=1
    )
    data_files_size_in_mb: int = option(100, "MiB of a data file (v3.0).", ge=1)
    video_files_size_in_mb: int = option(200, "MiB of a video (v3.0).", ge=1)
    chunks_size: int = option(
        CHUNKS_SIZE, "Files of a folder (v3.0), or episodes of it (v2.1).", ge=1
    )


_STATE = "observation.state"
_ACTION = "action"
_CAMERAS = "observation.images."
_CAMERA_TYPES = ("video", "image")
_LONGEST_VALUE = 60  # characters
# Frame rates with a fraction, such as 29.97, are 30000/1001.
_LARGEST_DENOMINATOR = 1001


@dataclass(frozen=True)
class SetLayout:
    """Columns and cameras of a written set, equal for all its episodes; picklable."""

    rate: Fraction  # frames per second
    # declarations in order, automatic columns included, cameras as far as known
    features: Mapping[str, Mapping[str, Any]]
    # map from column to the fields that are joined in it; empty: columns are copied
    sources: Mapping[str, Sequence[str]]
    cameras: Mapping[str, str]  # map from camera of the episodes to its feature
    depth: tuple[str, ...] = ()  # depth cameras of the source, which are copied
    labels: tuple[str, ...] = ()  # columns of labels of the source, which are copied
    # features that are stored as videos
    videos: frozenset[str] = field(default_factory=frozenset[str])
    field_widths: Mapping[str, int] = field(default_factory=dict[str, int])
    # map from column of numbers besides tasks to the texts that they stand for
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])

    @property
    def columns(self) -> dict[str, Mapping[str, Any]]:
        """Declarations of the columns besides automatic ones and cameras."""
        return {
            name: declared
            for name, declared in self.features.items()
            if name not in (*AUTOMATIC, *self.camera_features)
        }

    def position(self, field: str) -> tuple[str, int]:
        """Column that holds a field, and its first dimension there."""
        for column, fields in self.sources.items():
            if field in fields:
                before = fields[: fields.index(field)]
                return column, sum(self.field_widths[name] for name in before)
        return field, 0

    @property
    def camera_features(self) -> tuple[str, ...]:
        """All cameras, those of depth and labels last."""
        return (*self.cameras.values(), *self.depth, *self.labels)

    @property
    def widths(self) -> dict[str, int]:
        """Map from numeric column to its number of values per row."""
        widths = {
            name: lerobot_output.numeric_width(declared) for name, declared in self.columns.items()
        }
        return {name: width for name, width in widths.items() if width is not None}


def copied_sets(setup: writing.SinkSetup) -> list[EpisodeFiles]:
    """The first recording of each data set whose columns are copied.

    Empty if an episode is of no LeRobot set, or has the names of a mapping or of `--rename`.
    """
    by_root: dict[Path, EpisodeFiles] = {}
    names = {*setup.survey.cameras, *setup.survey.fields}
    for ref in setup.refs:
        recording = ref.extras.get("recording")
        if not isinstance(recording, EpisodeFiles):
            return []
        by_root.setdefault(recording.root, recording)
    for recording in by_root.values():
        names -= {*recording.dataset.info.features}
    return [] if names else [*by_root.values()]


def set_layout(
    config: LeRobotSinkConfig,  # options of the sink
    setup: writing.SinkSetup,  # survey and episodes
    actions: Sequence[str],  # fields of an action
    sets: Sequence[EpisodeFiles],  # A recording of each data set; empty for other sources
) -> SetLayout:
    """Columns and cameras of the output."""
    if setup.survey.fps is None:
        rates = {recording.document.get("fps") for recording in sets}
        if len(rates) < 2:
            raise writing.no_rate("sink lerobot")
        rows = [f"{recording.root}: {recording.document.get('fps')}" for recording in sets]
        reason = f"the episodes have different frame rates (fps {few_text(rows)})"
        raise _merge_error(reason, ["fps"])
    rate = Fraction(setup.survey.fps).limit_denominator(_LARGEST_DENOMINATOR)
    if sets:
        return _copied_layout(config, setup, sets, rate)
    # Observed fields are joined to `observation.state`, predicted ones to `action`.
    survey = setup.survey
    joined = {_STATE: survey.proprioception_fields, _ACTION: actions}
    sources = {column: tuple(fields) for column, fields in joined.items() if fields}
    used = {name for fields in sources.values() for name in fields}
    for name in survey.fields:
        column = name.replace("/", ".")
        if name not in used and column in sources:
            raise DataError(
                f"the field {name!r} and {few_text(sources[column])} would be one column",
                hint=f"give the field another name, as --rename fields.NEW={name}",
                code="data.broken",
            )
        if name not in used:
            sources[column] = (name,)
    cameras = {name: f"{_CAMERAS}{name.removeprefix(_CAMERAS)}" for name in survey.cameras}
    _check_names(sources, cameras)
    features: dict[str, Any] = {}
    for column, fields in sources.items():
        specs = [(name, survey.fields[name]) for name in fields]
        width = sum(spec.width for _, spec in specs)
        names = [
            label for name, spec in specs for label in _labels(name, spec, is_joined=len(specs) > 1)
        ]
        dtype = "float32" if width else "string"
        features[column] = feature(dtype, [width or 1], names or None)
    videos = frozenset(() if config.use_videos is False else cameras.values())
    for name, column in cameras.items():
        height, width = survey.cameras[name] or (0, 0)
        features[column] = feature("", [height, width, 3], ["height", "width", "channels"])
    if config.layout_version == "v3.0" and {*survey.text_kinds} & {*PERSISTENT_STYLES}:
        features[PERSISTENT] = feature("language", [1])
    features |= automatic_features()
    widths = _widths(setup)
    return SetLayout(rate, features, sources, cameras, videos=videos, field_widths=widths)


def _check_names(sources: Mapping[str, Sequence[str]], cameras: Mapping[str, str]) -> None:
    """Raises an error if a feature would have a name that no reader of the set accepts."""
    names = {column: f"fields.NEW={fields[0]}" for column, fields in sources.items()}
    names |= {column: f"cameras.NEW={camera}" for camera, column in cameras.items()}
    for column, change in names.items():
        if not is_feature_name(column):
            raise DataError(
                f"{column[:40]!r} ({len(column.encode())} bytes) cannot name a feature of LeRobot",
                hint=f"choose one of at most 180 printable characters: --rename {change[:60]!r}",
                code="data.bad_name",
            )


def _widths(setup: writing.SinkSetup) -> dict[str, int]:
    return {name: spec.width for name, spec in setup.survey.fields.items()}


def _labels(name: str, spec: FieldSpec, *, is_joined: bool) -> Iterator[str]:
    """Names of the dimensions of a field in a column; those of several fields have its name."""
    if spec.width == 1 and is_joined:
        yield name
    elif spec.names or is_joined:
        for index in range(spec.width):
            label = spec.names[index] if spec.names else str(index)
            yield f"{name}.{label}" if is_joined else label


def _copied_layout(
    config: LeRobotSinkConfig,
    setup: writing.SinkSetup,
    sets: Sequence[EpisodeFiles],
    rate: Fraction,
) -> SetLayout:
    cameras = {name: name for name in setup.survey.cameras}
    _check_equal(sets, tuple(cameras))
    declared: Mapping[str, Any] = sets[0].document["features"]
    stored = _stored_schema(sets[0])
    depth = tuple(
        name
        for name, feature in sets[0].dataset.info.features.items()
        if feature.is_camera
        and feature.is_depth
        and (name in sets[0].clips or name in (stored.names if stored else ()))
    )
    labels = tuple(
        name
        for name, feature in sets[0].dataset.info.features.items()
        if feature.is_labels and name in (stored.names if stored else ())
    )
    features: dict[str, Any] = {}
    for name, tree in declared.items():
        is_camera = tree.get("dtype") in _CAMERA_TYPES
        is_stored = stored is None or name in stored.names or name in AUTOMATIC
        if name in (*cameras, *depth, *labels) or (not is_camera and is_stored):
            features[name] = dict(tree)
    for column in stored if stored else ():
        if column.name not in declared and not column.name.startswith("__"):
            features[column.name] = _declared(column.type)
    videos = {name for name in (*cameras, *depth) if declared[name].get("dtype") == "video"}
    if config.use_videos is not None:
        videos = {*(cameras if config.use_videos else ()), *(videos & {*depth})}
    features |= automatic_features()
    widths = _widths(setup)
    texts = _merged_texts(sets, tuple(features))
    return SetLayout(rate, features, {}, cameras, depth, labels, frozenset(videos), widths, texts)


def _merged_texts(
    sets: Sequence[EpisodeFiles], columns: Sequence[str]
) -> dict[str, dict[int, str]]:
    """Texts by number of each column of numbers, of all data sets; a text keeps its first number.

    Raises DataError if a data set has no table for a column for which another one has one.
    """
    merged: dict[str, dict[int, str]] = {}
    for column in sorted({name for recording in sets for name in recording.dataset.text_tables}):
        if column not in columns:
            continue
        texts: dict[int, str] = {}
        for recording in sets:
            if column not in recording.dataset.text_tables:
                raise _merge_error(f"{recording.root} has no texts for {column}", [column])
            for number, text in known_texts(recording, column).items():
                if text not in texts.values():
                    texts[number if number not in texts else max(texts) + 1] = text
        merged[column] = texts
    return merged


def _stored_schema(recording: EpisodeFiles) -> pa.Schema | None:
    """Columns of the first file; None if it cannot be read, which reading the episode reports."""
    try:
        return pq.read_schema(as_native_file(recording.rows.path))
    except (pa.ArrowException, OSError):
        return None


def _declared(dtype: pa.DataType) -> dict[str, Any]:
    """Declaration of a column that the source does not declare."""
    types = pa.types
    shape = [1]
    while types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        shape = [dtype.list_size] if types.is_fixed_size_list(dtype) else [-1]
        dtype = dtype.value_type
    is_number = types.is_integer(dtype) or types.is_floating(dtype) or types.is_boolean(dtype)
    name = str(dtype) if is_number else "string" if types.is_string(dtype) else "language"
    names = {"double": "float64", "float": "float32", "halffloat": "float16"}
    return feature(names.get(name, name), shape)


def _check_equal(sets: Sequence[EpisodeFiles], cameras: Sequence[str]) -> None:
    """Raises DataError unless all data sets declare the same columns and cameras."""
    first = sets[0]
    expected = _comparable(first, cameras)
    for other in sets[1:]:
        actual = _comparable(other, cameras)
        differing = [
            name for name in {**expected, **actual} if expected.get(name) != actual.get(name)
        ]
        if differing:
            problems = [
                _difference(name, actual.get(name), expected.get(name)) for name in differing
            ]
            raise _merge_error(
                f"{other.root} does not fit {first.root}: {'; '.join(problems)}", differing
            )


def _comparable(recording: EpisodeFiles, cameras: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What data sets must agree in, by column, camera and depth camera."""
    comparable: dict[str, dict[str, Any]] = {}
    for name, tree in recording.document["features"].items():
        feature = recording.dataset.info.features[name]
        shape = {"shape": tree.get("shape")}
        if feature.is_camera and feature.is_depth:
            comparable[name] = {"type": "depth", **shape, **feature.quantizer}
        elif feature.is_labels:
            comparable[name] = {"type": "labels", **shape}
        elif feature.is_camera and name in cameras:
            comparable[name] = {"type": "camera", **shape}
        elif not feature.is_camera and name not in AUTOMATIC:
            comparable[name] = {"type": feature.dtype, **shape, "names": tree.get("names")}
    return comparable


def _difference(name: str, here: Mapping[str, Any] | None, there: Mapping[str, Any] | None) -> str:
    if here is None or there is None:
        return f"it lacks {name!r}" if here is None else f"it has {name!r}, too"
    key = next(key for key in here if here.get(key) != there.get(key))
    value = here[key]
    expected = there[key]
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected) > 3:
        index = next(i for i, item in enumerate(value) if item != expected[i])
        key = f"{key}[{index}]"
        value = value[index]
        expected = expected[index]
    shown = [shorten(str(item), _LONGEST_VALUE) for item in (value, expected)]
    return f"{name!r} has the {key} {shown[0]}, not {shown[1]}"


def _merge_error(problem: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"{problem}; they cannot be in one data set",
        hint="write them to separate outputs; cameras that all have are chosen by --camera-names",
        code="data.mismatch",
        details={"field": names[0], "fields": [*names]},
    )


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
        recording: EpisodeFiles | None = None
        if not self.layout.sources and isinstance(ref.extras.get("recording"), EpisodeFiles):
            recording = ref.extras["recording"]
        if recording is not None:
            table, tasks, listed = copied_rows(recording, episode, self.layout)
        else:
            table, (listed, indices) = _joined_rows(episode, self.layout), _tasks(episode)
            tasks = dict(enumerate(listed))
            table = table.append_column(TASK_INDEX, pa.array(indices, pa.int64()))
        parts = _Parts()
        for name, column in self.layout.cameras.items():
            if name not in episode.cameras:
                raise _camera_error(ref, name, "has no images in this episode")
            source = episode.cameras[name]
            if len(source) < episode.num_frames:
                raise _camera_error(
                    ref, name, f"has {len(source)} images for {episode.num_frames} frames"
                )
            if column in self.layout.videos:
                count = episode.num_frames
                clip = source.clip if self.config.copy_videos else None
                copied = self._copied(clip, count)
                if copied is None:
                    sampled = lerobot_output.ImageStatistics()
                    encoded = self._encoded(column, source, count, sampled)
                    parts.stats[column] = sampled.entry()
                else:
                    encoded = copied
                    published = recording.statistics() if recording else {}
                    parts.stats[column] = lerobot_output.camera_entry(
                        published.get(column, {})
                    ) or _sampled(column, source, count)
                self._store_clip(ref, column, encoded, parts, copied=copied is not None)
            else:
                parts.images[column] = _stored_images(name, source, episode, column, parts)
        for column in self.layout.depth:
            self._copy_depth(ref, column, episode, recording, parts)
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
        columns = [
            _numbers(table.column(name), width) for name, width in self.layout.widths.items()
        ]
        arrays = {TASK_INDEX: table.column(TASK_INDEX).to_numpy()}
        return Receipt(
            ref.id,
            counts=counts,
            files=tuple(parts.files),
            findings=tuple(_left_out(episode, self.layout, is_copied=recording is not None)),
            facts=facts,
            arrays=arrays | (to_arrays(lerobot_output.rows_statistics(columns)) if columns else {}),
        )

    def _copied(self, clip: Clip | None, count: int) -> EncodedClip | None:
        if clip is None:
            return None
        try:
            return copy_clip(clip, count, self.layout.rate)
        except av.error.FFmpegError:
            return None  # decoding reports it with the frame

    def _encoded(
        self, feature: str, source: FrameSource, count: int, sampled: lerobot_output.ImageStatistics
    ) -> EncodedClip:
        chosen = {*lerobot_output.sampled_frames(count)}

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
        name = lerobot_output.part_video(ref.id, self.layout.camera_features.index(feature))
        write_bytes(self.output / name, clip.data)
        parts.files.append(file_entry(self.output, name))
        parts.cameras[feature] = {"kind": asdict(clip.kind), "delay": clip.delay, "copied": copied}

    def _write_rows(self, ref: EpisodeRef, table: pa.Table, parts: _Parts) -> None:
        name = lerobot_output.part_table(ref.id)
        with open_atomic(self.output / name) as file:
            writer: pq.ParquetWriter | None = None
            for group in _with_images(table, parts.images):
                writer = writer or pq.ParquetWriter(file, group.schema)
                writer.write_table(group, row_group_size=len(group))
            assert writer is not None, "an episode has rows"
            writer.close()
        parts.files.insert(0, replace(file_entry(self.output, name), samples=len(table)))


def copied_rows(
    recording: EpisodeFiles, episode: Episode, layout: SetLayout
) -> tuple[pa.Table, dict[int, str], Sequence[str]]:
    """Columns of a recording, sentences by the indices that rows use, and its listed sentences."""
    declared = dict(layout.columns)
    for name in (*layout.depth, *layout.labels):
        if name not in layout.videos:
            declared[name] = layout.features[name]
    rows = read_rows(recording.segment(), episode.id, [*declared, TASK_INDEX])
    table = rows.table
    arrays = {name: _cast(table, name, tree, rows.path) for name, tree in declared.items()}
    known = known_texts(recording)
    used: set[int] = set()
    for column in table.schema:
        is_task = column.name == TASK_INDEX or column.name.startswith(_ANNOTATION)
        if is_task and pa.types.is_integer(column.type):
            used |= {value for value in rows.values(column.name) if value is not None}
    tasks = {index: known[index] for index in sorted(used) if index in known}
    indices = table.column(TASK_INDEX) if TASK_INDEX in table.column_names and len(tasks) else None
    if indices is None or not {*indices.to_pylist()} <= {*tasks}:
        first = next((index for index, text in tasks.items() if text == episode.task), None)
        if first is None:
            first = max(tasks, default=-1) + 1
            tasks[first] = episode.task
        indices = pa.array(np.full(len(table), first, np.int64))
    arrays[TASK_INDEX] = pa.array(indices.to_numpy(), pa.int64())
    for name, texts in layout.texts.items():
        own = known_texts(recording, name)
        numbers = {text: number for number, text in texts.items()}
        column = arrays[name]
        values = [numbers[own[value]] if value in own else value for value in column.to_pylist()]
        arrays[name] = pa.chunked_array([pa.array(values, column.type)])
    return pa.table(arrays), tasks, recording.tasks


def _cast(table: pa.Table, name: str, declared: Mapping[str, Any], path: Path) -> pa.ChunkedArray:
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
        hint="repair the file, or exclude the episode with --exclude",
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
    """All instructions of an episode, else the name of its task; the index of that of each row."""
    rows = [episode.instruction_at(frame) for frame in range(episode.num_frames)]
    if not any(rows):
        rows = [episode.task] * episode.num_frames
    kinds = (episode.language.get(_ORIGINAL, ()), *episode.language.values())
    others = (text for texts in kinds for text in texts if text.strip())
    listed = [*dict.fromkeys((*rows, *others))]
    numbers = {text: index for index, text in enumerate(listed)}
    return listed, [numbers[text] for text in rows]


def _left_out(episode: Episode, layout: SetLayout, *, is_copied: bool) -> Iterator[Finding]:
    """What the layout has no place for; the columns of a recording are copied whole."""
    stored = {_ORIGINAL, *(PERSISTENT_STYLES if PERSISTENT in layout.features else ())}
    kinds = {span.kind for span in episode.language_spans} - stored
    if kinds and not is_copied:
        named = ", ".join(sorted(kinds))
        problem = f"left out: {named} of single frames; --sink lbm stores them"
        yield LEROBOT_SINK("left_out", f"{episode.id}: {problem}", episode=episode.id)
    depth = () if layout.depth else episode.depth
    labels = () if layout.labels else episode.labels
    parts = {"depth": depth, "labels": labels, "calibration": episode.calibration}
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
    for start in range(0, count, writing.FRAMES_PER_READ):
        yield from writing.read_frames(
            camera, source, range(start, min(start + writing.FRAMES_PER_READ, count))
        )


def _stored_images(
    camera: str, source: FrameSource, episode: Episode, feature: str, parts: _Parts
) -> Iterator[bytes]:
    """Image files of a camera; statistics and size are in `parts` once all are consumed."""
    chosen = {*lerobot_output.sampled_frames(episode.num_frames)}
    sampled = lerobot_output.ImageStatistics()
    writer = writing.ImageWriter(writing.ImageEncoding(None, "center_crop", "lanczos_vips"))
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
            code="data.mismatch",
            details={"camera": camera},
        )
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


def _sampled(camera: str, source: FrameSource, count: int) -> lerobot_output.Stats:
    sampled = lerobot_output.ImageStatistics()
    for frame in lerobot_output.sampled_frames(count):
        sampled.add(writing.read_frames(camera, source, [frame])[0])
    return sampled.entry()


def _camera_error(ref: EpisodeRef, camera: str, problem: str) -> DataError:
    return DataError(
        f"{ref.id}: camera {camera} {problem}",
        hint="choose with --camera-names, --exclude or --skip-episodes-missing-cameras",
        code="data.missing",
        details={"camera": camera},
    )
