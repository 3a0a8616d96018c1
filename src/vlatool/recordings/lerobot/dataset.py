"""Options of LeRobot formats, and the episodes of a data set with their fields and cameras."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Clip, RowSegment
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.recordings.base import no_episodes, unknown_field
from vlatool.recordings.inventory import Stored, decide
from vlatool.recordings.lerobot import lists, meta
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.folder import (
    Dataset,
    EpisodeFiles,
    FileFinder,
    clip_defects,
    first_rows,
    text_tables,
)
from vlatool.recordings.lerobot.images import with_image_roles
from vlatool.recordings.lerobot.layout import (
    EPISODE_INDEX,
    EPISODES_FILE,
    EPISODES_FOLDER,
    FRAME_INDEX,
    INFO_FILE,
    EpisodeLine,
)
from vlatool.recordings.lerobot.tables import check_is_data_file, column_names
from vlatool.recordings.mapping import MAPPING
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import can_list, is_remote


class LeRobotConfig(ConfigModel):
    """Options for LeRobot data sets.

    Class attributes in which formats based on LeRobot differ:
        camera_columns: Features that are cameras, in order; empty: all cameras.
        needed_columns: Columns that an episode must have.
        is_list_first: True if the tasks in the list of episodes take precedence over its rows.
        needs_instruction: True if an episode without an instruction is an error.
        known_names: Map from feature to its dimension names, used if info.json has none.
    """

    location_keys: ClassVar[frozenset[str]] = frozenset({"mapping"})
    newer: ClassVar[Mapping[str, Any]] = {"depth_range": None}
    camera_columns: ClassVar[tuple[str, ...]] = ()
    needed_columns: ClassVar[tuple[str, ...]] = ()
    is_list_first: ClassVar[bool] = False
    needs_instruction: ClassVar[bool] = False
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    observation_keys: list[str] | None = option(
        None,
        "Columns that a policy observes; default: all numeric observation.*, or state.",
    )
    depth_range: list[float] | None = option(
        None,
        "Meters of the first and of the last code of depth videos and, for logarithmic codes, "
        "their shift, such as 0,10,3.5; null: as meta/info.json says.",
        min_length=2,
        max_length=3,
    )
    action_keys: list[str] | None = option(
        None,
        "Columns that a policy predicts; default: numeric action and action.*, or actions.",
    )
    task_column: str | None = option(
        None, "Column that names the task of a row, by number or sentence; default: task_index."
    )
    task_join: str | None = option(
        None, "Join the tasks of an episode by this separator if its rows do not choose one."
    )
    mapping: str | None = option(None, MAPPING)
    split: str | None = option(
        None, "Read only the episodes of this split in meta/info.json; default: all episodes."
    )


class LiberoConfig(LeRobotConfig):
    """Options for LIBERO data sets; the two cameras are fixed."""

    camera_columns: ClassVar[tuple[str, ...]] = ("image", "wrist_image")
    needed_columns: ClassVar[tuple[str, ...]] = (FRAME_INDEX, EPISODE_INDEX)
    is_list_first: ClassVar[bool] = True
    needs_instruction: ClassVar[bool] = True
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "actions": ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    }

    task_join: str | None = option(
        " / ", "Join the tasks of an episode by this separator if it lists several."
    )


# Prefix of the usual column names, and the name used if no column has it, as in LIBERO sets.
OBSERVED = ("observation", "state")
PREDICTED = ("action", "actions")
_SEARCH_DEPTH = ("", "*/", "*/*/")
# The cache of the hub, whose snapshots consist of links.
_SNAPSHOTS = ("snapshots/*/", "datasets--*/snapshots/*/", "*/datasets--*/snapshots/*/")


def dataset_roots(source: Path) -> list[Path]:
    """Data sets in `source`: itself, or folders up to two levels below, in natural order. If
    nothing can be listed, only the source itself is tried.
    """
    if not can_list(source):
        if (source / INFO_FILE).is_file():
            return [source]
        raise no_episodes(source, INFO_FILE)
    if source.is_dir():
        for depth in (*_SEARCH_DEPTH, *_SNAPSHOTS):
            roots: set[Path] = set()
            for marker in (INFO_FILE, EPISODES_FOLDER, "meta_data"):
                for path in source.glob(f"{depth}{marker}"):
                    roots.add(path.parents[marker.count("/")])
            if roots and depth in _SNAPSHOTS:
                roots = {_newest_snapshot(root.parent, roots) for root in roots}
            if roots:
                return sorted(roots, key=natural_key)
    raise no_episodes(source, f"{INFO_FILE}, here or up to two folders below")


def _newest_snapshot(snapshots: Path, roots: Collection[Path]) -> Path:
    """The snapshot that refs/main names, else the last one that was downloaded."""
    of_set = [root for root in roots if root.parent == snapshots]
    main = snapshots.parent / "refs" / "main"
    name = main.read_text().strip() if main.is_file() else ""
    for root in of_set:
        if root.name == name:
            return root
    return max(of_set, key=lambda root: root.stat().st_mtime)


def open_dataset(root: Path, config: LeRobotConfig, findings: list[Finding]) -> list[EpisodeFiles]:
    """Returns all episodes of a data set by number, including unlisted ones."""
    info = meta.with_group_names(root, meta.read_info(root), findings)
    info = meta.with_known_names(info, config.known_names)
    info = meta.with_depth_range(info, config.depth_range)
    if f"v{info.version.removeprefix('v')}" != info.layout:
        problem = f"says {info.version or 'no version'}, but the files are {info.layout}"
        findings.append(LEROBOT.at("version_mismatch", root / INFO_FILE, problem))

    finder = FileFinder(root, info, findings)
    lines = _episode_lines(root, info, finder, findings)
    unlisted: set[int] = set()
    if not info.is_shared:
        unlisted = finder.numbered_data_files().keys() - {line.number for line in lines}
        lines += [EpisodeLine(number, (), None) for number in sorted(unlisted)]
    data_files = {line.number: finder.data_file(line) for line in lines}
    columns = None  # of the first file that can be read
    for path in dict.fromkeys(data_files.values()):
        columns = column_names(path)
        if columns:
            if not config.camera_columns:
                info = with_image_roles(root, info, path, columns)
            break

    videos: dict[str, dict[int, Path]] = {}  # by feature and episode
    absent: set[str] = set()  # images that no episode has
    for feature in info.features.values():
        if feature.dtype == "video":
            paths: dict[int, Path] = {}
            for line in lines:
                path = finder.video_file(line, feature.name)
                if path is not None:
                    paths[line.number] = path
            videos[feature.name] = paths
            if finder.existing.isdisjoint(paths.values()):
                absent.add(feature.name)
        elif columns is not None and feature.name not in columns:
            absent.add(feature.name)

    dataset = _dataset(root, info, config, columns, absent, findings)
    lost = _lost_videos(dataset, videos, finder.existing)
    if lost is not None:
        findings.append(lost)
        dataset = replace(dataset, is_without_videos=True)
    episodes = _episodes(dataset, lines, unlisted, data_files, videos, finder.existing)
    return sorted(episodes, key=lambda episode: episode.number)


def _dataset(
    root: Path,
    info: meta.Info,
    config: LeRobotConfig,
    columns: Sequence[str] | None,  # of a file of rows; None if none can be read
    absent: Collection[str],  # images that no episode has
    findings: list[Finding],
) -> Dataset:
    """The data set with its cameras and fields."""
    # With needed columns, an episode without actions is an error of the episode, not of the set.
    action_columns = None if config.needed_columns else columns
    try:
        actions = select_fields(root, info, config.action_keys, PREDICTED, action_columns)
    except DataError:
        if config.mapping is None:
            raise
        actions = ()
    known = tuple(dict.fromkeys([*info.features, *(columns or ())]))
    if config.task_column is not None and config.task_column not in known:
        raise unknown_field(config.task_column, known, root / INFO_FILE, "task column")
    return Dataset(
        root,
        info,
        _cameras(root, info, config, absent, findings),
        select_fields(root, info, config.observation_keys, OBSERVED, columns),
        actions,
        declared=meta.declarations(root, info),
        text_tables=text_tables(root, known),
        tasks_file=lists.tasks_file(root, info),
    )


_Videos = Mapping[str, Mapping[int, Path]]


def _episodes(
    dataset: Dataset,
    lines: Sequence[EpisodeLine],
    unlisted: Collection[int],
    data_files: Mapping[int, Path],
    videos: _Videos,
    existing: set[Path],
) -> Iterator[EpisodeFiles]:
    first_of = first_rows(lines)
    defects = clip_defects(lines, dataset.info.fps)
    for line in lines:
        number = line.number
        clips: dict[str, Clip] = {}
        for camera, paths in videos.items():
            if number not in paths:
                continue
            path = paths[number]
            if camera in dataset.camera_names or path in existing:
                span = line.clips.get(camera)
                clips[camera] = Clip(path)
                if span is not None:
                    clips[camera] = Clip(path, span.start, span.stop)
        rows = RowSegment(data_files[number])
        if line.rows is not None:
            count = max(0, int(line.rows.stop - line.rows.start))
            rows = RowSegment(data_files[number], first_of[number], count)
        paths_of_episode = [rows.path, *(clip.path for clip in clips.values())]
        yield EpisodeFiles(
            dataset,
            line,
            rows,
            clips,
            present=frozenset(existing.intersection(paths_of_episode)),
            is_listed=number not in unlisted,
            defects=defects.get(number, {}),
        )


def _episode_lines(
    root: Path, info: meta.Info, finder: FileFinder, findings: list[Finding]
) -> list[EpisodeLine]:
    """The list of episodes; where v2 has none, an entry for each file."""
    path = root / EPISODES_FILE
    if info.is_shared or path.exists():
        lines = lists.read_episodes(root, info)
    else:
        findings.append(LEROBOT.at("no_episode_list", path, "is missing"))
        lines = [EpisodeLine(number, (), None) for number in sorted(finder.numbered_data_files())]
    if not lines:
        listed = f"{EPISODES_FILE} and data/*/episode_*.parquet"
        if info.is_shared:
            listed = EPISODES_FOLDER
        raise no_episodes(root, f"episodes in {listed}")
    lengths = [line.length for line in lines if line.length is not None]
    if info.total_frames is not None and len(lengths) == len(lines):
        total = sum(lengths)
        if total != info.total_frames:
            problem = f"total_frames is {info.total_frames}, but the list of episodes has {total}"
            finding = LEROBOT.at("totals_mismatch", root / INFO_FILE, problem, field="total_frames")
            findings.append(finding)
    return lines


def _cameras(
    root: Path,
    info: meta.Info,
    config: LeRobotConfig,
    absent: Collection[str],
    findings: list[Finding],
) -> tuple[meta.Feature, ...]:
    """Cameras of the format, or all but depth, labels and `absent` ones, without any file.

    If no camera has files, all are kept, so that each episode reports the loss.
    """
    needed = config.camera_columns
    if needed:
        cameras = [info.features[name] for name in needed if name in info.features]
        if len(cameras) < len(needed) or not all(camera.is_camera for camera in cameras):
            raise no_episodes(root, f"the cameras {', '.join(needed)} in {INFO_FILE}")
        return tuple(cameras)
    colors: list[meta.Feature] = []
    for feature in info.features.values():
        if feature.is_camera and not feature.is_depth and not feature.is_labels:
            colors.append(feature)
    present = [feature for feature in colors if feature.name not in absent]
    if not present:
        return tuple(colors)
    for feature in colors:
        if feature.name in absent:
            missing = "video for any episode" if feature.dtype == "video" else "column in the data"
            problem = f"camera {feature.name} has no {missing} and is left out"
            finding = LEROBOT.at("camera_without_files", root, problem, camera=feature.name)
            findings.append(finding)
    return tuple(present)


def _lost_videos(dataset: Dataset, videos: _Videos, existing: set[Path]) -> Finding | None:
    """Returns a finding if all videos of a data set are missing; else None."""
    paths: set[Path] = set()
    for camera in dataset.cameras:
        if camera.dtype == "video":
            paths.update(videos[camera.name].values())
    present = paths & existing
    if not paths or (present and is_remote(dataset.root)):
        return None
    if not all(_is_pointer(path) for path in present):
        return None
    reason = "their files are Git LFS pointers" if present else "no file has their names"
    count = counted(len(paths), "video is", "videos are")
    return LEROBOT.at("no_videos", dataset.root, f"none of its {count} here: {reason}")


def _is_pointer(path: Path) -> bool:
    try:
        check_is_data_file(path, "")
    except DataError as error:
        return error.details.get("finding") == "lfs_pointer"
    return False


def select_fields(
    root: Path,
    info: meta.Info,
    requested: Sequence[str] | None,
    convention: tuple[str, str],
    columns: Sequence[str] | None,
) -> tuple[str, ...]:
    """Returns the requested columns, else the columns that the naming convention selects.

    `convention` is `OBSERVED` or `PREDICTED`. The convention leaves out features that are not
    vectors, that are too wide to be observed, or that are not among the `columns` of a file (None
    if no file can be read); the parts of the episodes list them.

    Raises:
        DataError: A feature has no valid shape, or no action is left.
    """
    if requested is not None:
        return tuple(_requested_field(root, info, name) for name in requested)
    prefix, plain = convention
    is_action = convention is PREDICTED
    conventional: list[str] = []
    for name in info.features:
        if name == prefix or name.startswith(f"{prefix}."):
            conventional.append(name)
    names = [name for name in conventional if info.features[name].is_number]
    if not names and plain in info.features and info.features[plain].is_number:
        names = [plain]
    selected: list[str] = []
    for name in names:
        reason = unusable_reason(info.features[name], columns)
        if not reason and not is_action:
            reason = wide_note(info.features[name])
        if not reason:
            selected.append(name)
    broken = [name for name in names if info.features[name].shape is None]
    if is_action and not selected:
        broken += names or conventional
    if broken:
        name = broken[0]
        option = "--action-keys" if is_action else "--observation-keys"
        raise DataError.at(
            root / INFO_FILE,
            f"the feature {name!r} {unusable_reason(info.features[name], columns)}",
            hint=f"name the columns that you want with {option}",
            code="data.broken",
            finding="unusable_feature",
            field=name,
        )
    return tuple(selected)


def unusable_reason(feature: meta.Feature, columns: Sequence[str] | None) -> str:
    """Says why a feature cannot be a field; empty if it can. `columns` are the file's columns."""
    if not feature.is_readable_number:
        return f"holds {feature.dtype}, not numbers"
    if feature.shape is None:
        return "has no shape of positive integers"
    if columns is not None and feature.name not in columns:
        return "has no column in the data"
    if not feature.width:
        return f"has rows of shape {list(feature.shape)}, not vectors"
    return ""


def wide_note(feature: meta.Feature) -> str:
    """Says why a vector is too wide to be a field by default; empty if it is not."""
    decision = decide(Stored(feature.name, "array", (feature.width or 1,), "float32"))
    if decision.role != "left_out":
        return ""
    return decision.note.partition(";")[0]


def _requested_field(root: Path, info: meta.Info, name: str) -> str:
    path = root / INFO_FILE
    feature = info.features.get(name)
    numeric = [other.name for other in info.features.values() if other.is_readable_number]
    if feature is None:
        raise unknown_field(name, numeric, path)
    if not feature.is_readable_number:
        raise DataError(
            f"{path}: the field {name!r} holds {feature.dtype}, not numbers",
            hint=f"choose from: {', '.join(numeric)}",
            code="data.mismatch",
            details={"finding": "not_numeric", "field": name, "known": numeric, "path": str(path)},
        )
    return name
