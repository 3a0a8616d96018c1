"""Meta files of LeRobot data sets: info, names, and the lists of episodes, tasks and statistics.

v2.0 and v2.1 have JSON lines, v3.0 has tables. Names of dimensions come from features, or from the
groups of GR00T sets. Source: formats/lerobot 4.2, 4.3, 5, 9.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from vlatool.episode import Declaration, RowSegment
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.formats.lerobot import layout as lerobot_layout
from vlatool.formats.lerobot.findings import LEROBOT, METADATA
from vlatool.formats.lerobot.tables import (
    check_is_data_file,
    column_names,
    read_segment,
    table_columns,
)
from vlatool.storage.documents import MAX_BYTES, DocumentError, parse_json, read_document, read_json
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import can_list

_LARGEST_LIST = 2**28  # bytes; millions of episodes
_LARGEST_LINE = 2**22  # characters
LARGEST_COUNT = 2**63 - 1
_SLOWEST_FPS = 1e-3
_FASTEST_FPS = 1e5
_LONGEST_NAME = 200  # bytes; file names add a prefix and a suffix to it
_NUMERIC = re.compile(r"^(float|int|uint)\d*$")
# Keys of the 12-bit codes of depth videos. Source: formats/lerobot 4.1
_QUANTIZER = ("depth_min", "depth_max", "shift", "use_log", "depth_unit")


@dataclass(frozen=True)
class Feature:
    """Entry of `features`: type and shape of a column or a camera."""

    name: str  # name of the column or camera
    dtype: str  # type as declared
    # shape as declared; None if it is not a list of positive integers
    shape: tuple[int, ...] | None
    names: tuple[str, ...] = ()  # texts of `names` in order, at any depth, or names of groups
    is_depth: bool = False  # True if the images hold depth
    # of depth: how codes or values become meters, as declared; None where it is not
    quantizer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_labels: bool = False  # True if the images hold segmentation labels
    found: str = ""  # what its files say of depth or labels, where meta/info.json does not

    @property
    def is_camera(self) -> bool:
        return self.dtype in {"video", "image"}

    @property
    def is_number(self) -> bool:
        """True for integers and floats; False for booleans."""
        return _NUMERIC.match(self.dtype) is not None

    @property
    def is_readable_number(self) -> bool:
        """True if the values can be read as numbers; booleans can."""
        return self.is_number or self.dtype == "bool"

    @property
    def width(self) -> int | None:
        """Number of values per row of a scalar or vector; None if unknown or not a vector."""
        if self.shape is None or len(self.shape) > 1:
            return None
        return self.shape[0] if self.shape else 1

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """One name per value of a vector; empty if their numbers differ."""
        return self.names if len(self.names) == self.width else ()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) as declared; None if the order of the shape is unknown."""
        shape = self.shape
        if shape is None or len(shape) != 3:
            return None
        if {"height", "width"} <= set(self.names) and len(self.names) == 3:
            return shape[self.names.index("height")], shape[self.names.index("width")]
        if shape[2] in (1, 3, 4):
            return shape[0], shape[1]
        return (shape[1], shape[2]) if shape[0] in (1, 3, 4) else None


@dataclass(frozen=True)
class Info:
    """Content of `meta/info.json` that reading needs."""

    version: str  # `codebase_version` as written
    layout: str  # version of the layout of the files: `v2.0`, `v2.1` or `v3.0`
    fps: float  # frames per second, above zero
    robot_type: str  # free text; may be empty
    total_frames: int | None  # total as declared, or None
    chunks_size: int  # number of episodes per chunk, of files in v3.0
    data_path: str  # template of the paths of parquet files
    video_path: str  # template of the paths of videos
    features: Mapping[str, Feature]  # map from name to feature, in file order
    document: Mapping[str, Any]  # the whole content, as written

    @property
    def is_shared(self) -> bool:
        """True if a file may have several episodes."""
        return self.layout == "v3.0"


