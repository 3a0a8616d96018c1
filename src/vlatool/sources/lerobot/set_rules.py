"""The rules of a LeRobot data set as a whole: totals, splits, features, statistics, counting.

Published statistics are checked against the rows, never believed. Legend of shapes: F frames, C
channels. Source: lerobot-format 9.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.lerobot import EPISODE_STATS_FILE, INFO_FILE, STATS_FILE, moments
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.lerobot.codes import LEROBOT
from vlatool.sources.lerobot.config import LeRobotConfig
from vlatool.sources.lerobot.dataset import Recording, dataset_roots, open_dataset
from vlatool.sources.lerobot.meta import read_tasks
from vlatool.sources.lerobot.rows import Rows, read_rows

Statistics = Mapping[str, Mapping[str, Any]]

# float32 sums over many rows; SO-101 agrees with its rows to 3e-4. Source: lerobot-format 9
_TOLERANCE = 1e-3


def check_sets(sources: Sequence[Path], config: LeRobotConfig) -> Iterator[Finding]:
    """What concerns whole data sets, besides what `discover` notices.

    Args:
        sources: Data sets, or folders with data sets.
        config: What of them is read.
    """
    for source in sources:
        for root in dataset_roots(source):
            yield from _check_root(root, open_dataset(root, config, []))


def _check_root(root: Path, recordings: Sequence[Recording]) -> Iterator[Finding]:
    path = root / INFO_FILE
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    for code, field, problem in (
        *_totals(tree, root, recordings),
        *_splits(tree, len(recordings)),
        *_names(tree),
    ):
        yield LEROBOT(code, f"{path}: {field} {problem}", path=str(path), field=field)
    try:
        read_tasks(root)
    except DataError as error:
        yield LEROBOT.refusal(error)
    yield from _check_rows(root, recordings)


def _totals(
    tree: Mapping[str, Any], root: Path, recordings: Sequence[Recording]
) -> Iterator[tuple[str, str, str]]:
    """(code, key, problem) of numbers that contradict the files."""
    info = recordings[0].dataset.info
    videos = sum(path.exists() for one in recordings for path in one.videos.values())
    true = {
        "total_episodes": len(recordings),
        "total_tasks": _task_count(root),
        "total_videos": videos,
        "total_chunks": max(one.line.number for one in recordings) // info.chunks_size + 1,
    }
    for key, value in true.items():
        stated = tree.get(key)
        if value is not None and stated is not None and stated != value:
            code = "chunks" if key == "total_chunks" else "totals_mismatch"
            yield code, key, f"is {stated}, there are {value}"


def _task_count(root: Path) -> int | None:
    try:
        return len(read_tasks(root)) or None
    except DataError:
        return None


def _splits(tree: Mapping[str, Any], episodes: int) -> Iterator[tuple[str, str, str]]:
    splits = tree.get("splits")
    for name, span in splits.items() if isinstance(splits, dict) else ():
        start, _, stop = str(span).partition(":")
        if not (start.isdigit() and stop.isdigit() and int(start) <= int(stop) <= episodes):
            yield "splits", f"splits.{name}", f"is {span!r}, there are {episodes} episodes"


def _names(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Vectors with another number of names than values."""
    for name, feature in tree["features"].items():
        if not isinstance(feature, dict):
            continue
        shape, names = feature.get("shape"), feature.get("names")
        if not isinstance(shape, list) or not isinstance(names, list) or len(shape) != 1:
            continue
        if len(names) != shape[0]:
            yield "names_mismatch", name, f"has {len(names)} names for {shape[0]} values"


