"""Checks of a LeRobot data set that only `verify` makes; they read data that nothing else needs.

They check values of an episode, and rules of the set as a whole: totals, splits, features,
statistics, row index. Published statistics are compared with the rows and not used. Legend of
shapes: F frames, C dimensions. Source: formats/lerobot 6, 8, 9, 12.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.lerobot.format import (
    EPISODE_STATS_FILE,
    FRAME_INDEX,
    INFO_FILE,
    STATS_FILE,
    moments,
)
from vlatool.config.scalars import value_text
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector, Finding
from vlatool.sources.lerobot.config import LeRobotConfig
from vlatool.sources.lerobot.dataset import EpisodeFiles, dataset_roots, open_dataset
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.meta import feature_names, read_lines, read_object, read_tasks
from vlatool.sources.lerobot.rows import Rows, read_rows
from vlatool.sources.lerobot.rules import EpisodeContents
from vlatool.sources.parquet_images import ParquetImages


def check_values(files: EpisodeFiles, contents: EpisodeContents, report: Collector) -> None:
    """Checks the order of rows, finite values, motion, and published statistics."""
    rows = contents.rows
    if rows is None:
        return
    _check_counting(rows, contents, report)
    _check_undeclared(files, rows, report)
    for name, values in contents.fields.items():
        names = files.dataset.info.features[name].dimension_names
        report.attempt(partial(rows.check_finite, name, values, names))
    vectors = {**contents.fields, **dict(_other_fields(files, rows, report))}
    _check_motion(rows, contents, report)
    for name, frames in contents.cameras.items():
        if isinstance(frames, ParquetImages):
            report.attempt(partial(frames.read, [0]), camera=name)
    published = episode_statistics(files.dataset.root).get(files.line.number, {})
    for name, problem in statistics_mismatches(published, vectors):
        message = f"meta/episodes_stats.jsonl, {rows.episode}: {name} {problem}"
        report.note("stats_contradict", message, field=name)


def _check_counting(rows: Rows, contents: EpisodeContents, report: Collector) -> None:
    """Checks that rows are in order and that `index` is continuous."""
    location = {"path": str(rows.path)}
    if not np.array_equal(rows.order, np.arange(len(rows))):
        message = f"{rows.path}: rows are not in the order of frame_index"
        report.note("rows_unsorted", message, **location, field=FRAME_INDEX)
    values = contents.metadata.get("index", ())
    start = values[0] if values and isinstance(values[0], int) else 0
    frame = next((row for row, value in enumerate(values) if value != row + start), None)
    if frame is not None:
        message = f"index is {values[frame]} at row {frame}, expected {frame + start}"
        report.note("index_gap", f"{rows.path}: {message}", **location, field="index", frame=frame)


def _check_undeclared(files: EpisodeFiles, rows: Rows, report: Collector) -> None:
    for name in rows.columns:
        if name not in files.dataset.info.features:
            message = f"{rows.path}: the column {name!r} is not a feature in meta/info.json"
            report.note("undeclared_column", message, path=str(rows.path), field=name)


def _other_fields(
    files: EpisodeFiles, rows: Rows, report: Collector
) -> Iterator[tuple[str, Array]]:
    """Numeric columns that are not fields of the episode, as [F, C]; defects are warnings."""
    used, features = files.dataset.field_names, files.dataset.info.features
    others = [
        name
        for name, feature in features.items()
        if feature.width is not None and feature.is_readable_number
        if name in rows.columns and name not in used
    ]
    for name in others:
        try:
            column = read_rows(rows.path, rows.episode, [name])
            values = column.vectors(name, features[name].width)
            column.check_finite(name, values)
        except DataError as error:
            report.note("unused_column", error.message, path=str(rows.path), field=name)
        else:
            yield name, values


def _check_motion(rows: Rows, contents: EpisodeContents, report: Collector) -> None:
    used = list(contents.fields.values())
    if used and len(used[0]) > 1 and not any(np.ptp(field, axis=0).any() for field in used):
        message = f"{rows.path}: no observation or action changes"
        report.note("no_motion", message, path=str(rows.path))


Statistics = Mapping[str, Mapping[str, Any]]

# float32 sums over many rows; SO-101 agrees with its rows to 3e-4. Source: formats/lerobot 9
_TOLERANCE = 1e-3
_NUMBER = re.compile(r"^[0-9]{1,18}\Z")


def check_sets(sources: Sequence[Path], config: LeRobotConfig) -> Iterator[Finding]:
    """Findings on whole data sets, besides those of `discover`."""
    for source in sources:
        for root in dataset_roots(source):
            episodes = open_dataset(root, config, [])
            yield from _check_root(root, [episode for episode in episodes if episode.is_listed])


def _check_root(root: Path, episodes: Sequence[EpisodeFiles]) -> Iterator[Finding]:
    path = root / INFO_FILE
    tasks: Mapping[int, str] = {}
    with suppress(DataError):  # the check of each episode reports it
        tasks = read_tasks(root)
    tree = read_object(path)
    for code, field, problem in (
        *_totals(tree, len(tasks), episodes),
        *_splits(tree, len(episodes)),
        *_names(tree),
    ):
        yield LEROBOT.at(code, path, f"{field} {problem}", field=field)
    if (finding := _statistics_finding(root)) is not None:
        yield finding
    yield from _check_rows(root, episodes)


def _totals(
    tree: Mapping[str, Any], tasks: int, episodes: Sequence[EpisodeFiles]
) -> Iterator[tuple[str, str, str]]:
    """(code, key, problem) of totals that differ from the files."""
    info = episodes[0].dataset.info
    videos = sum(path.exists() for episode in episodes for path in episode.videos.values())
    actual = {
        "total_episodes": len(episodes),
        "total_tasks": tasks or None,
        "total_videos": videos,
        "total_chunks": max(episode.line.number for episode in episodes) // info.chunks_size + 1,
    }
    for key, value in actual.items():
        stated = tree.get(key)
        if value is not None and stated is not None and stated != value:
            code = "chunks" if key == "total_chunks" else "totals_mismatch"
            yield code, key, f"is {value_text(stated)}, there are {value}"


def _splits(tree: Mapping[str, Any], episodes: int) -> Iterator[tuple[str, str, str]]:
    splits = tree.get("splits")
    for name, span in splits.items() if isinstance(splits, dict) else ():
        start, _, stop = str(span).partition(":")
        if not (
            _NUMBER.match(start) and _NUMBER.match(stop) and int(start) <= int(stop) <= episodes
        ):
            yield (
                "splits",
                f"splits.{name}",
                f"is {str(span)[:40]!r}, there are {counted(episodes, 'episode')}",
            )


def _names(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(code, feature, problem) of vectors whose numbers of names and values differ."""
    for name, feature in tree["features"].items():
        if not isinstance(feature, dict):
            continue
        shape, names = feature.get("shape"), feature.get("names")
        if not isinstance(shape, list) or not isinstance(names, list) or len(shape) != 1:
            continue
        count = len(feature_names(names))
        if count != shape[0]:
            problem = f"has {counted(count, 'name')} for {counted(shape[0], 'value')}"
            yield "names_mismatch", name, problem