def read_info(root: Path) -> Info:
    path = root / lerobot_layout.INFO_FILE
    if not path.exists():
        layout_of(root)  # v1 has no such file
    tree = read_object(path)
    _check_storage(root, str(tree.get("storage_format") or "parquet"))
    version = str(tree.get("codebase_version") or "")
    layout = layout_of(root, version)
    is_shared = layout == "v3.0"
    features = tree.get("features")
    if not isinstance(features, Mapping) or not features:
        raise metadata_error(path, "features", "has no entries")
    parsed = [_feature(path, name, value) for name, value in cast(Any, features).items()]
    return Info(
        version=version,
        layout=layout,
        fps=_fps(path, tree.get("fps")),
        robot_type=str(tree.get("robot_type") or ""),
        total_frames=optional_int(tree.get("total_frames")),
        chunks_size=_chunks_size(path, tree.get("chunks_size")),
        data_path=str(
            tree.get("data_path")
            or (lerobot_layout.SHARED_DATA_PATH if is_shared else lerobot_layout.DATA_PATH)
        ),
        video_path=str(
            tree.get("video_path")
            or (lerobot_layout.SHARED_VIDEO_PATH if is_shared else lerobot_layout.VIDEO_PATH)
        ),
        features={feature.name: feature for feature in parsed},
        document=tree,
    )


def _check_storage(root: Path, storage: str) -> None:
    """Raises DataError if the rows are in no parquet files but in those of a database."""
    if storage.lower() != "parquet":
        raise DataError.at(
            root,
            f"is stored as {storage.capitalize()} tables",
            hint="export it with lerobot as parquet and videos, and read the export",
            code="data.unsupported",
            storage=storage,
        )


def layout_of(root: Path, version: str = "") -> str:
    """Version of the layout of the files, `v2.0`, `v2.1` or `v3.0`; what the set states is a hint.
    Source: formats/lerobot 1.
    """
    if next(iter(episode_tables(root)), None) is not None:
        return "v3.0"
    if (root / lerobot_layout.EPISODE_STATS_FILE).exists():
        return "v2.1"
    if (root / lerobot_layout.EPISODES_FILE).exists() or version.removeprefix("v").startswith("2"):
        return "v2.0"
    if not (root / lerobot_layout.INFO_FILE).exists() and (root / "meta_data").is_dir():
        raise _unsupported_error(root / "meta_data", "v1")
    if (root / lerobot_layout.EPISODES_FOLDER).is_dir() or version.removeprefix("v").startswith(
        "3"
    ):
        raise missing_list_error(root / lerobot_layout.EPISODES_FOLDER)
    raise _unsupported_error(root / lerobot_layout.INFO_FILE, version or "without a version")


def episode_tables(root: Path) -> Iterator[Path]:
    """Tables of the list of episodes of v3.0, in natural order. Where nothing can be listed, tables
    are expected to be numbered from 0 without a gap.
    """
    if can_list(root):
        yield from sorted(root.glob(lerobot_layout.EPISODES_TABLES), key=natural_key)
        return
    for chunk in count():
        files = (
            (
                root
                / lerobot_layout.EPISODES_FOLDER
                / f"chunk-{chunk:03d}"
                / f"file-{file:03d}.parquet"
            )
            for file in range(lerobot_layout.CHUNKS_SIZE)
        )
        existing = list(takewhile(Path.is_file, files))
        yield from existing
        if len(existing) < lerobot_layout.CHUNKS_SIZE:
            return


def missing_list_error(path: Path) -> DataError:
    """Error for a data set of v3.0 without a list of episodes, which alone names their clips."""
    tables = lerobot_layout.EPISODES_TABLES.removeprefix(lerobot_layout.EPISODES_FOLDER).lstrip("/")
    problem = f"has no {tables}, the list of episodes"
    return LEROBOT.error("missing_file", path, problem, hint="complete the download of meta/")