def _check_rows(root: Path, recordings: Sequence[Recording]) -> Iterator[Finding]:
    """One pass over all rows: columns, continuation of `index`, statistics of the set."""
    info = recordings[0].dataset.info
    stated = set_statistics(root)
    tested = [name for name in stated if name in info.features and info.features[name].is_number]
    declared = [name for name, one in info.features.items() if one.dtype != "video"]
    seen: set[str] = set()
    parts: dict[str, list[Array]] = {name: [] for name in tested}
    expected = 0
    for recording in recordings:
        rows = _rows(recording, [*tested, "index"])
        if rows is None:
            break
        seen.update(rows.columns)
        if "index" in rows.columns:
            yield from _check_start(rows, expected)
        expected += len(rows)
        for name in tested:
            if name in rows.columns:
                parts[name] += _vectors(rows, name)
    else:
        yield from _check_features(root, [name for name in declared if name not in seen])
        whole = {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}
        for name, problem in contradictions(stated, whole):
            path = root / STATS_FILE
            message = f"{path}: {name} {problem}"
            yield LEROBOT("stats_contradict", message, path=str(path), field=name)


def _check_features(root: Path, absent: Sequence[str]) -> Iterator[Finding]:
    for name in absent:
        message = f"{root / INFO_FILE}: the feature {name!r} is in no file"
        yield LEROBOT("feature_without_column", message, path=str(root / INFO_FILE), field=name)


def _check_start(rows: Rows, expected: int) -> Iterator[Finding]:
    first = rows.values("index")[0]
    if first != expected:
        message = f"{rows.path}: index starts at {first}, the episodes before end at {expected}"
        yield LEROBOT("index_gap", message, path=str(rows.path), field="index", frame=0)


def _rows(recording: Recording, wanted: Sequence[str]) -> Rows | None:
    """The rows; None where they cannot be read, which the check of the episode tells."""
    try:
        return read_rows(recording.data_file, f"episode {recording.line.number}", wanted)
    except DataError:
        return None


def _vectors(rows: Rows, name: str) -> list[Array]:
    try:
        values = rows.vectors(name, None)
        rows.refuse_non_finite(name, values)
        return [values]
    except DataError:
        return []


def set_statistics(root: Path) -> Statistics:
    """meta/stats.json; empty where it is missing or broken."""
    try:
        return _features(json.loads((root / STATS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def episode_statistics(root: Path) -> Mapping[int, Statistics]:
    """Number of an episode to its line of meta/episodes_stats.jsonl."""
    path = root / EPISODE_STATS_FILE
    return _parsed(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=4)  # every episode asks for its line
def _parsed(path: Path, changed: int) -> Mapping[int, Statistics]:
    del changed
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        trees = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        return {}
    return {
        tree["episode_index"]: _features(tree.get("stats"))
        for tree in trees
        if isinstance(tree, dict) and isinstance(tree.get("episode_index"), int)
    }


def contradictions(stated: Statistics, rows: Mapping[str, Array]) -> Iterator[tuple[str, str]]:
    """(feature, problem) wherever a stated number is not that of the rows.

    Args:
        stated: Feature to `min`, `max`, `mean`, `std`, `count`.
        rows: Feature to its values [F, C].
    """
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
        if count and [len(values)] != list(np.ravel(count)):
            yield name, f"counts {list(np.ravel(count))} rows, there are {len(values)}"


def _difference(key: str, stated: object, true: Array, scale: Array) -> str:
    if stated is None:
        return ""
    try:
        numbers = np.asarray(stated, np.float64).ravel()
    except (TypeError, ValueError):
        return f"{key} is not a list of numbers"
    if numbers.shape != true.shape:
        return f"{key} has {len(numbers)} values, the rows have {len(true)}"
    apart = ~(np.abs(numbers - true) <= _TOLERANCE * scale)
    if not apart.any():
        return ""
    channel = int(apart.argmax())
    return f"{key} of channel {channel} is {numbers[channel]:.6g}, the rows say {true[channel]:.6g}"


def _features(tree: object) -> Statistics:
    if not isinstance(tree, dict):
        return {}
    return {str(name): entry for name, entry in tree.items() if isinstance(entry, dict)}
