"""Meta files of LeRobot data sets: `info.json`, names of dimensions, and the reading of JSON.

Names of dimensions come from features, or from the groups of GR00T sets in `modality.json`. Source:
formats/lerobot 4.2, 4.3, 5.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

from vlatool.episode import Declaration
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.recordings.inventory import says_labels
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot.findings import LEROBOT, METADATA
from vlatool.recordings.lerobot.tables import check_is_data_file
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
        if len(self.names) == 3 and "height" in self.names and "width" in self.names:
            return shape[self.names.index("height")], shape[self.names.index("width")]
        if shape[2] in (1, 3, 4):
            return shape[0], shape[1]
        if shape[0] in (1, 3, 4):
            return shape[1], shape[2]
        return None


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
    """Content of `meta/info.json`; raises DataError if it is missing, invalid or of v1."""
    path = root / lerobot_layout.INFO_FILE
    if not path.exists():
        layout_of(root)  # v1 has no such file
    tree = read_object(path)
    storage = str(tree.get("storage_format") or "parquet")
    if storage.lower() != "parquet":  # rows are in a database
        raise DataError.at(
            root,
            f"stores its rows in {storage.capitalize()} tables, which vlatool cannot read",
            hint="export the data set with lerobot as parquet and videos, and use the export",
            code="data.unsupported",
            storage=storage,
        )
    version = str(tree.get("codebase_version") or "")
    layout = layout_of(root, version)
    data_path = lerobot_layout.DATA_PATH
    video_path = lerobot_layout.VIDEO_PATH
    if layout == "v3.0":
        data_path = lerobot_layout.SHARED_DATA_PATH
        video_path = lerobot_layout.SHARED_VIDEO_PATH
    declared = tree.get("features")
    if not isinstance(declared, Mapping) or not declared:
        raise metadata_error(path, "features", "has no entries")
    features: dict[str, Feature] = {}
    for name, value in cast(Any, declared).items():
        features[name] = _feature(path, name, value)
    return Info(
        version=version,
        layout=layout,
        fps=_fps(path, tree.get("fps")),
        robot_type=str(tree.get("robot_type") or ""),
        total_frames=optional_int(tree.get("total_frames")),
        chunks_size=_chunks_size(path, tree.get("chunks_size")),
        data_path=str(tree.get("data_path") or data_path),
        video_path=str(tree.get("video_path") or video_path),
        features=features,
        document=tree,
    )


def layout_of(root: Path, version: str = "") -> str:
    """Returns the version of the layout, `v2.0`, `v2.1` or `v3.0`, as the files show it.

    The version that the data set states is only a hint. Source: formats/lerobot 1.
    """
    if any(True for _ in episode_tables(root)):
        return "v3.0"
    if (root / lerobot_layout.EPISODE_STATS_FILE).exists():
        return "v2.1"
    stated = version.removeprefix("v")
    if (root / lerobot_layout.EPISODES_FILE).exists() or stated.startswith("2"):
        return "v2.0"
    if not (root / lerobot_layout.INFO_FILE).exists() and (root / "meta_data").is_dir():
        raise _unsupported_error(root / "meta_data", "v1")
    folder = root / lerobot_layout.EPISODES_FOLDER
    if folder.is_dir() or stated.startswith("3"):
        raise missing_list_error(folder)
    raise _unsupported_error(root / lerobot_layout.INFO_FILE, version or "without a version")


def episode_tables(root: Path) -> Iterator[Path]:
    """Yields the tables of the list of episodes of v3.0, in natural order.

    If folders cannot be listed, tables must be numbered from 0 without a gap.
    """
    if can_list(root):
        yield from sorted(root.glob(lerobot_layout.EPISODES_TABLES), key=natural_key)
        return
    for chunk in count():
        folder = root / lerobot_layout.EPISODES_FOLDER / f"chunk-{chunk:03d}"
        for number in range(lerobot_layout.CHUNKS_SIZE):
            path = folder / f"file-{number:03d}.parquet"
            if not path.is_file():
                return
            yield path


def missing_list_error(path: Path) -> DataError:
    """Returns the error for a data set of v3.0 without its list of episodes."""
    tables = lerobot_layout.EPISODES_TABLES.removeprefix(lerobot_layout.EPISODES_FOLDER).lstrip("/")
    problem = f"has no {tables}: the list of episodes is missing"
    return LEROBOT.error("missing_file", path, problem, hint="complete the download of meta/")


def _unsupported_error(path: Path, version: str) -> DataError:
    return DataError.at(
        path,
        f"has the LeRobot format {version}; vlatool reads v2.0, v2.1 and v3.0",
        hint="convert it with lerobot, or download a later revision of the data set",
        code="data.unsupported",
        version=version,
    )


def is_feature_name(name: str) -> bool:
    """True if a feature may have the name, which becomes part of file names."""
    return name.isprintable() and len(name.encode()) <= _LONGEST_NAME


def _feature(path: Path, name: str, value: object) -> Feature:
    tree = _mapping(value)
    if not is_feature_name(name):
        problem = "has a name that cannot be part of a file name"
        raise metadata_error(path, f"the feature {_shortened(name)}", problem)
    if not isinstance(tree.get("dtype"), str):
        raise metadata_error(path, f"the feature {name!r}", "has no dtype")
    return Feature(
        name=name,
        dtype=tree["dtype"],
        shape=_shape(tree.get("shape")),
        names=feature_names(tree.get("names")),
        is_depth=bool(_video_key(tree, "is_depth_map")),
        is_labels=tree["dtype"] == "video" and says_labels(name),
        quantizer={key: _video_key(tree, key) for key in _QUANTIZER},
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    """A list of positive integers; None for anything else."""
    if not isinstance(value, list):
        return None
    for size in cast(list[Any], value):
        if not isinstance(size, int) or not 1 <= _number(size) <= LARGEST_COUNT:
            return None
    return tuple(value)


def _video_key(tree: Mapping[str, Any], key: str) -> Any:
    """Returns a fact about a video from any of the places where writers put it; else None.

    Source: formats/lerobot 4.1.
    """
    for section in (tree, _mapping(tree.get("info")), _mapping(tree.get("video_info"))):
        for name in (key, f"video.{key}"):
            if section.get(name) is not None and section[name] is not False:
                return section[name]
    return False if key in ("is_depth_map", "use_log") else None


def feature_names(value: object) -> tuple[str, ...]:
    """Returns the texts in `names` of a feature; texts that repeat get their group as a prefix.

    Source: formats/lerobot 4.2.
    """
    paths = list(_nested_texts(value))
    names = tuple(path[-1] for path in paths)
    if len(set(names)) < len(names):
        return tuple(".".join(path) for path in paths)
    return names


def _nested_texts(value: object, depth: int = 3) -> Iterator[tuple[str, ...]]:
    """Path of each text in nested lists and mappings; `{name: position}` gives the names."""
    if isinstance(value, str):
        yield (value,)
    elif isinstance(value, Mapping) and depth:
        for name, inner in cast(Mapping[str, Any], value).items():
            if isinstance(inner, int):
                yield (name,)
                continue
            for path in _nested_texts(inner, depth - 1):
                yield (name, *path)
    elif isinstance(value, list) and depth:
        for inner in cast(list[Any], value):
            yield from _nested_texts(inner, depth - 1)


def read_object(path: Path) -> Mapping[str, Any]:
    return _parse_object(path, _read_text(path))


def read_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and mapping of each line of a JSON-lines file that is not empty."""
    for number, line in enumerate(_read_text(path, _LARGEST_LIST).split("\n"), start=1):
        if len(line) > _LARGEST_LINE:
            raise metadata_error(path, "content", f"has a line of {len(line):,} characters", number)
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
    raise metadata_error(path, "fps", f"is {_shortened(value)}; it must be {expected}")


