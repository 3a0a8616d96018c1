"""stats.json: statistics of every field, read tolerantly, written strictly.

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

NAME = "stats.json"
COMPACT_NAME = "stats_compact.json"

Statistics = dict[str, dict[str, Any]]


def read_stats(path: Path) -> Statistics:
    """The statistics of a data set; `NaN` and `Infinity` literals become None.

    Raises:
        DataError: The file is missing or not a JSON object of fields.
    """
    try:
        content: object = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=lambda _: None
        )
    except OSError as error:
        raise DataError(
            f"{path}: no statistics here ({error.strerror})",
            hint="statistics are written beside the manifest by `vlatool preprocess`",
            code="data.no_statistics",
            details={"path": str(path)},
        ) from None
    except ValueError as error:
        raise _broken(path, f"not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise _broken(path, "expected a JSON object")
    return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


def _broken(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: {problem}",
        hint="the file is damaged; preprocess or copy the data again",
        code="data.broken_statistics",
        details={"path": str(path)},
    )


def write_stats(paths: Sequence[Path], stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the same statistics to every path, as one line of strict JSON."""
    text = json.dumps(stats, allow_nan=False, ensure_ascii=False) + "\n"
    for path in paths:
        write_text(path, text)


def write_compact_stats(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what training reads: everything but the digest states, a hundredth of the size."""
    write_stats([path], compact(stats))


def compact(stats: Mapping[str, Mapping[str, Any]]) -> Statistics:
    """Statistics without the digest states, which only another merge needs."""
    return {
        name: {key: value for key, value in entry.items() if not key.startswith("tdigest_state")}
        for name, entry in stats.items()
    }


def number_array(value: object) -> Array | None:
    """A value of an entry as float64, NaN for null; None for what is no array of numbers."""
    try:
        return np.asarray(value, np.float64) if value is not None else None
    except (TypeError, ValueError):
        return None