def _unsupported_error(path: Path, version: str) -> DataError:
    return DataError.at(
        path,
        f"LeRobot {version} cannot be read; v2.0, v2.1 and v3.0 can",
        hint="convert it with the LeRobot version that wrote it, or take a later revision",
        code="data.unsupported",
        version=version,
    )


def is_feature_name(name: str) -> bool:
    """True if a feature may have the name, which becomes part of file names."""
    return name.isprintable() and len(name.encode()) <= _LONGEST_NAME


def _feature(path: Path, name: str, value: object) -> Feature:
    tree = cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}
    if not is_feature_name(name):
        raise metadata_error(
            path, f"the feature {_shortened(name)}", "has a name that is not a valid file name"
        )
    if not isinstance(tree.get("dtype"), str):
        raise metadata_error(path, f"the feature {name!r}", "has no dtype")
    shape: Any = tree.get("shape")
    if not isinstance(shape, list) or not all(
        isinstance(size, int) and 1 <= _number(size) <= LARGEST_COUNT
        for size in cast(list[Any], shape)
    ):
        shape = None
    return Feature(
        name=name,
        dtype=tree["dtype"],
        shape=None if shape is None else tuple(shape),
        names=feature_names(tree.get("names")),
        is_depth=bool(_video_key(tree, "is_depth_map")),
        quantizer={key: _video_key(tree, key) for key in _QUANTIZER},
    )


def _video_key(tree: Mapping[str, Any], key: str) -> Any:
    """A fact on a video, which writers put in three places, with and without a prefix; else None.
    Source: formats/lerobot 4.1.
    """
    for section in (tree, _mapping(tree.get("info")), _mapping(tree.get("video_info"))):
        for name in (key, f"video.{key}"):
            if section.get(name) is not None and section[name] is not False:
                return section[name]
    return False if key in ("is_depth_map", "use_log") else None


def feature_names(value: object) -> tuple[str, ...]:
    """Texts of `names` of a feature; those of groups have the group before them unless unique.
    Source: formats/lerobot 4.2.
    """
    paths = list(_nested_texts(value))
    names = tuple(path[-1] for path in paths)
    return names if len(set(names)) == len(names) else tuple(".".join(path) for path in paths)


def _nested_texts(value: object, depth: int = 3) -> Iterator[tuple[str, ...]]:
    """Path of each text in nested lists and mappings; `{name: position}` gives the names."""
    if isinstance(value, str):
        yield (value,)
    elif isinstance(value, Mapping) and depth:
        for name, inner in cast(Mapping[str, Any], value).items():
            if isinstance(inner, int):
                yield (name,)
            else:
                yield from ((name, *path) for path in _nested_texts(inner, depth - 1))
    elif isinstance(value, list) and depth:
        for inner in cast(list[Any], value):
            yield from _nested_texts(inner, depth - 1)


def read_object(path: Path) -> Mapping[str, Any]:
    return _parse_object(path, _read_text(path))


