"""stats.json: statistics of every field, read tolerantly, written strictly.

Source: lbm-data 3.12, 8.2.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import write_text

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
