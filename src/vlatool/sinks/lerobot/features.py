"""Columns and cameras of a written LeRobot set, from the survey or from the sets that are merged.

Source: formats/lerobot 4; formats/lerobot-writing 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from textwrap import shorten
from typing import Any

import pyarrow as pa

from vlatool.artifacts.lerobot.format import AUTOMATIC, automatic_features, feature
from vlatool.artifacts.lerobot.output import numeric_width
from vlatool.artifacts.lerobot.recording import LeRobotRecording, declared_features, stored_columns
from vlatool.episode import EpisodeRef, FieldSpec
from vlatool.errors import DataError
from vlatool.pages.text import few_text
from vlatool.sinks.base import SinkSetup
from vlatool.sinks.lerobot.config import LeRobotSinkConfig

_STATE, _ACTION, _CAMERAS = "observation.state", "action", "observation.images."
_CAMERA_TYPES = ("video", "image")
_LONGEST_VALUE = 60  # characters
# Frame rates with a fraction, such as 29.97, are 30000/1001.
_LARGEST_DENOMINATOR = 1001


@dataclass(frozen=True)
class SetLayout:
    """Columns and cameras of a written set, equal for all its episodes; picklable.

    Attributes:
        rate: Frames per second.
        features: Declarations in order, automatic columns included, cameras as far as known.
        sources: Map from column to the fields that are joined in it; empty: columns are copied.
        cameras: Map from camera of the episodes to its feature.
        depth: Depth cameras of the source, which are copied.
        videos: Features that are stored as videos.
        field_widths: Map from field to its width.
    """

    rate: Fraction
    features: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, Sequence[str]]
    cameras: Mapping[str, str]
    depth: tuple[str, ...] = ()
    videos: frozenset[str] = field(default_factory=frozenset[str])
    field_widths: Mapping[str, int] = field(default_factory=dict[str, int])

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
        """All cameras, depth cameras last."""
        return (*self.cameras.values(), *self.depth)

    @property
    def widths(self) -> dict[str, int]:
        """Map from numeric column to its number of values per row."""
        widths = {name: numeric_width(declared) for name, declared in self.columns.items()}
        return {name: width for name, width in widths.items() if width is not None}


def recordings_of(refs: Sequence[EpisodeRef]) -> list[LeRobotRecording]:
    """Recordings of the episodes if all come from LeRobot data sets, else none."""
    recordings = [ref.extras.get("recording") for ref in refs]
    known = [value for value in recordings if isinstance(value, LeRobotRecording)]
    return known if len(known) == len(refs) else []


def one_per_set(recordings: Sequence[LeRobotRecording]) -> list[LeRobotRecording]:
    """The first recording of each data set."""
    return [*{recording.root: recording for recording in reversed(recordings)}.values()][::-1]


def set_layout(
    config: LeRobotSinkConfig,
    setup: SinkSetup,
    actions: Sequence[str],
    sets: Sequence[LeRobotRecording],
) -> SetLayout:
    """Columns and cameras of the output.

    Args:
        config: Options of the sink.
        setup: Survey and episodes.
        actions: Fields of an action.
        sets: A recording of each data set; empty for other sources.

    Raises:
        DataError: The frame rates or the features of the sources differ.
    """
    if setup.survey.fps is None:
        rates = [f"{recording.root}: {recording.document.get('fps')}" for recording in sets]
        known = f" (fps {few_text(rates)})" if rates else ""
        raise _merge_error(f"the episodes have different frame rates{known}", ["fps"])
    rate = Fraction(setup.survey.fps).limit_denominator(_LARGEST_DENOMINATOR)
    if sets:
        return _copied_layout(config, setup, sets, rate)
    return _made_layout(config, setup, actions, rate)


def _made_layout(
    config: LeRobotSinkConfig, setup: SinkSetup, actions: Sequence[str], rate: Fraction
) -> SetLayout:
    """Observed fields are joined to `observation.state`, predicted ones to `action`."""
    survey = setup.survey
    joined = {_STATE: survey.proprioception_fields, _ACTION: actions}
    sources = {column: tuple(fields) for column, fields in joined.items() if fields}
    used = {name for fields in sources.values() for name in fields}
    sources |= {name.replace("/", "."): (name,) for name in survey.fields if name not in used}
    features: dict[str, Any] = {}
    for column, fields in sources.items():
        specs = [(name, survey.fields[name]) for name in fields]
        width = sum(spec.width for _, spec in specs)
        names = [
            label for name, spec in specs for label in _labels(name, spec, is_joined=len(specs) > 1)
        ]
        dtype = "float32" if width else "string"
        features[column] = feature(dtype, [width or 1], names or None)
    cameras = {name: f"{_CAMERAS}{name}" for name in survey.cameras}
    videos = frozenset(() if config.use_videos is False else cameras.values())
    for name, column in cameras.items():
        height, width = survey.cameras[name] or (0, 0)
        features[column] = feature("", [height, width, 3], ["height", "width", "channels"])
    features |= automatic_features()
    widths = _widths(setup)
    return SetLayout(rate, features, sources, cameras, videos=videos, field_widths=widths)


def _widths(setup: SinkSetup) -> dict[str, int]:
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
    config: LeRobotSinkConfig, setup: SinkSetup, sets: Sequence[LeRobotRecording], rate: Fraction
) -> SetLayout:
    cameras = {name: name for name in setup.survey.cameras}
    _check_equal(sets, tuple(cameras))
    declared = declared_features(sets[0])
    stored = _stored_schema(sets[0])
    depth = tuple(
        name
        for name, feature in declared.items()
        if _is_depth(feature)
        and (name in sets[0].clips or name in (stored.names if stored else ()))
    )
    features: dict[str, Any] = {}
    for name, tree in declared.items():
        is_camera = tree.get("dtype") in _CAMERA_TYPES
        is_stored = stored is None or name in stored.names or name in AUTOMATIC
        if name in (*cameras, *depth) or (not is_camera and is_stored):
            features[name] = dict(tree)
    for column in stored if stored else ():
        if column.name not in declared and not column.name.startswith("__"):
            features[column.name] = _declared(column.type)
    videos = {name for name in (*cameras, *depth) if declared[name].get("dtype") == "video"}
    if config.use_videos is not None:
        videos = {*(cameras if config.use_videos else ()), *(videos & {*depth})}
    features |= automatic_features()
    return SetLayout(rate, features, {}, cameras, depth, frozenset(videos), _widths(setup))


def _stored_schema(recording: LeRobotRecording) -> pa.Schema | None:
    """Columns of the first file; None if it cannot be read, which reading the episode reports."""
    try:
        return stored_columns(recording)
    except (pa.ArrowException, OSError):
        return None


def _declared(dtype: pa.DataType) -> dict[str, Any]:
    """Declaration of a column that the source does not declare."""
    types, shape = pa.types, [1]
    while types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        shape = [dtype.list_size] if types.is_fixed_size_list(dtype) else [-1]
        dtype = dtype.value_type
    is_number = types.is_integer(dtype) or types.is_floating(dtype) or types.is_boolean(dtype)
    name = str(dtype) if is_number else "string" if types.is_string(dtype) else "language"
    names = {"double": "float64", "float": "float32", "halffloat": "float16"}
    return feature(names.get(name, name), shape)


def _is_depth(declared: Mapping[str, Any]) -> bool:
    sections = (declared, declared.get("info"), declared.get("video_info"))
    return declared.get("dtype") in _CAMERA_TYPES and any(
        bool(section.get("is_depth_map") or section.get("video.is_depth_map"))
        for section in sections
        if isinstance(section, Mapping)
    )


def _check_equal(sets: Sequence[LeRobotRecording], cameras: Sequence[str]) -> None:
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


def _comparable(recording: LeRobotRecording, cameras: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Map from feature to what is equal in data sets that can be merged."""
    declared = {
        name: {"type": tree.get("dtype"), "shape": tree.get("shape"), "names": tree.get("names")}
        for name, tree in declared_features(recording).items()
        if name not in AUTOMATIC
    }
    is_camera = {name: tree["type"] in _CAMERA_TYPES for name, tree in declared.items()}
    return {
        name: {"type": "camera", "shape": tree["shape"]} if is_camera[name] else tree
        for name, tree in declared.items()
        if name in cameras or not is_camera[name]
    }


def _difference(name: str, here: Mapping[str, Any] | None, there: Mapping[str, Any] | None) -> str:
    """Text on a feature that differs from that of the first data set."""
    if here is None or there is None:
        return f"it lacks {name!r}" if here is None else f"it has {name!r}, too"
    key = next(key for key in here if here.get(key) != there.get(key))
    value, expected = here[key], there[key]
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected) > 3:
        index = next(i for i, item in enumerate(value) if item != expected[i])
        key, value, expected = f"{key}[{index}]", value[index], expected[index]
    shown = [shorten(str(item), _LONGEST_VALUE) for item in (value, expected)]
    return f"{name!r} has the {key} {shown[0]}, not {shown[1]}"


def _merge_error(problem: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"{problem}; they cannot be in one data set",
        hint="write them to separate outputs; cameras that all have are chosen by --camera-names",
        code="data.cannot_merge",
        details={"field": names[0], "fields": [*names]},
    )