def _chunks_size(path: Path, value: object) -> int:
    size = _number(value or lerobot_layout.CHUNKS_SIZE)
    if 1 <= size <= LARGEST_COUNT and size == int(size):
        return int(size)
    problem = f"is {_shortened(value)}; it must be a positive integer"
    raise metadata_error(path, "chunks_size", problem)


def _number(value: object) -> int | float:
    """The value if it is a number and not a boolean, else 0."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def optional_int(value: object) -> int | None:
    """The value if it is an integer and not a boolean, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def metadata_error(path: Path, key: str, problem: str, line: int | None = None) -> DataError:
    """Returns the error for an invalid value in `meta/`; `line` is its line or row, from 1."""
    location = f"{path}" if line is None else f"{path}:{line}"
    return DataError(
        f"{location}: {key} {problem}",
        hint=METADATA,
        code="data.broken",
        details={"finding": "bad_metadata", "path": str(path), "field": key, "line": line},
    )


@dataclass(frozen=True)
class _Group:
    """Entry of `modality.json`: dimensions of a column that have a name."""

    section: str  # `state` or `action`
    column: str
    name: str
    start: int  # first dimension
    stop: int  # dimension after the last one
    document: Mapping[str, Any]  # the whole entry


# Default column of the groups of a section.
_SECTIONS = {"state": "observation.state", "action": "action"}
_NUMBER_AT_END = re.compile(r"\d+$")


