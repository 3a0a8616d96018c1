"""stats_digests.npz: what only a merge needs of the statistics beside it.

Per field `FIELD.means`, float64 [T, C, K], the K centroids of each step and channel, +inf where
unused, and `FIELD.weights`, int64 [T, C, K], the values that each stands for; without the latter
each is a value itself. In the published layout the digests are in stats.json, as `tdigest_state`;
they are a hundred times as large as the rest of it. Source: formats/lbm 4.2, 4.5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlatool.artifacts.npz_bytes import read_arrays, write_arrays
from vlatool.artifacts.stats import Statistics, read_stats, write_stats
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.storage.atomic import remove_file, write_bytes
from vlatool.transforms.quantiles import Digest, from_state

_STATES = ("tdigest_state", "tdigest_state_per_timestep")
_STATE = _STATES[1]  # the other one follows from it


def digests_path(stats: Path) -> Path:
    """Where the digests of statistics are: beside them."""
    return stats.with_name(f"{stats.stem}_digests.npz")


def without_digests(stats: Mapping[str, Mapping[str, Any]]) -> Statistics:
    """The statistics with null in place of each digest."""
    return {name: {**entry, **dict.fromkeys(_STATES)} for name, entry in stats.items()}


def write_with_digests(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes statistics, and their digests beside them."""
    remove_file(digests_path(path))  # at no time are there digests of other statistics
    write_stats(path, without_digests(stats))
    _write_digests(digests_path(path), stats)


def _write_digests(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the digests of statistics that have them; fields without one are left out."""
    arrays: dict[str, Array] = {}
    for name, entry in stats.items():
        if (state := entry.get(_STATE)) is not None:
            digest, shape = from_state(state), tuple(state["shape"])
            arrays[f"{name}.means"] = digest.means.reshape(*shape, -1)
            if digest.weights is not None:
                arrays[f"{name}.weights"] = digest.weights.reshape(*shape, -1)
    write_bytes(path, write_arrays(arrays))


def read_mergeable(path: Path) -> Statistics:
    """Statistics with their digests, whether those are in the file or beside it.

    Raises:
        DataError: Either is missing or broken.
    """
    stats = read_stats(path)
    beside = digests_path(path)
    try:
        arrays = read_arrays(beside.read_bytes())
    except FileNotFoundError:
        return stats
    except (OSError, ValueError) as error:
        raise DataError(
            f"{beside}: {error}",
            hint="the file is damaged; preprocess or copy the data again",
            code="data.broken_statistics",
            details={"path": str(beside)},
        ) from None
    return {name: {**entry, **_digest(name, arrays)} for name, entry in stats.items()}


def _digest(name: str, arrays: Mapping[str, Array]) -> dict[str, Digest]:
    means, weights = (arrays.get(f"{name}.{part}") for part in ("means", "weights"))
    if means is None or means.ndim != 3 or (weights is not None and weights.shape != means.shape):
        return {}
    rows = (-1, means.shape[2])
    return {_STATE: Digest(means.reshape(rows), None if weights is None else weights.reshape(rows))}
