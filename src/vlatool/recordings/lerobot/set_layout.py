"""Options of the `lerobot` sink, and the columns and cameras that all episodes of a set have.

Fields of other formats are joined to `observation.state` and `action`. Episodes of LeRobot sets are
copied column by column; several sets become one if they declare the same columns and cameras.
Source: formats/lerobot 4; formats/lerobot-writing 1, 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.config.base import option
from vlatool.episode import FieldSpec
from vlatool.errors import DataError
from vlatool.recordings import writing
from vlatool.recordings.lerobot.folder import EpisodeFiles, known_texts
from vlatool.recordings.lerobot.layout import (
    AUTOMATIC,
    CHUNKS_SIZE,
    PERSISTENT,
    PERSISTENT_STYLES,
    Version,
    automatic_features,
    feature,
)
from vlatool.recordings.lerobot.meta import is_feature_name
from vlatool.recordings.lerobot.output import numeric_width
from vlatool.report.text import few_text
from vlatool.storage.uri import as_native_file

CAMERAS = "observation.images."
_STATE = "observation.state"
_ACTION = "action"
_CAMERA_TYPES = ("video", "image")
_LONGEST_VALUE = 60  # characters
# Frame rates with a fraction, such as 29.97, are 30000/1001.
_LARGEST_DENOMINATOR = 1001


VideoPreset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


class LeRobotSinkConfig(writing.SinkConfig):
    """Options of the sink `lerobot`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "layout_version", "robot_type", "modality"),
        "Images": ("use_videos", "copy_videos", "video_crf", "video_preset", "keyframe_interval"),
        "Files": ("data_files_size_in_mb", "video_files_size_in_mb", "chunks_size"),
    }

    newer: ClassVar[Mapping[str, Any]] = {
        "video_preset": "medium",
        "resize_images_size": None,
        "image_resizing_method": "center_crop",
        "image_resizing_filter": "lanczos_vips",
    }

    type: Literal["lerobot"] = option("lerobot", "Form of the output: a LeRobot data set.")
    layout_version: Version = option("v3.0", "Version of the LeRobot layout to write.")
    robot_type: str | None = option(
        None, "Name of the robot in meta/info.json; null keeps the name in a LeRobot source."
    )
    modality: bool = option(False, "Write meta/modality.json, which GR00T reads.")
    use_videos: bool | None = option(
        None,
        "true stores cameras as videos, false as images in the table; null does what a LeRobot "
        "source does, and writes videos for other sources.",
    )
    copy_videos: bool = option(
        True, "Copy encoded video if it needs no change; false always encodes it anew."
    )
    resize_images_size: writing.ImageSize = None
    image_resizing_method: writing.ResizingMethod = "center_crop"
    image_resizing_filter: writing.ResizingFilter = "lanczos_vips"
    video_crf: int = option(17, "Quality of encoded videos (CRF); lower is better.", ge=0, le=51)
    video_preset: VideoPreset = option(
        "veryfast", "Effort of the video encoder, x264; slower presets give smaller files."
    )
    keyframe_interval: int = option(
        2, "Frames between keyframes; with low numbers, single frames are read faster.", ge=1
    )
    data_files_size_in_mb: int = option(100, "Largest size of a data file in MiB (v3.0).", ge=1)
    video_files_size_in_mb: int = option(200, "Largest size of a video in MiB (v3.0).", ge=1)
    chunks_size: int = option(
        CHUNKS_SIZE, "Most files in a folder (v3.0), or most episodes in it (v2.1).", ge=1
    )


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
    # map from column of numbers besides tasks to the texts that they stand for
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])

    @property
    def camera_features(self) -> tuple[str, ...]:
        """All cameras; depth and labels come last."""
        return (*self.cameras.values(), *self.depth, *self.labels)

    @property
    def columns(self) -> dict[str, Mapping[str, Any]]:
        """Declarations of the columns besides automatic ones and cameras."""
        columns = dict(self.features)
        for name in (*AUTOMATIC, *self.camera_features):
            columns.pop(name, None)
        return columns

    @property
    def widths(self) -> dict[str, int]:
        """Map from numeric column to its number of values per row."""
        widths: dict[str, int] = {}
        for name, declared in self.columns.items():
            width = numeric_width(declared)
            if width is not None:
                widths[name] = width
        return widths


def copied_sets(setup: writing.SinkSetup) -> list[EpisodeFiles]:
    """The first recording of each data set whose columns are copied.

    Empty if an episode is of no LeRobot set, or has the names of a mapping or of `--rename`.
    """
    by_root: dict[Path, EpisodeFiles] = {}
    for ref in setup.refs:
        recording = ref.extras.get("recording")
        if not isinstance(recording, EpisodeFiles):
            return []
        by_root.setdefault(recording.root, recording)
    new_names = {*setup.survey.cameras, *setup.survey.fields}
    for recording in by_root.values():
        new_names.difference_update(recording.dataset.info.features)
    return [] if new_names else list(by_root.values())