def with_group_names(root: Path, info: Info, findings: list[Finding]) -> Info:
    """The info, with the names of groups for features whose own names are only numbered."""
    names_by_column: dict[str, dict[int, str]] = {}
    for group in _groups(root, info, findings):
        names = names_by_column.setdefault(group.column, {})
        for index in range(group.start, group.stop):
            names[index] = group.name
            if group.stop - group.start > 1:
                names[index] = f"{group.name}.{index - group.start}"
    return _with_names(info, names_by_column)


def with_depth_range(info: Info, depth_range: list[float] | None) -> Info:
    """The info, with the meters of codes of depth videos that an option gives."""
    if depth_range is None:
        return info
    features = dict(info.features)
    low, high, *shift = depth_range
    for name, feature in features.items():
        if feature.dtype == "video" and feature.is_depth:
            known = {"depth_min": low, "depth_max": high, "shift": 0.0, "use_log": bool(shift)}
            known |= {"shift": shift[0]} if shift else {}
            features[name] = replace(feature, quantizer={**feature.quantizer, **known})
    return replace(info, features=features)


def with_known_names(info: Info, known: Mapping[str, tuple[str, ...]]) -> Info:
    """The info, with names that the format knows for features without informative names."""
    names_by_column: dict[str, dict[int, str]] = {}
    for column, names in known.items():
        if column in info.features and info.features[column].width == len(names):
            names_by_column[column] = dict(enumerate(names))
    return _with_names(info, names_by_column)


def _with_names(info: Info, names_by_column: Mapping[str, Mapping[int, str]]) -> Info:
    """The info with names by dimension, of features whose own names say nothing."""
    features = dict(info.features)
    for column, names in names_by_column.items():
        feature = features[column]
        own_names = feature.dimension_names
        if feature.width is None or _are_informative(own_names):
            continue
        default_names = own_names or [str(index) for index in range(feature.width)]
        new_names = (names.get(index, name) for index, name in enumerate(default_names))
        features[column] = replace(feature, names=tuple(new_names))
    return replace(info, features=features)


def _are_informative(names: tuple[str, ...]) -> bool:
    """True if names say more than `motor_0`, `motor_1` and so on."""
    stems = {_NUMBER_AT_END.sub("", name) for name in names}
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
    declared: list[Declaration] = []
    for group in _groups(root, info, []):
        document = group.document
        if group.section == "action" and ("absolute" in document or "rotation_type" in document):
            declared.append(
                Declaration(
                    group.column,
                    group.start,
                    group.stop - 1,
                    f"{lerobot_layout.MODALITY_FILE}: {group.name}",
                    _RELATIONS.get(str(document.get("absolute")), ""),
                    _ROTATION_TYPES.get(str(document.get("rotation_type")), ()),
                )
            )
    return tuple(declared)


def _groups(root: Path, info: Info, findings: list[Finding]) -> Iterator[_Group]:
    """Yields the groups in modality.json that fit their columns.

    `findings` gets an entry for all other groups, and for cameras and texts that do not exist.
    """
    path = root / lerobot_layout.MODALITY_FILE
    try:
        tree = _mapping(read_json(path) if path.exists() else {})
    except (DocumentError, OSError) as error:
        findings.append(LEROBOT.at("bad_modality", path, f"cannot be read: {error}"))
        return
    for section, entries in tree.items():
        for name, value in _mapping(entries).items():
            document = _mapping(value)
            column = str(document.get("original_key") or _SECTIONS.get(section, ""))
            start = document.get("start")
            stop = document.get("end")
            width = info.features[column].width if column in info.features else None
            if column and column not in (*info.features, *lerobot_layout.AUTOMATIC):
                problem = f"names {column}, which is no feature in {lerobot_layout.INFO_FILE}"
            elif section not in _SECTIONS:
                continue
            elif not isinstance(start, int) or not isinstance(stop, int) or not 0 <= start < stop:
                problem = f"has no valid range of dimensions: start {start}, end {stop}"
            elif width is None or stop > width:
                size = f"has {width} dimensions" if width else "is no vector"
                problem = f"names dimensions {start} to {stop} of {column}, which {size}"
            else:
                yield _Group(section, column, name, start, stop, document)
                continue
            entry = f"{section}.{name}"
            findings.append(LEROBOT.at("bad_modality", path, f"{entry} {problem}", field=entry))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}