def _check_rows(root: Path, episodes: Sequence[EpisodeFiles]) -> Iterator[Finding]:
    """Checks columns, continuity of `index` and statistics in one pass over all rows.

    Stops at rows that cannot be read; the check of that episode reports them.
    """
    info = episodes[0].dataset.info
    published = set_statistics(root)
    names = [name for name in published if name in info.features and info.features[name].is_number]
    missing = {name: None for name, episode in info.features.items() if episode.dtype != "video"}
    parts: dict[str, list[Array]] = {name: [] for name in names}
    expected = 0
    for episode in episodes:
        try:
            rows = read_rows(episode.data_file, f"episode {episode.line.number}", [*names, "index"])
        except DataError:
            return
        first = rows.first("index") if "index" in rows.columns else expected
        if first != expected:
            path = str(rows.path)
            problem = f"index starts at {first}, expected {expected}"
            yield LEROBOT.at("index_gap", path, problem, field="index", frame=0)
        expected += len(rows)
        for name in rows.columns:
            missing.pop(name, None)
            if name in parts:
                parts[name] += _vectors(rows, name)
    path = str(root / INFO_FILE)
    for name in missing:
        problem = f"no file has the feature {name!r}"
        yield LEROBOT.at("feature_without_column", path, problem, field=name)
    values = {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}
    path = str(root / STATS_FILE)
    for name, problem in statistics_mismatches(published, values):
        yield LEROBOT.at("stats_contradict", path, f"{name} {problem}", field=name)


