"""Checks of a LeRobot data set as a whole that only `verify` makes.

Totals, splits, features, row index, the segments of v3.0, dimensions that never change and episodes
that are there twice. Published statistics are not compared with the rows.
Source: formats/lerobot 3, 5, 6, 9, 12.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlatool.config.coerce import value_text
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.recordings.field_summary import dimension_label
from vlatool.recordings.lerobot import lists, meta
from vlatool.recordings.lerobot.check import check_finite
from vlatool.recordings.lerobot.dataset import LeRobotConfig, dataset_roots, open_dataset
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.folder import Dataset, EpisodeFiles, known_texts, list_problems
from vlatool.recordings.lerobot.layout import (
    EPISODE_STATS_FILE,
    INFO_FILE,
    SHARED_TABLES,
    STATS_FILE,
    split_spans,
)
from vlatool.recordings.lerobot.tables import Rows, episode_spans, read_rows
from vlatool.report.text import few_text, indices_text
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import can_list

_MEBIBYTE = 2**20
_MOST_NAMED = 4  # dimensions that are listed by name


def check_sets(sources: Sequence[Path], config: LeRobotConfig) -> Iterator[Finding]:
    """Yields findings on whole data sets that `discover` does not have."""
    for source in sources:
        for root in dataset_roots(source):
            episodes = open_dataset(root, config, [])
            yield from _check_root(root, [episode for episode in episodes if episode.is_listed])


def _check_root(root: Path, episodes: Sequence[EpisodeFiles]) -> Iterator[Finding]:
    path = root / INFO_FILE
    info = episodes[0].dataset.info
    problems = list(_totals(info, len(known_texts(episodes[0])), episodes))
    problems += _splits(info.document, len(episodes))
    problems += _names(info.document)
    for code, field, problem in problems:
        yield LEROBOT.at(code, path, f"{field} {problem}", field=field)
    finding = _statistics_finding(root, info)
    if finding is not None:
        yield finding
    if info.is_shared:
        lines = [episode.line for episode in episodes]
        for code, problem, number in list_problems(lines, info.chunks_size, info.fps):
            place = f"{root}: episode {number}"
            yield LEROBOT(code, f"{place}: {problem}", path=str(root), episode=number)
        yield from _check_sizes(info, episodes)
        yield from _unlisted_rows(root, {line.number for line in lines})
    yield from _check_rows(root, episodes)


def _unlisted_rows(root: Path, listed: Collection[int]) -> Iterator[Finding]:
    """Findings on data files with rows of episodes that the list lacks (v3.0)."""
    if not can_list(root):
        return
    for path in sorted(root.glob(SHARED_TABLES), key=natural_key):
        try:
            spans = episode_spans(path) or {}
        except (pa.ArrowException, OSError):  # the check of its episodes reports it
            continue
        others = [str(number) for number in sorted(spans) if number not in listed]
        if others:
            problem = "has rows of episodes that are not in the list of episodes"
            problem += f": {few_text(others)}"
            yield LEROBOT.at("unlisted_episode", path, problem, field="episode_index")


def _totals(
    info: meta.Info, tasks: int, episodes: Sequence[EpisodeFiles]
) -> Iterator[tuple[str, str, str]]:
    """(code, key, problem) of totals that differ from the files."""
    dataset = episodes[0].dataset
    actual = {"total_episodes": len(episodes)}
    if tasks:  # else the list cannot be read, which reading reports
        actual["total_tasks"] = tasks
    if not info.is_shared:
        last = max(episode.number for episode in episodes)
        actual["total_chunks"] = last // info.chunks_size + 1
    if not info.is_shared and not dataset.is_without_videos:
        videos = 0
        for episode in episodes:
            for name, clip in episode.clips.items():
                videos += name in dataset.camera_names and clip.path.exists()
        actual["total_videos"] = videos
    for key, value in actual.items():
        stated = info.document.get(key)
        if stated is not None and stated != value:
            code = "chunks" if key == "total_chunks" else "totals_mismatch"
            yield code, key, f"is {value_text(stated)}, but there are {value}"


def _splits(tree: Mapping[str, Any], episodes: int) -> Iterator[tuple[str, str, str]]:
    """Yields (code, key, problem) for splits that are not ranges of existing episodes."""
    for name, ranges in split_spans(tree).items():
        if ranges is None or any(numbers.stop > episodes for numbers in ranges):
            stated = str(tree["splits"][name])[:40]
            problem = f"is {stated!r}, but there are {counted(episodes, 'episode')}"
            yield "splits", f"splits.{name}", problem


def _names(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields (code, feature, problem) for vectors with more or fewer names than values."""
    for name, feature in tree["features"].items():
        if not isinstance(feature, dict):
            continue
        shape = feature.get("shape")
        names = feature.get("names")
        if not isinstance(shape, list) or not isinstance(names, list) or len(shape) != 1:
            continue
        count = len(meta.feature_names(names))
        if count != shape[0]:
            problem = f"has {counted(count, 'name')} for {counted(shape[0], 'value')}"
            yield "names_mismatch", name, problem