def set_layout(
    config: LeRobotSinkConfig,  # options of the sink
    setup: writing.SinkSetup,  # survey and episodes
    actions: Sequence[str],  # fields of an action
    sets: Sequence[EpisodeFiles],  # A recording of each data set; empty for other sources
) -> SetLayout:
    """Columns and cameras of the output; raises DataError if the episodes do not fit together."""
    if setup.survey.fps is None:
        rates = {recording.document.get("fps") for recording in sets}
        if len(rates) < 2:
            raise writing.no_rate("sink lerobot")
        rows = [f"{recording.root}: {recording.document.get('fps')}" for recording in sets]
        reason = f"your data sets have different frame rates (fps): {few_text(rows)}"
        raise _merge_error(reason, ["fps"])
    rate = Fraction(setup.survey.fps).limit_denominator(_LARGEST_DENOMINATOR)
    if sets:
        return _copied_layout(config, tuple(setup.survey.cameras), sets, rate)
    return _joined_layout(config, setup, actions, rate)


def _joined_layout(
    config: LeRobotSinkConfig, setup: writing.SinkSetup, actions: Sequence[str], rate: Fraction
) -> SetLayout:
    """Observed fields are joined to `observation.state`, actions to `action`; others stay alone."""
    survey = setup.survey
    writing.check_sizes(survey, config.resize_images_size)
    new_size = writing.height_and_width(config.resize_images_size)
    sources: dict[str, tuple[str, ...]] = {}
    if survey.proprioception_fields:
        sources[_STATE] = tuple(survey.proprioception_fields)
    if actions:
        sources[_ACTION] = tuple(actions)
    joined = {*survey.proprioception_fields, *actions}
    for name in survey.fields:
        if name in joined:
            continue
        column = name.replace("/", ".")
        if column in sources:
            raise DataError(
                f"the field {name!r} would get the same column as {few_text(sources[column])}",
                hint=f"give the field another name: --rename fields.NEW={name}",
                code="data.broken",
            )
        sources[column] = (name,)

    features: dict[str, Any] = {}
    for column, fields in sources.items():
        _check_name(column, f"fields.NEW={fields[0]}")
        width = 0
        labels: list[str] = []
        for name in fields:
            width += survey.fields[name].width
            labels += _labels(name, survey.fields[name], is_joined=len(fields) > 1)
        dtype = "float32" if width else "string"
        features[column] = feature(dtype, [width or 1], labels or None)

    cameras: dict[str, str] = {}
    for name, size in survey.cameras.items():
        column = f"{CAMERAS}{name.removeprefix(CAMERAS)}"
        _check_name(column, f"cameras.NEW={name}")
        cameras[name] = column
        height, width = new_size or size or (0, 0)
        features[column] = feature("", [height, width, 3], ["height", "width", "channels"])
    videos: frozenset[str] = frozenset()
    if config.use_videos is not False:
        videos = frozenset(cameras.values())

    if config.layout_version == "v3.0" and {*survey.text_kinds} & {*PERSISTENT_STYLES}:
        features[PERSISTENT] = feature("language", [1])
    features |= automatic_features()
    return SetLayout(rate, features, sources, cameras, videos=videos)


def _check_name(column: str, change: str) -> None:
    """Raises DataError if LeRobot does not accept this name of a feature."""
    if not is_feature_name(column):
        raise DataError(
            f"{column[:40]!r} ({len(column.encode())} bytes) cannot name a LeRobot feature",
            hint=f"choose a name of at most 180 printable characters: --rename {change[:60]!r}",
            code="data.bad_name",
        )


def _labels(name: str, spec: FieldSpec, *, is_joined: bool) -> list[str]:
    """Returns names of the dimensions of a field; in a joined column they start with the field."""
    if not is_joined:
        return list(spec.names or ())
    if spec.width == 1:
        return [name]
    dimensions = spec.names or range(spec.width)
    return [f"{name}.{dimension}" for dimension in dimensions]