def _vectors(rows: Rows, name: str) -> list[Array]:
    """The column; empty if it is invalid, which the check of the episode reports."""
    with suppress(DataError):
        values = rows.vectors(name, None)
        rows.check_finite(name, values)
        return [values]
    return []


def set_statistics(root: Path) -> Statistics:
    """Content of meta/stats.json; empty if it is missing or broken."""
    try:
        return _features(read_object(root / STATS_FILE))
    except DataError:
        return {}


def _statistics_finding(root: Path) -> Finding | None:
    """Finding on published statistics that cannot be read, or None."""
    try:
        if (root / STATS_FILE).exists():
            read_object(root / STATS_FILE)
        if (root / EPISODE_STATS_FILE).exists():
            for _ in read_lines(root / EPISODE_STATS_FILE):
                pass
    except DataError as error:
        return LEROBOT("stats_unreadable", error.message, path=error.details.get("path"))
    return None


def episode_statistics(root: Path) -> Mapping[int, Statistics]:
    """Map from number of an episode to its line of meta/episodes_stats.jsonl."""
    path = root / EPISODE_STATS_FILE
    return _read_episode_statistics(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=4)  # each episode needs its line
def _read_episode_statistics(path: Path, changed: int) -> Mapping[int, Statistics]:
    del changed
    try:
        return {
            tree["episode_index"]: _features(tree.get("stats"))
            for _, tree in read_lines(path)
            if isinstance(tree.get("episode_index"), int)
        }
    except DataError:
        return {}


def statistics_mismatches(
    stated: Statistics, rows: Mapping[str, Array]
) -> Iterator[tuple[str, str]]:
    """(feature, problem) of published statistics that differ from those of the rows [F, C]."""
    for name, values in rows.items():
        entry = stated.get(name)
        if entry is None or not len(values):
            continue
        numbers = values.astype(np.float64)
        scale = np.maximum(np.abs(numbers).max(axis=0), 1e-6)
        for key, value in moments(numbers).items():
            problem = _difference(key, entry.get(key), value, scale)
            if problem:
                yield name, problem
        count = entry.get("count")
        if count and count not in (len(values), [len(values)]):
            yield name, f"has count {str(count)[:40]}, there are {counted(len(values), 'row')}"


def _difference(key: str, stated: object, actual: Array, scale: Array) -> str:
    if stated is None:
        return ""
    try:
        numbers = np.asarray(stated, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        return f"{key} is not a list of numbers"
    if numbers.shape != actual.shape:
        return f"{key} has {counted(len(numbers), 'value')}, the rows have {len(actual)}"
    differs = ~(np.abs(numbers - actual) <= _TOLERANCE * scale)
    if not differs.any():
        return ""
    column = int(differs.argmax())
    return (
        f"{key} of dimension {column} is {numbers[column]:.6g}, "
        f"that of the rows is {actual[column]:.6g}"
    )


def _features(tree: object) -> Statistics:
    if not isinstance(tree, dict):
        return {}
    return {str(name): entry for name, entry in tree.items() if isinstance(entry, dict)}
