"""stats.json: statistics of every field, read tolerantly, merged, written strictly.

Source: lbm-data 3.12, 8.2.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.storage.atomic import write_text
from vlatool.transforms.quantiles import Digest, from_state
from vlatool.transforms.statistics import WindowStatistics, merge, summary

Statistics = dict[str, dict[str, Any]]


def read_stats(path: Path) -> Statistics:
    """The statistics of a data set; `NaN` and `Infinity` literals become None.

    Raises:
        DataError: The file is missing or not a JSON object of fields.
    """
    try:
        content: object = json.loads(path.read_text(), parse_constant=lambda _: None)
    except OSError as error:
        raise DataError(
            f"{path}: no statistics here ({error.strerror})",
            hint="statistics are written beside the manifest by `vlatool preprocess`",
            code="data.no_statistics",
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}", code="data.broken_statistics") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object", code="data.broken_statistics")
    return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


def write_stats(paths: Sequence[Path], stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the same statistics to every path, as one line of strict JSON."""
    text = json.dumps(stats, allow_nan=False, ensure_ascii=False) + "\n"
    for path in paths:
        write_text(path, text)


def write_compact_stats(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what training reads: everything but the digest states, a hundredth of the size."""
    write_stats([path], {name: compact(entry) for name, entry in stats.items()})


def compact(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without its digest states."""
    return {key: value for key, value in entry.items() if not key.startswith("tdigest_state")}


def merge_stats(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of several data sets taken together, for the fields that all of them have.

    Raises:
        DataError: A field has another shape in one of them, or lacks what merging needs.
    """
    if len(parts) == 1:
        return parts[0]
    common = [name for name in parts[0] if all(name in part for part in parts[1:])]
    return {name: _merge_field(name, [part[name] for part in parts]) for name in common}


def _merge_field(name: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    try:
        partial = [_partial(entry) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"statistics of field {name!r} cannot be merged: {error}",
            hint="statistics of one of the data sets lack digests; preprocess it again",
            code="data.unmergeable_statistics",
        ) from None
    shapes = {part.mean.shape for part in partial}
    if len(shapes) > 1:
        raise DataError(
            f"field {name!r} has different shapes (steps, channels) in the data sets: {shapes}",
            hint="train on data sets that were preprocessed alike",
            code="data.unmergeable_statistics",
        )
    merged = partial[0]
    for part in partial[1:]:
        merged = merge(merged, part)
    return summary(merged)


def _partial(entry: Mapping[str, Any]) -> WindowStatistics:
    """The partial statistics behind a published entry."""
    mean = np.asarray(entry["mean_per_timestep"], np.float64)
    rows = np.asarray(entry["count"], np.int64)
    count = np.broadcast_to(rows[:, None], mean.shape)
    std = np.broadcast_to(np.asarray(entry["std_per_timestep"], np.float64), mean.shape)
    return WindowStatistics(
        count=count,
        mean=mean,
        m2=std**2 * np.maximum(count - 1, 0),
        minimum=_filled(entry["min_per_timestep"], np.inf),
        maximum=_filled(entry["max_per_timestep"], -np.inf),
        digest=_digest(entry),
    )


def _digest(entry: Mapping[str, Any]) -> Digest:
    state = entry["tdigest_state_per_timestep"]
    if state is None:
        raise ValueError("no digest state")
    return from_state(state)


def _filled(values: object, fill: float) -> Array:
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, fill)