def read_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and mapping of each line of a JSON-lines file that is not empty."""
    for number, line in enumerate(_read_text(path, _LARGEST_LIST).split("\n"), start=1):
        if len(line) > _LARGEST_LINE:
            raise metadata_error(path, "content", f"is a line of {len(line):,} characters", number)
        if line.strip():
            yield number, _parse_object(path, line, number)


def _read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    check_is_data_file(path, "LeRobot data set")
    try:
        return read_document(path, max_bytes=max_bytes)
    except (OSError, DocumentError) as error:
        raise metadata_error(path, "content", f"cannot be read: {error}") from error


def _parse_object(path: Path, text: str, line: int | None = None) -> Mapping[str, Any]:
    try:
        value = parse_json(text)
    except DocumentError as error:
        raise metadata_error(path, "content", f"cannot be read: {error.reason}", line) from error
    if not isinstance(value, dict):
        raise metadata_error(path, "content", "is not a JSON object", line)
    return cast(Mapping[str, Any], value)


def _fps(path: Path, value: object) -> float:
    rate = _number(value)
    if _SLOWEST_FPS <= rate <= _FASTEST_FPS:
        return float(rate)
    expected = f"a number from {_SLOWEST_FPS:g} to {_FASTEST_FPS:g}"
    raise metadata_error(path, "fps", f"is {_shortened(value)}; expected {expected}")


def _chunks_size(path: Path, value: object) -> int:
    size = _number(value or lerobot_layout.CHUNKS_SIZE)
    if 1 <= size <= LARGEST_COUNT and size == int(size):
        return int(size)
    raise metadata_error(
        path, "chunks_size", f"is {_shortened(value)}; expected a positive integer"
    )


def _number(value: object) -> int | float:
    """The value if it is a number and not a boolean, else 0."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def optional_int(value: object) -> int | None:
    """The value if it is an integer and not a boolean, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def texts(value: object) -> tuple[str, ...]:
    """The texts of a list, or the only one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        return ()
    return tuple(text for text in cast(list[object], value) if isinstance(text, str))


def metadata_error(path: Path, key: str, problem: str, line: int | None = None) -> DataError:
    """Error for an invalid value of a file in `meta/`; `line` is its line or row, from 1."""
    location = f"{path}" if line is None else f"{path}:{line}"
    return DataError(
        f"{location}: {key} {problem}",
        hint=METADATA,
        code="data.broken",
        details={"finding": "bad_metadata", "path": str(path), "field": key, "line": line},
    )


# Default column of the groups of a section.
_SECTIONS = {"state": "observation.state", "action": "action"}
_NUMBERED = re.compile(r"^(.*?)\d+$")


def with_group_names(root: Path, info: Info, findings: list[Finding]) -> Info:
    """The info, with the names of groups for features whose own names are only numbered."""
    groups: dict[str, dict[int, str]] = {}
    for _, column, name, start, end, _ in _groups(root, info, findings):
        for index in range(start, end):
            label = name if end - start == 1 else f"{name}.{index - start}"
            groups.setdefault(column, {})[index] = label
    named_features = {
        column: _with_names(info.features[column], names) for column, names in groups.items()
    }
    return replace(info, features={**info.features, **named_features})


def with_known_names(info: Info, known: Mapping[str, tuple[str, ...]]) -> Info:
    """The info, with names that the format knows for features without informative names."""
    named_features = {
        column: _with_names(info.features[column], dict(enumerate(names)))
        for column, names in known.items()
        if column in info.features and info.features[column].width == len(names)
    }
    return replace(info, features={**info.features, **named_features})


def _with_names(feature: Feature, names: Mapping[int, str]) -> Feature:
    own_names = feature.dimension_names
    width = feature.width
    if width is None or _are_informative(own_names):
        return feature
    default_names = own_names or [str(index) for index in range(width)]
    return replace(
        feature, names=tuple(names.get(index, default_names[index]) for index in range(width))
    )


def _are_informative(names: tuple[str, ...]) -> bool:
    """True if names say more than `motor_0`, `motor_1` and so on."""
    stems = {match[1] if (match := _NUMBERED.match(name)) else name for name in names}
    return len(stems) > 1 or (len(names) == 1 and stems == set(names))


_RELATIONS = {"True": "absolute", "False": "delta"}
# Values of `rotation_type` and the forms that they may mean: angles of fixed or of turning axes.
_ROTATION_TYPES: Mapping[str, tuple[str, ...]] = {
    "axis_angle": ("axis_angle",),
    "quaternion": ("quaternion_wxyz", "quaternion_xyzw"),
    "rotation_6d": ("rot_6d", "rot_6d_columns"),
    "matrix": ("matrix",),
    "euler_angles_rpy": ("euler_xyz", "euler_zyx"),
    "euler_angles_ryp": ("euler_xzy", "euler_yzx"),
    "euler_angles_pry": ("euler_yxz", "euler_zxy"),
    "euler_angles_pyr": ("euler_yzx", "euler_xzy"),
    "euler_angles_yrp": ("euler_zxy", "euler_yxz"),
    "euler_angles_ypr": ("euler_zyx", "euler_xyz"),
}


