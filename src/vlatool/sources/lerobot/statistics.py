"""Published statistics of a LeRobot data set, checked against the rows, never believed.

Legend of shapes: F frames, C channels. Source: lerobot-format 9.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array

Statistics = Mapping[str, Mapping[str, Any]]

# float32 sums over many rows; SO-101 agrees with its rows to 3e-4. Source: lerobot-format 9
_TOLERANCE = 1e-3


def set_statistics(root: Path) -> Statistics:
    """meta/stats.json; empty where it is missing or broken."""
    try:
        return _features(json.loads((root / "meta/stats.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def episode_statistics(root: Path) -> Mapping[int, Statistics]:
    """Number of an episode to its line of meta/episodes_stats.jsonl."""
    path = root / "meta/episodes_stats.jsonl"
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
        true = {
            "min": numbers.min(axis=0),
            "max": numbers.max(axis=0),
            "mean": numbers.mean(axis=0),
            "std": numbers.std(axis=0),
        }
        for key, value in true.items():
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
