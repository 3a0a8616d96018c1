"""Episodes of a LeRobot data set with their fields, cameras, and parts of files."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlatool.artifacts.lerobot.format import (
    EPISODE_STATS_FILE,
    EPISODES_FILE,
    EPISODES_FOLDER,
    INFO_FILE,
    MODALITY_FILE,
    STATS_FILE,
    TASKS_FILE,
    TASKS_TABLE,
    EpisodeLine,
    Span,
)
from vlatool.episode import Clip, RowSegment
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.sources.base import check_is_data_file, no_episodes
from vlatool.sources.lerobot.config import (
    OBSERVED,
    PREDICTED,
    LeRobotConfig,
    check_task_column,
    select_fields,
)
from vlatool.sources.lerobot.files import FileFinder
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.lists import episode_statistics, read_episodes, read_tasks
from vlatool.sources.lerobot.meta import (
    Feature,
    Info,
    episode_tables,
    read_info,
    with_group_names,
    with_known_names,
)
from vlatool.sources.lerobot.rows import column_names
from vlatool.sources.lerobot.segments import clip_defects, first_rows
from vlatool.sources.order import natural_key
from vlatool.storage.uri import can_list, is_remote

_SEARCH_DEPTH = ("", "*/", "*/*/")


@dataclass(frozen=True)
class Dataset:
    """Data set, checked against the config.

    Attributes:
        root: Folder with `meta/`, `data/`, `videos/`.
        info: Content of `meta/info.json`.
        cameras: Camera features that have files.
        observation_keys: Columns that the policy observes.
        action_keys: Columns that the policy predicts.
        is_without_videos: No video of its cameras is there; a finding of the set says so.
    """

    root: Path
    info: Info
    cameras: tuple[Feature, ...]
    observation_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    is_without_videos: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.root.resolve().name

    @property
    def camera_names(self) -> frozenset[str]:
        """Names of the used cameras."""
        return frozenset(camera.name for camera in self.cameras)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Observed columns, then predicted ones, without repetitions."""
        return tuple(dict.fromkeys([*self.observation_keys, *self.action_keys]))

    @property
    def dimension_names(self) -> dict[str, tuple[str, ...]]:
        """Map from field to dimension names, for fields that have them."""
        names = {name: self.info.features[name].dimension_names for name in self.field_names}
        return {name: known for name, known in names.items() if known}


@dataclass(frozen=True)
class EpisodeFiles:
    """Parts of files that belong to one episode; files may be missing.

    Attributes:
        dataset: The data set of the episode.
        line: Its entry in the list of episodes.
        rows: Its rows.
        clips: Map from camera, depth included, to its part of a video; of v3.0 only if the list
            names one.
        present: Paths that existed when the data set was opened.
        is_listed: False for an episode that has a file, but no entry in the list.
        defects: Map from camera to the reason why its clip cannot be used.
    """

    dataset: Dataset
    line: EpisodeLine
    rows: RowSegment
    clips: Mapping[str, Clip]
    present: frozenset[Path] = frozenset()
    is_listed: bool = True
    defects: Mapping[str, DataError] = field(default_factory=dict[str, DataError])

    @property
    def root(self) -> Path:
        """Folder of the data set."""
        return self.dataset.root

    @property
    def number(self) -> int:
        """Number of the episode."""
        return self.line.number

    @property
    def tasks(self) -> Sequence[str]:
        """Sentences in the list of episodes, in its order."""
        return self.line.tasks

    @property
    def document(self) -> Mapping[str, Any]:
        """Content of meta/info.json as written."""
        return self.dataset.info.document

    @property
    def task_table(self) -> Mapping[int, str]:
        """Map from task index to sentence; raises as `read_tasks`."""
        return read_tasks(self.dataset.root, self.dataset.info)

    def statistics(self) -> Mapping[str, Mapping[str, Any]]:
        """Map from feature to its published statistics; empty if there are none."""
        return episode_statistics(self.dataset.root, self.dataset.info).get(self.number, {})


def dataset_roots(source: Path) -> list[Path]:
    """Data sets in `source`: itself, or folders up to two levels below, in natural order.

    If nothing can be listed, only the source itself is tried.

    Raises:
        DataError: There is no data set.
    """
    if not can_list(source):
        if (source / INFO_FILE).is_file():
            return [source]
        raise no_episodes(source, INFO_FILE)
    for depth in _SEARCH_DEPTH:
        markers = [INFO_FILE, EPISODES_FOLDER, "meta_data"]
        roots = {
            path.parents[marker.count("/")]
            for marker in markers
            for path in (source.glob(f"{depth}{marker}") if source.is_dir() else ())
        }
        if roots:
            return sorted(roots, key=natural_key)
    raise no_episodes(source, f"{INFO_FILE} in it and in folders up to two levels below")