def declarations(root: Path, info: Info) -> tuple[Declaration, ...]:
    """Declarations of modality.json on the actions: `absolute` and `rotation_type` of groups."""
    return tuple(
        Declaration(
            column,
            start,
            end - 1,
            f"{lerobot_layout.MODALITY_FILE}: {name}",
            _RELATIONS.get(str(group.get("absolute")), ""),
            _ROTATION_TYPES.get(str(group.get("rotation_type")), ()),
        )
        for section, column, name, start, end, group in _groups(root, info, [])
        if section == "action" and ("absolute" in group or "rotation_type" in group)
    )


def _groups(
    root: Path, info: Info, findings: list[Finding]
) -> Iterator[tuple[str, str, str, int, int, Mapping[str, Any]]]:
    """(section, column, name, first dimension, end, entry) of the groups in modality.json that fit
    their columns; `findings` gets the others, and cameras and texts that the set does not have.
    """
    path = root / lerobot_layout.MODALITY_FILE
    try:
        tree = _mapping(read_json(path) if path.exists() else {})
    except (DocumentError, OSError) as error:
        findings.append(LEROBOT.at("bad_modality", path, f"cannot be read: {error}"))
        return
    for section, groups in tree.items():
        for name, value in _mapping(groups).items():
            group = _mapping(value)
            column = str(group.get("original_key") or _SECTIONS.get(section, ""))
            start = group.get("start")
            end = group.get("end")
            width = info.features[column].width if column in info.features else None
            problem = ""
            if column and column not in (*info.features, *lerobot_layout.AUTOMATIC):
                problem = f"is in {column}, which is no feature of {lerobot_layout.INFO_FILE}"
            elif section not in _SECTIONS:
                continue
            elif not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
                problem = f"has no range of dimensions, but start {start} and end {end}"
            elif width is None or end > width:
                size = f"has {width} dimensions" if width else "is no vector"
                problem = f"is {start} to {end} of {column}, which {size}"
            else:
                yield section, column, name, start, end, group
            if problem:
                name = f"{section}.{name}"
                findings.append(LEROBOT.at("bad_modality", path, f"{name} {problem}", field=name))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


Statistics = Mapping[str, Mapping[str, Any]]
_Columns = dict[str, list[Any]]

_STATS = "stats/"
_ROWS = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
_NEEDED = (lerobot_layout.EPISODE_INDEX, *_ROWS)
_OPTIONAL = ("length", "tasks")
_CLIP = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
_PREFIXES = (_STATS, "videos/", "data/", "meta/", "__")
_UNNAMED_INDEX = "__index_level_0__"  # of a pandas table, written by earlier versions


def read_episodes(root: Path, info: Info) -> list[lerobot_layout.EpisodeLine]:
    episodes: dict[int, lerobot_layout.EpisodeLine] = {}
    read = _lines_of_tables(root, info) if info.is_shared else _lines_of_text(root)
    for path, position, line in read:
        if not 0 <= line.number <= LARGEST_COUNT:
            raise metadata_error(
                path, lerobot_layout.EPISODE_INDEX, "is not an episode number", position
            )
        if line.number in episodes:
            raise metadata_error(
                path, lerobot_layout.EPISODE_INDEX, f"{line.number} appears twice", position
            )
        if line.length is not None and not 0 <= line.length <= LARGEST_COUNT:
            raise metadata_error(path, "length", "is not a number of frames", position)
        episodes[line.number] = line
    return [episodes[number] for number in sorted(episodes)]


