"""What the episodes of a LeRobot data set share: its fields, its cameras, the list of episodes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.sources.base import DatasetWarnings, no_episodes
from vlatool.sources.lerobot.fields import check_task_column, choose_fields
from vlatool.sources.lerobot.files import FileFinder
from vlatool.sources.lerobot.meta import (
    EPISODES_FILE,
    INFO_FILE,
    EpisodeLine,
    Feature,
    Info,
    read_episodes,
    read_info,
)
from vlatool.sources.lerobot.rows import column_names
from vlatool.sources.order import natural_key

_SEARCH_DEPTH = ("", "*/", "*/*/")


class LeRobotConfig(ConfigModel):
    """Which columns of a LeRobot data set are read."""

    observation_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy observes; default: every numeric one under "
        "observation., or state.",
    )
    action_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy predicts; default: every numeric one under action, "
        "or actions.",
    )
    task_column: str | None = Field(
        default=None, description="Column with the task's number or sentence; default: task_index."
    )
    task_join: str | None = Field(
        default=None, description="Text between the tasks of an episode whose rows do not name one."
    )


@dataclass(frozen=True)
class Dataset:
    """A data set, checked against the configuration.

    Attributes:
        root: The folder with `meta/`, `data/`, `videos/`.
        info: Its `meta/info.json`.
        cameras: Features that hold pictures and have files.
        observation_keys: Columns observed.
        action_keys: Columns predicted.
    """

    root: Path
    info: Info
    cameras: tuple[Feature, ...]
    observation_keys: tuple[str, ...]
    action_keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.root.resolve().name


@dataclass(frozen=True)
class Recording:
    """One episode's files, which may be missing.

    Attributes:
        dataset: The data set it belongs to.
        line: What the list of episodes says.
        data_file: Its parquet file.
        videos: Camera to its video.
    """

    dataset: Dataset
    line: EpisodeLine
    data_file: Path
    videos: Mapping[str, Path]


def dataset_roots(source: Path) -> list[Path]:
    """The data sets in `source`: itself, or folders up to two levels below, in natural order.

    Raises:
        DataError: There are none.
    """
    for depth in _SEARCH_DEPTH:
        marks = [INFO_FILE, "meta/episodes", "meta_data"]
        found = {
            path.parents[mark.count("/")]
            for mark in marks
            for path in (source.glob(f"{depth}{mark}") if source.is_dir() else ())
        }
        if found:
            return sorted(found, key=natural_key)
    raise no_episodes(source, f"{INFO_FILE} in it and in folders up to two levels below")


def open_dataset(root: Path, config: LeRobotConfig, warnings: DatasetWarnings) -> list[Recording]:
    """The episodes of a data set, ascending by number.

    Raises:
        DataError: The metadata is broken, the layout unsupported, a requested field unknown, or
            there are no episodes.
    """
    info = read_info(root)
    _warn_about_version(root, info, warnings)
    finder = FileFinder(root, info, warnings)
    lines = _episode_lines(root, info, finder, warnings)
    data_files = {line.number: finder.data_file(line.number) for line in lines}
    columns = next(filter(None, map(column_names, data_files.values())), None)
    videos = {
        feature.name: {line.number: finder.video_file(line.number, feature.name) for line in lines}
        for feature in info.features.values()
        if feature.dtype == "video"
    }
    dataset = Dataset(
        root,
        info,
        tuple(_usable_cameras(root, info, videos, columns, warnings)),
        choose_fields(
            root, info, config.observation_keys, ("observation", "state"), columns, warnings
        ),
        choose_fields(root, info, config.action_keys, ("action", "actions"), columns, warnings),
    )
    check_task_column(root, info, config.task_column, columns)
    video_names = [camera.name for camera in dataset.cameras if camera.dtype == "video"]
    return [
        Recording(
            dataset,
            line,
            data_files[line.number],
            {name: videos[name][line.number] for name in video_names},
        )
        for line in lines
    ]


def _episode_lines(
    root: Path, info: Info, finder: FileFinder, warnings: DatasetWarnings
) -> list[EpisodeLine]:
    """The listed episodes; those with a file where the list is missing."""
    on_disk = finder.numbered_data_files()
    if not (root / EPISODES_FILE).exists():
        warnings.add_once("lerobot.no_episode_list", f"{root / EPISODES_FILE} is missing")
        lines = [EpisodeLine(number, (), None) for number in sorted(on_disk)]
    else:
        lines = read_episodes(root)
        unlisted = sorted(on_disk.keys() - {line.number for line in lines})
        if unlisted:
            warnings.add_once(
                "lerobot.unlisted_episodes",
                f"{root}: episodes {_first_few(unlisted)} have a file but are not in "
                f"{EPISODES_FILE}; they are left out",
            )
    if not lines:
        raise no_episodes(root, f"episodes in {EPISODES_FILE} and data/*/episode_*.parquet")
    _warn_about_totals(root, info, lines, warnings)
    return lines


def _usable_cameras(
    root: Path,
    info: Info,
    videos: Mapping[str, Mapping[int, Path]],
    columns: Sequence[str] | None,
    warnings: DatasetWarnings,
) -> Iterator[Feature]:
    for feature in info.features.values():
        if not feature.is_camera:
            continue
        if feature.is_depth:
            warnings.add_once(
                "lerobot.depth_camera", f"{root}: {feature.name} holds depth, not RGB; left out"
            )
        elif feature.dtype == "video" and not _any_exists(videos[feature.name]):
            warnings.add_once(
                "lerobot.camera_without_files",
                f"{root}: camera {feature.name} has no video for any episode; left out",
            )
        elif feature.dtype == "image" and columns is not None and feature.name not in columns:
            warnings.add_once(
                "lerobot.camera_without_files",
                f"{root}: camera {feature.name} has no column in the data; left out",
            )
        else:
            yield feature


def _any_exists(files: Mapping[int, Path]) -> bool:
    return any(path.exists() for path in files.values())


def _warn_about_version(root: Path, info: Info, warnings: DatasetWarnings) -> None:
    if f"v{info.version.removeprefix('v')}" != info.layout:
        warnings.add_once(
            "lerobot.version_mismatch",
            f"{root / INFO_FILE} says {info.version or 'no version'} but the files follow "
            f"{info.layout}; reading as {info.layout}",
        )


def _warn_about_totals(
    root: Path, info: Info, lines: Sequence[EpisodeLine], warnings: DatasetWarnings
) -> None:
    lengths = [line.length for line in lines if line.length is not None]
    if info.total_frames is None or len(lengths) < len(lines) or info.total_frames == sum(lengths):
        return
    warnings.add_once(
        "lerobot.totals_mismatch",
        f"{root / INFO_FILE}: total_frames is {info.total_frames}, {EPISODES_FILE} lists "
        f"{sum(lengths)}",
    )


def _first_few(numbers: Sequence[int], limit: int = 5) -> str:
    text = ", ".join(map(str, numbers[:limit]))
    return f"{text}, ..." if len(numbers) > limit else text