def named_files(root: Path) -> list[tuple[str, bool]]:
    """Files that the metadata of a data set name, and whether they must exist.

    For storage that cannot be listed. Cameras without a video of the first episode have none.

    Raises:
        DataError: The metadata is broken, or the layout unsupported.
        FileNotFoundError: There is no list of episodes.
    """
    info = read_info(root)
    finder = FileFinder(root, info, [])
    lines = read_episodes(root, info)
    paths = [finder.data_file(line) for line in lines]
    for feature in info.features.values():
        videos = [
            path
            for line in lines
            if feature.dtype == "video"
            if (path := finder.video_file(line, feature.name)) is not None
        ]
        paths += videos if videos and videos[0].is_file() else ()
    paths += episode_tables(root) if info.is_shared else ()
    needed = (INFO_FILE,) if info.is_shared else (INFO_FILE, EPISODES_FILE)
    tasks = TASKS_TABLE if info.is_shared else TASKS_FILE
    optional = (tasks, STATS_FILE, EPISODE_STATS_FILE, MODALITY_FILE)
    return [
        *((name, True) for name in needed),
        *((name, False) for name in optional),
        *((path.relative_to(root).as_posix(), True) for path in dict.fromkeys(paths)),
    ]


def open_dataset(root: Path, config: LeRobotConfig, findings: list[Finding]) -> list[EpisodeFiles]:
    """Episodes of a data set, ascending by number, those that the list lacks included.

    Raises:
        DataError: The metadata is broken, the layout unsupported, a requested field unknown, or
            there are no episodes.
    """
    info = with_group_names(root, read_info(root), findings)
    info = with_known_names(info, config.known_names)
    findings += _version_findings(root, info)
    finder = FileFinder(root, info, findings)
    listed = _episode_lines(root, info, finder, findings)
    files = {} if info.is_shared else finder.numbered_data_files()
    unlisted = files.keys() - {line.number for line in listed}
    lines = [*listed, *(EpisodeLine(number, (), None) for number in sorted(unlisted))]
    data_files = {line.number: finder.data_file(line) for line in lines}
    columns = next(filter(None, map(column_names, dict.fromkeys(data_files.values()))), None)
    # With needed columns, an episode without actions is an error of the episode, not of the set.
    action_columns = None if config.needed_columns else columns
    videos = _videos(info, finder, lines)
    dataset = Dataset(
        root,
        info,
        _required_cameras(root, info, config.camera_columns)
        or tuple(_usable_cameras(root, info, videos, finder.existing, columns, findings)),
        select_fields(root, info, config.observation_keys, OBSERVED, columns, findings),
        select_fields(root, info, config.action_keys, PREDICTED, action_columns, findings),
    )
    check_task_column(root, info, config.task_column, columns)
    if (lost := _lost_videos(dataset, videos, finder.existing)) is not None:
        findings.append(lost)
        dataset = replace(dataset, is_without_videos=True)
    return sorted(
        _episodes(dataset, lines, unlisted, data_files, videos, finder.existing),
        key=lambda episode: episode.number,
    )


_Videos = Mapping[str, Mapping[int, Path]]


def _videos(info: Info, finder: FileFinder, lines: Sequence[EpisodeLine]) -> _Videos:
    """Map from camera to the video of each episode, by its number."""
    cameras = [feature.name for feature in info.features.values() if feature.dtype == "video"]
    return {
        camera: {
            line.number: path
            for line in lines
            if (path := finder.video_file(line, camera)) is not None
        }
        for camera in cameras
    }


def _episodes(
    dataset: Dataset,
    lines: Sequence[EpisodeLine],
    unlisted: Collection[int],
    data_files: Mapping[int, Path],
    videos: _Videos,
    existing: set[Path],
) -> Iterator[EpisodeFiles]:
    firsts = first_rows(lines)
    defects = clip_defects(lines, dataset.info.fps)
    for line in lines:
        number = line.number
        clips = {
            camera: _clip(paths[number], line.clips.get(camera))
            for camera, paths in videos.items()
            if number in paths and (camera in dataset.camera_names or paths[number] in existing)
        }
        rows = RowSegment(data_files[number])
        if line.rows is not None:
            count = max(0, int(line.rows.stop - line.rows.start))
            rows = RowSegment(data_files[number], firsts[number], count)
        paths = [rows.path, *(clip.path for clip in clips.values())]
        present = frozenset(existing.intersection(paths))
        bad = defects.get(number, {})
        yield EpisodeFiles(dataset, line, rows, clips, present, number not in unlisted, bad)