def _lines_of_text(root: Path) -> Iterator[tuple[Path, int, lerobot_layout.EpisodeLine]]:
    """(file, number of the line, its content) of `meta/episodes.jsonl`."""
    path = root / lerobot_layout.EPISODES_FILE
    for position, line in read_lines(path):
        number = optional_int(line.get(lerobot_layout.EPISODE_INDEX))
        length = optional_int(line.get("length"))
        sentences = texts(line.get("tasks"))
        number = -1 if number is None else number
        entry = lerobot_layout.EpisodeLine(number, sentences, length, further=_further(line))
        yield path, position, entry


def _lines_of_tables(
    root: Path, info: Info
) -> Iterator[tuple[Path, int, lerobot_layout.EpisodeLine]]:
    """(file, number of the row from 1, its content) of the tables in `meta/episodes/`."""
    videos = [feature.name for feature in info.features.values() if feature.dtype == "video"]
    paths = list(episode_tables(root))
    if not paths:
        raise missing_list_error(root)
    names = [*_OPTIONAL, *(f"videos/{video}/{key}" for video in videos for key in _CLIP)]
    for path in paths:
        others = [name for name in column_names(path) or () if _is_further(name)]
        columns = _table(path, _NEEDED, [*names, *others])
        for row, number in enumerate(columns[lerobot_layout.EPISODE_INDEX]):
            chunk, file, start, stop = (columns[name][row] for name in _ROWS)
            clips = {video: clip for video in videos if (clip := _clip(columns, video, row))}
            line = lerobot_layout.EpisodeLine(
                number,
                texts(_cell(columns, "tasks", row)),
                optional_int(_cell(columns, "length", row)),
                lerobot_layout.Span(chunk, file, start, stop),
                clips,
                _further({name: columns[name][row] for name in others}),
            )
            yield path, row + 1, line


def _is_further(name: str) -> bool:
    known = (*lerobot_layout.AUTOMATIC, *_ROWS, *_OPTIONAL)
    return name not in known and not name.startswith(_PREFIXES)


