"""Fields, cameras, files and list of episodes of a LeRobot data set.

Paths of files come from templates, or from a search if these are wrong.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from string import Formatter

from vlatool.artifacts.lerobot.format import (
    EPISODE_STATS_FILE,
    EPISODES_FILE,
    INFO_FILE,
    MODALITY_FILE,
    STATS_FILE,
    TASKS_FILE,
    EpisodeLine,
)
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.base import no_episodes
from vlatool.sources.lerobot.config import (
    OBSERVED,
    PREDICTED,
    LeRobotConfig,
    check_task_column,
    select_fields,
)
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.meta import (
    Feature,
    Info,
    read_episodes,
    read_info,
    with_group_names,
    with_known_names,
)
from vlatool.sources.lerobot.rows import column_names
from vlatool.sources.order import natural_key
from vlatool.storage.uri import can_list

_LONGEST_NAME, _LONGEST_PATH = 255, 1024  # of common file systems, and of S3
_INT_SPEC = re.compile(r"^0?\d{0,2}d?$")


def fill_template(template: str, values: Mapping[str, int | str], key: str) -> str:
    """Path relative to the data set.

    Fills only plain fields in `values`, because the template, the value of `key` in info.json, is
    untrusted.

    Raises:
        DataError: A field is unknown or has a conversion, or the path leaves the data set.
    """
    parts: list[str] = []
    try:
        for literal, field, spec, conversion in Formatter().parse(template):
            parts.append(literal)
            if field is None:
                continue
            if field not in values or conversion:
                raise _template_error(key, f'uses unknown field "{{{field}}}"')
            parts.append(_formatted(values[field], spec or "", key))
    except ValueError as error:
        raise _template_error(key, f"is not a path template: {error}") from error
    path = PurePosixPath("".join(parts))
    if path.is_absolute() or ".." in path.parts:
        raise _template_error(key, f'gives "{path}", which is outside the data set')
    longest = max((len(part.encode(errors="replace")) for part in path.parts), default=0)
    if longest > _LONGEST_NAME or len(str(path)) > _LONGEST_PATH or "\0" in str(path):
        raise _template_error(key, f'gives "{str(path)[:40]}...", which is not a valid path')
    return str(path)


def _formatted(value: int | str, spec: str, key: str) -> str:
    if isinstance(value, str):
        if spec:
            raise _template_error(key, f'formats a name with ":{spec}"')
        return value
    if not _INT_SPEC.match(spec):
        raise _template_error(key, f'formats a number with ":{spec}"')
    return format(value, spec)


def _template_error(key: str, problem: str) -> DataError:
    return DataError.at(
        INFO_FILE,
        f"{key} {problem}",
        hint="correct the template; see the LeRobot v2.1 default for its form",
        code="data.bad_template",
        field=key,
    )


class FileFinder:
    """Paths of the parquet file and the videos of an episode.

    If the path of a template does not exist, the only file of that name is used, with one finding
    per template. Source: formats/lerobot 3.1. If nothing can be listed, paths are not checked;
    reading an episode reports missing files.

    Attributes:
        root: Folder of the data set.
        existing: Requested paths that exist, as far as known.
    """

    def __init__(self, root: Path, info: Info, findings: list[Finding]) -> None:
        self.root = root
        self.existing: set[Path] = set()
        self._info = info
        self._findings = findings
        self._reported: set[str] = set()
        self._can_list = can_list(root)

    def data_file(self, number: int) -> Path:
        """Path of the parquet file of an episode; it may not exist."""
        relative = fill_template(self._info.data_path, self._values(number), "data_path")
        return self._locate("data_path", relative, "data")

    def video_file(self, number: int, camera: str) -> Path:
        """Path of the video of a camera; it may not exist."""
        values = {**self._values(number), "video_key": camera}
        relative = fill_template(self._info.video_path, values, "video_path")
        return self._locate("video_path", relative, "videos", camera)

    def numbered_data_files(self) -> dict[int, Path]:
        """Map from number to path of all `episode_N.parquet` below `data/`."""
        numbered: dict[int, Path] = {}
        for (folder, name), paths in sorted(self._by_name.items()):
            match = re.fullmatch(r"episode_(\d+)\.parquet", name)
            if folder == "data" and match:
                numbered[int(match.group(1))] = self.root / paths[0]
        return numbered

    def _locate(self, key: str, relative: str, folder: str, camera: str = "") -> Path:
        path = self.root / relative
        if not self._can_list:
            self.existing.add(path)
            return path
        matches = self._by_name.get((folder, path.name), [])
        if relative not in matches and not path.exists():
            candidates = [
                name for name in matches if not camera or camera in PurePosixPath(name).parts
            ]
            if len(candidates) != 1:
                return path
            path = self.root / candidates[0]
            if key not in self._reported:
                self._reported.add(key)
                message = f"{self.root}: {key} gives {relative}, but the file is {candidates[0]}"
                self._findings.append(
                    LEROBOT("template_mismatch", f"{message}; using the files found", field=key)
                )
        self.existing.add(path)
        return path

    def _values(self, number: int) -> dict[str, int | str]:
        chunk = number // self._info.chunks_size
        # A published v2.1 set has chunk_index for episode_chunk. Source: formats/lerobot 3.1
        return {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": number}

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str], list[str]]:
        """(`data` or `videos`, file name) to the paths with that name, relative to the data set."""
        index: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for folder in ("data", "videos") if self._can_list else ():
            # Skips broken links; on S3 the listing answers this without a request.
            for path in sorted((self.root / folder).rglob("*.*")):
                if path.is_file():
                    index[folder, path.name].append(path.relative_to(self.root).as_posix())
        return dict(index)


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
    """

    root: Path
    info: Info
    cameras: tuple[Feature, ...]
    observation_keys: tuple[str, ...]
    action_keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.root.resolve().name

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
    """Paths of the files of one episode; files may be missing.

    Attributes:
        dataset: The data set of the episode.
        line: Its line in the list of episodes.
        data_file: Its parquet file.
        videos: Map from camera to its video.
        present: Paths that existed when the data set was opened.
        is_listed: False for an episode that has a file, but no line in the list.
    """

    dataset: Dataset
    line: EpisodeLine
    data_file: Path
    videos: Mapping[str, Path]
    present: frozenset[Path] = frozenset()
    is_listed: bool = True


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
        markers = [INFO_FILE, "meta/episodes", "meta_data"]
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
    numbers = [line.number for line in read_episodes(root)]
    paths = [finder.data_file(number) for number in numbers]
    for feature in info.features.values():
        videos = [finder.video_file(n, feature.name) for n in numbers if feature.dtype == "video"]
        paths += videos if videos and videos[0].is_file() else ()
    needed = (INFO_FILE, EPISODES_FILE)
    optional = (TASKS_FILE, STATS_FILE, EPISODE_STATS_FILE, MODALITY_FILE)
    return [
        *((name, True) for name in needed),
        *((name, False) for name in optional),
        *((path.relative_to(root).as_posix(), True) for path in paths),
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
    unlisted = finder.numbered_data_files().keys() - {line.number for line in listed}
    lines = [*listed, *(EpisodeLine(number, (), None) for number in sorted(unlisted))]
    data_files = {line.number: finder.data_file(line.number) for line in lines}
    columns = next(filter(None, map(column_names, data_files.values())), None)
    # With needed columns, an episode without actions is an error of the episode, not of the set.
    action_columns = None if config.needed_columns else columns
    videos = {
        feature.name: {line.number: finder.video_file(line.number, feature.name) for line in lines}
        for feature in info.features.values()
        if feature.dtype == "video"
    }
    dataset = Dataset(
        root,
        info,
        _required_cameras(root, info, config.camera_columns)
        or tuple(_usable_cameras(root, info, videos, finder.existing, columns, findings)),
        select_fields(root, info, config.observation_keys, OBSERVED, columns, findings),
        select_fields(root, info, config.action_keys, PREDICTED, action_columns, findings),
    )
    check_task_column(root, info, config.task_column, columns)
    video_names = [camera.name for camera in dataset.cameras if camera.dtype == "video"]
    episodes: list[EpisodeFiles] = []
    for line in lines:
        paths = {name: videos[name][line.number] for name in video_names}
        data_file = data_files[line.number]
        present = finder.existing.intersection([data_file, *paths.values()])
        is_listed = line.number not in unlisted
        episodes.append(
            EpisodeFiles(dataset, line, data_file, paths, frozenset(present), is_listed)
        )
    return sorted(episodes, key=lambda episode: episode.line.number)


def _episode_lines(
    root: Path, info: Info, finder: FileFinder, findings: list[Finding]
) -> list[EpisodeLine]:
    """Listed episodes; without a list, the episodes that have a file."""
    path = root / EPISODES_FILE
    if path.exists():
        lines = read_episodes(root)
    else:
        findings.append(LEROBOT("no_episode_list", f"{path} is missing", path=str(path)))
        lines = [EpisodeLine(number, (), None) for number in sorted(finder.numbered_data_files())]
    if not lines:
        raise no_episodes(root, f"episodes in {EPISODES_FILE} and data/*/episode_*.parquet")
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
    problem = f"total_frames is {info.total_frames}, {EPISODES_FILE} lists {sum(lengths)}"
    yield LEROBOT.at("totals_mismatch", path, problem, field="total_frames")