def _check_sizes(info: meta.Info, episodes: Sequence[EpisodeFiles]) -> Iterator[Finding]:
    """Findings on files of several episodes that are larger than the set says (v3.0)."""
    data: Counter[Path] = Counter()
    videos: Counter[Path] = Counter()
    for episode in episodes:
        data[episode.rows.path] += 1
        for clip in episode.clips.values():
            videos[clip.path] += 1
    for key, files in (("data_files_size_in_mb", data), ("video_files_size_in_mb", videos)):
        limit = info.document.get(key)
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            continue
        for path, count in files.items():
            if count < 2 or not path.exists():
                continue
            size = path.stat().st_size
            if size > limit * _MEBIBYTE:
                problem = f"has {size / _MEBIBYTE:.0f} MiB, but {key} is {value_text(limit)}"
                yield LEROBOT.at("file_sizes", path, problem, field=key)


def _statistics_finding(root: Path, info: meta.Info) -> Finding | None:
    """Finding on published statistics that cannot be read, or are missing; else None."""
    stats: Mapping[str, Any] = {}
    try:
        if (root / STATS_FILE).exists():
            stats = meta.read_object(root / STATS_FILE)
        if (root / EPISODE_STATS_FILE).exists():
            for _ in meta.read_lines(root / EPISODE_STATS_FILE):
                pass
    except DataError as error:
        return LEROBOT("stats_unreadable", error.message, path=error.details.get("path"))
    if stats or any(lists.episode_statistics(root, info).values()):
        return None
    problem = "has no statistics; vlatool computes its own from the rows"
    return LEROBOT.at("no_statistics", root, problem)


# Rows


class _Summary:
    """Facts of the rows of all episodes that can be read."""

    def __init__(self, dataset: Dataset) -> None:
        self.names: list[str] = []  # fields that are numeric vectors
        for name in dataset.field_names:
            feature = dataset.info.features.get(name)
            if feature is not None and feature.is_number and feature.width is not None:
                self.names.append(name)
        self.first: dict[str, Array] = {}  # field to its first row [C]
        self.is_constant: dict[str, Array] = {}  # and to the dimensions that keep it, bool [C]
        self.expected = 0  # value of `index` in the next row
        self.columns: set[str] = set()
        self.is_whole = True  # True if all rows could be read
        self._dataset = dataset
        self._episodes: dict[bytes, int] = {}

    def add(self, number: int, rows: Rows) -> int:
        """Adds the rows of an episode; returns an earlier episode with equal rows, else -1."""
        self.expected += len(rows)
        self.columns.update(rows.columns)
        digest = hashlib.blake2b()
        is_moving = False
        for name in self.names:
            try:
                values = rows.vectors(name, self._dataset.info.features[name].width)
                check_finite(rows, name, values)
            except DataError:  # the check of the episode reports it
                continue
            if not len(values):
                continue
            digest.update(values.tobytes())
            is_moving |= bool((values != values[0]).any())
            first = self.first.setdefault(name, values[0].copy())
            is_constant = (values == first).all(axis=0)
            self.is_constant[name] = self.is_constant.get(name, is_constant) & is_constant
        if not is_moving:
            return -1
        same = self._episodes.setdefault(digest.digest(), number)
        return -1 if same == number else same


def _check_rows(root: Path, episodes: Sequence[EpisodeFiles]) -> Iterator[Finding]:
    """Makes all checks that need the rows of all episodes, in one pass.

    Skips rows that cannot be read: the check of their episode reports them.
    """
    dataset = episodes[0].dataset
    summary = _Summary(dataset)
    for episode in episodes:
        try:
            yield from _check_next(episode, summary)
        except DataError:
            summary.is_whole = False
    if summary.columns:
        info_path = str(root / INFO_FILE)
        for name, feature in dataset.info.features.items():
            if feature.dtype not in ("video", "audio") and name not in summary.columns:
                problem = f"no file has the feature {name!r}"
                yield LEROBOT.at("feature_without_column", info_path, problem, field=name)
    if summary.expected > 1:
        for name, is_constant in summary.is_constant.items():
            yield from _constant_dimensions(dataset, name, is_constant)


def _check_next(episode: EpisodeFiles, summary: _Summary) -> Iterator[Finding]:
    """Adds the rows of an episode; checks `index`, and that the rows are new."""
    name = f"episode {episode.number}"
    rows = read_rows(episode.segment(), name, [*summary.names, "index"])
    if "index" in rows.columns:
        first = rows.first("index")
        if first != summary.expected and summary.is_whole:
            problem = f"index starts at {first} and should start at {summary.expected}"
            yield LEROBOT.at("index_gap", rows.path, problem, field="index", frame=0)
            if isinstance(first, int):
                summary.expected = first
    same = summary.add(episode.number, rows)
    if same >= 0:
        problem = f"{name} has the same observations and actions as episode {same}"
        yield LEROBOT.at("duplicate_episode", rows.path, problem)


def _constant_dimensions(dataset: Dataset, name: str, is_constant: Array) -> Iterator[Finding]:
    constant = np.flatnonzero(is_constant).tolist()
    width = len(is_constant)
    if not constant or width == 1:
        return
    names = {name: dataset.dimension_names.get(name, ())}
    shown = ", ".join(dimension_label(name, index, width, names) for index in constant)
    if len(constant) > _MOST_NAMED:
        shown = f"{name}: {indices_text(constant)}"
    problem = f"{len(constant)} of {counted(width, 'dimension')} never change: {shown}"
    yield LEROBOT.at("constant_dimensions", dataset.root, problem, field=name)