def _clip(path: Path, span: Span | None) -> Clip:
    return Clip(path) if span is None else Clip(path, span.start, span.stop)


def _episode_lines(
    root: Path, info: Info, finder: FileFinder, findings: list[Finding]
) -> list[EpisodeLine]:
    """Listed episodes; without a list, the episodes that have a file."""
    path = root / EPISODES_FILE
    if info.is_shared or path.exists():
        lines = read_episodes(root, info)
    else:
        findings.append(LEROBOT("no_episode_list", f"{path} is missing", path=str(path)))
        lines = [EpisodeLine(number, (), None) for number in sorted(finder.numbered_data_files())]
    if not lines:
        listed = (
            EPISODES_FOLDER if info.is_shared else f"{EPISODES_FILE} and data/*/episode_*.parquet"
        )
        raise no_episodes(root, f"episodes in {listed}")
    findings += _frame_total_findings(root, info, lines)
    return lines


def _required_cameras(root: Path, info: Info, names: Sequence[str]) -> tuple[Feature, ...]:
    """Cameras that all data sets of a format have; without them it is another format."""
    cameras = [info.features[name] for name in names if name in info.features]
    if len(cameras) < len(names) or not all(camera.is_camera for camera in cameras):
        raise no_episodes(root, f"the cameras {', '.join(names)} in {INFO_FILE}")
    return tuple(cameras)


def _usable_cameras(
    root: Path,
    info: Info,
    videos: Mapping[str, Mapping[int, Path]],
    existing: set[Path],
    columns: Sequence[str] | None,
    findings: list[Finding],
) -> Iterator[Feature]:
    cameras = [feature for feature in info.features.values() if feature.is_camera]
    absent = {
        camera.name
        for camera in cameras
        if (camera.dtype == "video" and existing.isdisjoint(videos[camera.name].values()))
        or (camera.dtype == "image" and columns is not None and camera.name not in columns)
    }
    # If no camera has files, all are kept, so that each episode reports the loss.
    is_lost = all(camera.is_depth or camera.name in absent for camera in cameras)
    for feature in cameras:
        code = "camera_without_files"
        if feature.is_depth:
            code, problem = "depth_camera", f"{feature.name} holds depth, not RGB"
        elif feature.name in absent and not is_lost:
            missing = "video for any episode" if feature.dtype == "video" else "column in the data"
            problem = f"camera {feature.name} has no {missing}"
        else:
            yield feature
            continue
        findings.append(LEROBOT(code, f"{root}: {problem}; left out", camera=feature.name))


def _lost_videos(dataset: Dataset, videos: _Videos, existing: set[Path]) -> Finding | None:
    """Finding on a data set without any of its videos; None if one is there."""
    names = [camera.name for camera in dataset.cameras if camera.dtype == "video"]
    paths = dict.fromkeys(path for name in names for path in videos[name].values())
    reason = "no file has their names"
    for path in () if is_remote(dataset.root) else filter(existing.__contains__, paths):
        try:
            check_is_data_file(path, "")
        except DataError as error:
            if error.code == "data.lfs_pointer":
                reason = "their files are Git LFS pointers"
                continue
        return None
    if not paths or (is_remote(dataset.root) and not existing.isdisjoint(paths)):
        return None
    count = counted(len(paths), "video is", "videos are")
    return LEROBOT.at("no_videos", dataset.root, f"0 of {count} here: {reason}")


def _version_findings(root: Path, info: Info) -> Iterator[Finding]:
    if f"v{info.version.removeprefix('v')}" != info.layout:
        path = root / INFO_FILE
        message = f"{path} says {info.version or 'no version'} but the files are {info.layout}"
        yield LEROBOT("version_mismatch", f"{message}; reading as {info.layout}", path=str(path))


def _frame_total_findings(
    root: Path, info: Info, lines: Sequence[EpisodeLine]
) -> Iterator[Finding]:
    lengths = [line.length for line in lines if line.length is not None]
    if info.total_frames is None or len(lengths) < len(lines) or info.total_frames == sum(lengths):
        return
    path = root / INFO_FILE
    problem = f"total_frames is {info.total_frames}, the list of episodes has {sum(lengths)}"
    yield LEROBOT.at("totals_mismatch", path, problem, field="total_frames")