def _further(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the list says of an episode and reading does not need; without empty values."""
    return {
        name: value if isinstance(value, bool | int | float | str) else None
        for name, value in values.items()
        if _is_further(name) and value is not None
    }


def _clip(columns: _Columns, video: str, row: int) -> lerobot_layout.Span | None:
    """The part of a video; None if the list names none."""
    values = [_cell(columns, f"videos/{video}/{key}", row) for key in _CLIP]
    if not all(isinstance(value, int | float) for value in values):
        return None
    chunk, file, start, stop = values
    is_numbered = isinstance(chunk, int) and isinstance(file, int)
    return lerobot_layout.Span(chunk, file, float(start), float(stop)) if is_numbered else None


def _cell(columns: _Columns, name: str, row: int) -> Any:
    return columns[name][row] if name in columns else None


def _table(path: Path, needed: Sequence[str], optional: Sequence[str] | None = ()) -> _Columns:
    """Values of columns of a table in `meta/`, the needed ones integers; without `optional` all."""
    check_is_data_file(path, "LeRobot data set")
    try:
        names = None if optional is None else [*needed, *optional]
        columns: _Columns = read_segment(RowSegment(path), names).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise metadata_error(path, "content", f"cannot be read: {error}") from error
    for name in needed:
        if name not in columns:
            raise metadata_error(path, name, "has no column")
        row = next((n for n, value in enumerate(columns[name], 1) if not _is_int(value)), None)
        if row is not None:
            raise metadata_error(path, name, "is not a number", row)
    return columns


def _is_int(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST_COUNT


def read_tasks(root: Path, info: Info) -> Mapping[int, str]:
    """Map from task index to sentence; empty without a list of tasks."""
    path = root / (lerobot_layout.TASKS_TABLE if info.is_shared else lerobot_layout.TASKS_FILE)
    return read_texts(path, "task") if path.exists() else {}


def texts_path(root: Path, column: str) -> Path | None:
    """Table of the texts that the numbers of a column `NAME_index` stand for, such as
    `meta/subtasks.parquet`; None if there is none.
    """
    name = text_kind(column)
    if column in lerobot_layout.AUTOMATIC or not column.endswith("_index"):
        return None
    for suffix in (".parquet", ".jsonl"):
        path = root / "meta" / f"{name}s{suffix}"
        if path.is_file():
            return path
    return None


def text_kind(column: str) -> str:
    """`NAME` of a column `NAME_index`, which may have groups before it."""
    return column.rpartition(".")[2].removesuffix("_index")


def read_texts(path: Path, name: str) -> Mapping[int, str]:
    """Map from `NAME_index` to the text of a table with both."""
    return _texts(path, name, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)  # each episode needs it
def _texts(path: Path, name: str, changed: int) -> Mapping[int, str]:
    if path.name.endswith(".parquet"):
        return _texts_of_table(path, name)
    found: dict[int, str] = {}
    for position, line in read_lines(path):
        number = optional_int(line.get(f"{name}_index"))
        text = line.get(name)
        if number is None or not isinstance(text, str):
            problem = "are not a number and a sentence"
            raise metadata_error(path, f"{name}_index, {name}", problem, position)
        found[number] = text
    return found


def _texts_of_table(path: Path, name: str) -> dict[int, str]:
    """Texts of a table such as `meta/tasks.parquet`, which may be the index of a pandas table."""
    key = f"{name}_index"
    columns = _table(path, [key], None)
    others = [other for other in columns if other != key]
    known = [other for other in (name, _UNNAMED_INDEX) if other in others]
    if not known and len(others) != 1:
        raise metadata_error(path, name, "has no column")
    column = (known or others)[0]
    for row, text in enumerate(columns[column], 1):
        if not isinstance(text, str):
            raise metadata_error(path, column, "is not a sentence", row)
    return dict(zip(columns[key], columns[column], strict=True))


def episode_statistics(root: Path, info: Info) -> Mapping[int, Statistics]:
    """Map from episode to its published statistics; empty if they are missing or broken. Statistics
    are a map from feature to `min`, `max`, `mean`, `std`, `count` and others.
    """
    if info.is_shared:
        paths = tuple(episode_tables(root))
    else:
        paths = tuple(path for path in [root / lerobot_layout.EPISODE_STATS_FILE] if path.is_file())
    return _episode_statistics(paths, tuple(path.stat().st_mtime_ns for path in paths))


@lru_cache(maxsize=4)  # each episode needs its entry
def _episode_statistics(
    paths: tuple[Path, ...], changed: tuple[int, ...]
) -> Mapping[int, Statistics]:
    try:
        if any(path.name.endswith(".parquet") for path in paths):
            return {number: stats for path in paths for number, stats in _table_statistics(path)}
        return {
            tree[lerobot_layout.EPISODE_INDEX]: feature_statistics(tree.get("stats"))
            for path in paths
            for _, tree in read_lines(path)
            if isinstance(tree.get(lerobot_layout.EPISODE_INDEX), int)
        }
    except DataError:
        return {}


def _table_statistics(path: Path) -> Iterator[tuple[int, Statistics]]:
    """(episode, statistics) of each row; a column is named `stats/FEATURE/KEY`."""
    names = [name for name in table_columns(path) if name.startswith(_STATS)]
    columns = _table(path, [lerobot_layout.EPISODE_INDEX], names)
    for row, number in enumerate(columns[lerobot_layout.EPISODE_INDEX]):
        stats: dict[str, dict[str, Any]] = {}
        for name in names:
            feature, _, key = name.removeprefix(_STATS).rpartition("/")
            if (value := _cell(columns, name, row)) is not None:
                stats.setdefault(feature, {})[key] = value
        yield number, stats


def feature_statistics(tree: object) -> Statistics:
    if not isinstance(tree, dict):
        return {}
    return {str(name): entry for name, entry in tree.items() if isinstance(entry, dict)}