def _copied_layout(
    config: LeRobotSinkConfig,
    camera_names: Sequence[str],
    sets: Sequence[EpisodeFiles],
    rate: Fraction,
) -> SetLayout:
    """Columns as the first data set declares and stores them."""
    _check_equal(sets, camera_names)
    first = sets[0]
    schema = _stored_schema(first)
    stored_names = schema.names if schema is not None else []
    depth: list[str] = []
    labels: list[str] = []
    for name, known in first.dataset.info.features.items():
        is_stored = name in stored_names
        if known.is_camera and known.is_depth and (is_stored or name in first.clips):
            depth.append(name)
        if known.is_labels and is_stored:
            labels.append(name)

    declarations: Mapping[str, Any] = first.document["features"]
    features: dict[str, Any] = {}
    for name, declared in declarations.items():
        if declared.get("dtype") in _CAMERA_TYPES:
            is_copied = name in (*camera_names, *depth, *labels)
        else:
            is_copied = schema is None or name in stored_names or name in AUTOMATIC
        if is_copied:
            features[name] = dict(declared)
    for column in schema if schema is not None else ():
        if column.name not in declarations and not column.name.startswith("__"):
            features[column.name] = _declared(column.type)
    features |= automatic_features()

    videos: set[str] = set()
    for name in camera_names:
        is_video = declarations[name].get("dtype") == "video"
        if config.use_videos or (config.use_videos is None and is_video):
            videos.add(name)
    for name in depth:  # never encoded anew
        if declarations[name].get("dtype") == "video":
            videos.add(name)
    return SetLayout(
        rate,
        features,
        sources={},
        cameras={name: name for name in camera_names},
        depth=tuple(depth),
        labels=tuple(labels),
        videos=frozenset(videos),
        texts=_merged_texts(sets, features),
    )


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
    if types.is_integer(dtype) or types.is_boolean(dtype):
        return feature(str(dtype), shape)
    if types.is_floating(dtype):
        names = {"double": "float64", "float": "float32", "halffloat": "float16"}
        return feature(names[str(dtype)], shape)
    return feature("string" if types.is_string(dtype) else "language", shape)


def _merged_texts(
    sets: Sequence[EpisodeFiles], features: Mapping[str, Any]
) -> dict[str, dict[int, str]]:
    """Merges the texts by number of all data sets, per column; a text keeps its first number.

    Raises DataError if only some of the data sets have a table of texts for a column.
    """
    columns: set[str] = set()
    for recording in sets:
        columns.update(recording.dataset.text_tables)
    merged: dict[str, dict[int, str]] = {}
    for column in sorted(columns):
        if column not in features:
            continue
        texts: dict[int, str] = {}
        for recording in sets:
            if column not in recording.dataset.text_tables:
                raise _merge_error(f"{recording.root} has no texts for {column}", [column])
            for number, text in known_texts(recording, column).items():
                if text in texts.values():
                    continue
                if number in texts:
                    number = max(texts) + 1
                texts[number] = text
        merged[column] = texts
    return merged


def _check_equal(sets: Sequence[EpisodeFiles], cameras: Sequence[str]) -> None:
    """Raises DataError unless all data sets declare the same columns and cameras."""
    first = sets[0]
    expected = _comparable(first, cameras)
    for other in sets[1:]:
        actual = _comparable(other, cameras)
        differing: list[str] = []
        problems: list[str] = []
        for name in {**expected, **actual}:
            if expected.get(name) != actual.get(name):
                differing.append(name)
                problems.append(_difference(name, actual.get(name), expected.get(name)))
        if differing:
            reason = f"{other.root} does not fit {first.root}: {'; '.join(problems)}"
            raise _merge_error(reason, differing)


def _comparable(recording: EpisodeFiles, cameras: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What data sets must agree in, by column, camera and depth camera."""
    comparable: dict[str, dict[str, Any]] = {}
    for name, declared in recording.document["features"].items():
        feature = recording.dataset.info.features[name]
        shape = declared.get("shape")
        if feature.is_camera and feature.is_depth:
            comparable[name] = {"type": "depth", "shape": shape, **feature.quantizer}
        elif feature.is_labels:
            comparable[name] = {"type": "labels", "shape": shape}
        elif feature.is_camera and name in cameras:
            comparable[name] = {"type": "camera", "shape": shape}
        elif not feature.is_camera and name not in AUTOMATIC:
            names = declared.get("names")
            comparable[name] = {"type": feature.dtype, "shape": shape, "names": names}
    return comparable


def _difference(
    name: str, actual: Mapping[str, Any] | None, expected: Mapping[str, Any] | None
) -> str:
    """Says how a feature differs from the same feature of the first data set."""
    if actual is None:
        return f"it has no {name!r}"
    if expected is None:
        return f"it has {name!r}, which the first has not"
    key = next(key for key in actual if actual.get(key) != expected.get(key))
    value = actual[key]
    other = expected[key]
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other) > 3:
        index = 0
        while value[index] == other[index]:
            index += 1
        key = f"{key}[{index}]"
        value = value[index]
        other = other[index]
    shown = shorten(str(value), _LONGEST_VALUE)
    return f"its {name!r} has {key} {shown}, not {shorten(str(other), _LONGEST_VALUE)}"


def _merge_error(problem: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"{problem}; one data set cannot hold both",
        hint="write them to separate outputs, or use cameras that all have with --camera-names",
        code="data.mismatch",
        details={"field": names[0], "fields": [*names]},
    )
