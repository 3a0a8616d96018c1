"""stats_digests.npz: quantile digests of the statistics in the same folder, used by merges only.

Per field `FIELD.means`, float64 [T, C, K], the K centroids of each step and dimension, +inf where
unused, and `FIELD.weights`, int64 [T, C, K], the number of values of each centroid; without
weights each centroid is a single value. In the published layout the digests are in stats.json, as
`tdigest_state`; they are a hundred times as large as the rest. Source: formats/lbm 4.2, 4.5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlatool.artifacts.npz_bytes import read_arrays, write_arrays
from vlatool.artifacts.stats.format import Statistics, read_stats, write_stats
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.storage.atomic import remove_file, write_bytes
from vlatool.transforms.quantiles import Digest, from_state

_STATES = ("tdigest_state", "tdigest_state_per_timestep")
_STATE = _STATES[1]  # the other is derived from it


def digests_path(stats: Path) -> Path:
    """Path of the digests of a statistics file, in the same folder."""
    return stats.with_name(f"{stats.stem}_digests.npz")


def without_digests(stats: Mapping[str, Mapping[str, Any]]) -> Statistics:
    """Statistics with each digest replaced by null."""
    return {name: {**entry, **dict.fromkeys(_STATES)} for name, entry in stats.items()}


def write_with_digests(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes statistics, and their digests in the same folder."""
    remove_file(digests_path(path))  # digests of earlier statistics never remain
    write_stats(path, without_digests(stats))
    _write_digests(digests_path(path), stats)


def _write_digests(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the digests of statistics; fields without a digest are omitted."""
    arrays: dict[str, Array] = {}
    for name, entry in stats.items():
        if (state := entry.get(_STATE)) is not None:
            digest, shape = from_state(state), tuple(state["shape"])
            arrays[f"{name}.means"] = digest.means.reshape(*shape, -1)
            if digest.weights is not None:
                arrays[f"{name}.weights"] = digest.weights.reshape(*shape, -1)
    write_bytes(path, write_arrays(arrays))


def read_mergeable(path: Path) -> Statistics:
    """Statistics with their digests, from the file itself or from the digests file.

    Raises:
        DataError: The statistics are missing or broken, or the digests are broken.
    """
    stats = read_stats(path)
    digests_file = digests_path(path)
    try:
        arrays = read_arrays(digests_file.read_bytes())
    except FileNotFoundError:
        return stats
    except (OSError, ValueError) as error:
        raise DataError(
            f"{digests_file}: {error}",
            hint="the file is damaged; preprocess or copy the data again",
            code="data.broken_statistics",
            details={"path": str(digests_file)},
        ) from None
    return {name: {**entry, **_digest(name, arrays)} for name, entry in stats.items()}


def _digest(name: str, arrays: Mapping[str, Array]) -> dict[str, Digest]:
    means, weights = (arrays.get(f"{name}.{part}") for part in ("means", "weights"))
    if means is None or means.ndim != 3 or (weights is not None and weights.shape != means.shape):
        return {}
    rows = (-1, means.shape[2])
    return {_STATE: Digest(means.reshape(rows), None if weights is None else weights.reshape(rows))}
