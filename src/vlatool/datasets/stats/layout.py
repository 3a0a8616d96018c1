"""stats.json: statistics of all fields, read tolerantly, written as strict JSON, merged.

stats_digests.npz has the quantile digests of the statistics in the same folder, used by merges
only: per field `FIELD.means`, float64 [T, C, K], the K centroids of each step and dimension, +inf
where unused, and `FIELD.weights`, int64 [T, C, K], the number of values of each centroid; without
weights each centroid is a single value. In the published layout the digests are in stats.json, as
`tdigest_state`; they are a hundred times as large as the rest.

Source: formats/lbm 4.1, 4.2, 4.4, 4.5, 6.2.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlatool import __version__
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.jobs.files import FileEntry, entry_of, is_intact, row_of
from vlatool.media.npz import read_arrays, write_arrays
from vlatool.recordings.check import OUTPUT, CheckOptions, check_file
from vlatool.storage import documents
from vlatool.storage.atomic import remove_file, remove_partials_of, write_bytes
from vlatool.storage.byte_ranges import read_file
from vlatool.transforms.statistics import (
    Digest,
    WindowStatistics,
    from_state,
    merge,
    scaled,
    summary,
)

STATS_NAME = "stats.json"
DIGESTS_NAME = "stats_digests.npz"

# A thousand dimensions of a hundred steps, with their digests.
_MAX_BYTES = 2**30

Statistics = dict[str, dict[str, Any]]


def read_stats(path: Path) -> Statistics:
    """Statistics of a data set; `NaN` and `Infinity` literals become None."""
    problem = "expected a JSON object"
    try:
        text = documents.read_document(path, max_bytes=_MAX_BYTES)
        content: object = documents.parse_json(text, constants=lambda _: None)
    except OSError as error:
        raise DataError.at(
            path,
            f"no statistics here ({error.strerror})",
            hint="`vlatool stats compute DATA` computes them from the shards",
            code="data.missing",
            finding="no_statistics",
        ) from None
    except documents.DocumentError as error:
        content = None
        problem = error.reason
    if not isinstance(content, dict):
        raise DataError.at(
            path,
            problem,
            hint="the file is damaged; preprocess or copy the data again",
            code="data.broken",
            finding="broken_statistics",
        )
    return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


def write_stats(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes statistics as one line of strict JSON."""
    write_bytes(path, stats_bytes(stats))


def stats_bytes(stats: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Content of a statistics file: one line of strict JSON."""
    return (json.dumps(stats, allow_nan=False, ensure_ascii=False) + "\n").encode()


def compact(stats: Mapping[str, Mapping[str, Any]]) -> Statistics:
    """Statistics without the digest states: what training reads, a hundredth of the size.

    Only a merge needs the digests.
    """
    compacted: Statistics = {}
    for name, entry in stats.items():
        compacted[name] = {
            key: value for key, value in entry.items() if not key.startswith(_STATES[0])
        }
    return compacted


def number_array(value: object) -> Array | None:
    """Value of an entry as float64, NaN for null; None if it is not an array of numbers."""
    if value is None:
        return None
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class StatsPart:
    statistics: Statistics  # its stats.json
    past: int | None = None  # steps of its windows before the anchor; None if unknown
    weight: float | None = None  # share of the mixture; None weights all rows equally
    location: str = ""  # of the data set, for messages


@dataclass(frozen=True)
class MergedStats:
    statistics: Statistics  # map from field to entry, for the fields that all parts have
    # map from omitted field to the reason
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    steps: int = 0  # number of steps of the windows that all parts cover


def merge_stats(parts: Sequence[Statistics]) -> Statistics:
    """Merged statistics for the fields that all data sets have; raises as `merge_parts`."""
    if len(parts) == 1:
        return parts[0]
    return merge_parts([StatsPart(part) for part in parts]).statistics


def merge_parts(
    parts: Sequence[StatsPart], *, leave_out_unequal: bool = False, of_some: bool = False
) -> MergedStats:
    """Merged statistics of data sets whose windows may differ: steps are aligned at the anchor.
    With `of_some`, a field that not all have is merged over the data sets that have it, for the
    steps that all have.
    """
    window = _common_window(parts) if of_some else None
    names: dict[str, None] = {}
    for part in parts:
        names |= dict.fromkeys(part.statistics)
    merged: Statistics = {}
    left_out: dict[str, str] = {}
    for name in names:
        owners: list[StatsPart] = []
        lacking: list[StatsPart] = []
        for part in parts:
            (owners if name in part.statistics else lacking).append(part)
        if lacking and not of_some:
            places = ", ".join(part.location for part in lacking if part.location)
            left_out[name] = f"not in {places or f'{len(lacking)} of {len(parts)}'}"
            continue
        widths = [_width(part.statistics[name]) for part in owners]
        if leave_out_unequal and len(set(widths)) > 1:
            texts: list[str] = []
            for part, width in zip(owners, widths, strict=True):
                texts.append(f"{width} wide in {part.location}")
            left_out[name] = "; ".join(texts)
            continue
        merged[name] = _merge_field(name, owners, window)
    if not merged:
        raise DataError(
            "the statistics have no field in common",
            hint="merge data sets of the same kind of robot",
            code="data.mismatch",
            details={"left_out": left_out},
        )
    steps = max(len(entry["count"]) for entry in merged.values())
    return MergedStats(merged, left_out, steps)


def _width(entry: Mapping[str, Any]) -> int:
    """Number of dimensions of a field; 0 if its entry is broken."""
    mean = entry.get("mean")
    return len(mean) if isinstance(mean, list) else 0


def _common_window(parts: Sequence[StatsPart]) -> tuple[int, int] | None:
    """Steps before the anchor, and from it on, that all parts have; None if one is unknown."""
    pasts = [part.past for part in parts if part.past is not None]
    if len(pasts) < len(parts):
        return None
    futures: list[int] = []
    for part, past in zip(parts, pasts, strict=True):
        steps = min(len(entry.get("count", ())) for entry in part.statistics.values())
        futures.append(steps - past)
    return min(pasts), min(futures)


def _merge_field(
    name: str, parts: Sequence[StatsPart], window: tuple[int, int] | None
) -> dict[str, Any]:
    try:
        partial = [_partial(part.statistics[name]) for part in parts]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"statistics of field {name!r} cannot be merged: {error}",
            hint="one of them lacks digests: give a folder of data, not statistics without their "
            "file of digests, nor a weighted merge",
            code="data.mismatch",
        ) from None
    partial = _apply_weights(parts, _align(name, parts, partial, window))
    total = partial[0]
    for part in partial[1:]:
        total = merge(total, part)
    return summary(total)


def _align(
    name: str,
    parts: Sequence[StatsPart],
    partial: Sequence[WindowStatistics],
    window: tuple[int, int] | None,  # steps that other data sets have, too
) -> list[WindowStatistics]:
    """Statistics of the steps around the anchor that all parts have."""
    shapes = {statistics.shape for statistics in partial}
    if window is None and len(shapes) == 1 and len({part.past for part in parts}) == 1:
        return list(partial)
    if len({width for _, width in shapes}) > 1:
        raise DataError(
            f"field {name!r} has different shapes (steps, dimensions) in the data sets: "
            f"{sorted(shapes)}",
            hint="preprocess them with the same options",
            code="data.mismatch",
            details={"field": name},
        )
    pasts = [part.past for part in parts if part.past is not None]
    if len(pasts) < len(parts):
        raise DataError(
            f"field {name!r}: the windows differ or may differ, and for "
            f"{len(parts) - len(pasts)} of {len(parts)} data sets the anchor is unknown",
            hint="put the preprocessing_config.yaml of each data set beside its stats.json",
            code="data.mismatch",
            details={"field": name},
        )
    if window is None:
        futures: list[int] = []
        for statistics, part_past in zip(partial, pasts, strict=True):
            futures.append(statistics.shape[0] - part_past)
        window = min(pasts), min(futures)
    past, future = window
    if future < 1:
        raise DataError(
            f"field {name!r} has fewer steps than past_lowdim_steps requires",
            hint="check that preprocessing_config.yaml and stats.json belong to the same data",
            code="data.mismatch",
            details={"field": name},
        )
    aligned: list[WindowStatistics] = []
    for statistics, part_past in zip(partial, pasts, strict=True):
        aligned.append(statistics.steps(part_past - past, part_past + future))
    return aligned


_FEWEST_ROWS = 2.0


def _apply_weights(
    parts: Sequence[StatsPart], partial: Sequence[WindowStatistics]
) -> list[WindowStatistics]:
    """Statistics with counts scaled to the share of each part in the mixture."""
    weights = [part.weight for part in parts if part.weight is not None]
    if len(weights) < len(parts):
        return list(partial)
    sizes = [float(statistics.count.max(initial=0)) for statistics in partial]
    rows_per_weight = sum(sizes) / sum(weights)
    factors: list[float] = []
    least = np.inf
    for statistics, weight, size in zip(partial, weights, sizes, strict=True):
        factor = weight * rows_per_weight / max(size, 1.0)
        factors.append(factor)
        counts = statistics.count[statistics.count > 0] * factor
        least = min(least, float(counts.min(initial=np.inf)))
    # Formulas of few rows hold for at least two.
    more = max(_FEWEST_ROWS / least, 1.0)
    return [_scale(part, factor * more) for part, factor in zip(partial, factors, strict=True)]


def _scale(part: WindowStatistics, factor: float) -> WindowStatistics:
    """Statistics as if every row occurred `factor` times."""
    count = part.count * factor  # fractions: rounding would shift the shares of small sets
    # Keeps the variance m2 / (count - 1) unchanged.
    m2 = part.m2 * np.maximum(count - 1, 0) / np.maximum(part.count - 1, 1)
    digest = scaled(part.digest, factor)
    return WindowStatistics(count, part.mean, m2, part.minimum, part.maximum, digest)


def _partial(entry: Mapping[str, Any]) -> WindowStatistics:
    """Mergeable statistics of a published entry."""
    mean = np.asarray(entry["mean_per_timestep"], np.float64)
    rows = np.asarray(entry["count"], np.int64)
    count = np.broadcast_to(rows[:, None], mean.shape)
    std = np.broadcast_to(np.asarray(entry["std_per_timestep"], np.float64), mean.shape)
    if not np.isfinite(mean + std)[count > 0].all():
        raise ValueError("a mean or a standard deviation is not a number")
    mean = np.where(count > 0, mean, 0.0)
    std = np.where(count > 0, std, 0.0)
    digest = entry[_STATE]
    if digest is None:
        raise ValueError("no digest state")
    if not isinstance(digest, Digest):
        digest = from_state(digest)
    if len(digest.means) != mean.size:
        raise ValueError("the digests have another shape than the means")
    return WindowStatistics(
        count=count,
        mean=mean,
        m2=std**2 * np.maximum(count - 1, 0),
        minimum=_fill_missing(entry["min_per_timestep"], np.inf),
        maximum=_fill_missing(entry["max_per_timestep"], -np.inf),
        digest=digest,
    )


def _fill_missing(values: object, fill: float) -> Array:
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, fill)


_STATES = ("tdigest_state", "tdigest_state_per_timestep")
_STATE = _STATES[1]  # the other is derived from it


def digests_path(stats: Path) -> Path:
    """Path of the digests of a statistics file, in the same folder."""
    return stats.with_name(f"{stats.stem}_digests.npz")


def without_digests(stats: Mapping[str, Mapping[str, Any]]) -> Statistics:
    """Statistics with each digest replaced by null."""
    no_states = dict.fromkeys(_STATES)
    return {name: {**entry, **no_states} for name, entry in stats.items()}


def write_with_digests(path: Path, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes statistics, and their digests in the same folder."""
    remove_file(digests_path(path))  # digests of earlier statistics never remain
    write_stats(path, without_digests(stats))
    write_bytes(digests_path(path), digests_bytes(stats))


def digests_bytes(stats: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Content of the digests file of statistics; fields without a digest are omitted."""
    arrays: dict[str, Array] = {}
    for name, entry in stats.items():
        state = entry.get(_STATE)
        if state is None:
            continue
        digest = from_state(state)
        shape = tuple(state["shape"])
        arrays[f"{name}.means"] = digest.means.reshape(*shape, -1)
        if digest.weights is not None:
            arrays[f"{name}.weights"] = digest.weights.reshape(*shape, -1)
    return write_arrays(arrays)


def read_mergeable(path: Path) -> Statistics:
    """Statistics with their digests, from the file itself or from the digests file."""
    stats = read_stats(path)
    digests_file = digests_path(path)
    try:
        arrays = read_arrays(read_file(digests_file))
    except FileNotFoundError:
        return stats
    except (OSError, ValueError) as error:
        raise DataError.at(
            digests_file,
            str(error),
            hint="the file is damaged; preprocess or copy the data again",
            code="data.broken",
            finding="broken_statistics",
        ) from None
    return {name: {**entry, **_digest(name, arrays)} for name, entry in stats.items()}


def _digest(name: str, arrays: Mapping[str, Array]) -> dict[str, Digest]:
    means = arrays.get(f"{name}.means")
    weights = arrays.get(f"{name}.weights")
    if means is None or means.ndim != 3:
        return {}
    rows = (-1, means.shape[2])
    if weights is None:
        return {_STATE: Digest(means.reshape(rows), None)}
    if weights.shape != means.shape:
        return {}
    return {_STATE: Digest(means.reshape(rows), weights.reshape(rows))}


@dataclass(frozen=True)
class StatsRecord:
    """Input and files of computed statistics."""

    inputs: str  # digest of names, sizes and sample counts of the shards
    # the digests file and the statistics, in the order in which they are written
    files: tuple[FileEntry, ...]
    contents: str = ""  # digest of the contents of the shards; empty for remote ones

    def changed(self, stats: Path) -> list[Path]:
        """Files that are missing or differ from the record."""
        folder = stats.parent
        return [folder / entry.path for entry in self.files if not is_intact(folder, entry)]


def record_path(stats: Path) -> Path:
    """Path of the record of a statistics file, in the same folder."""
    return stats.with_name(f"{stats.stem}_record.json")


def read_stats_record(stats: Path) -> StatsRecord | None:
    """Record of a statistics file; None if there is none."""
    path = record_path(stats)
    try:
        document = documents.read_checksummed(path)
        files = tuple(entry_of(row) for row in document["files"])
        return StatsRecord(str(document["inputs"]), files, str(document.get("contents", "")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, documents.DocumentError, ValueError, KeyError, TypeError) as error:
        raise DataError.at(
            path,
            f"is not a record of statistics ({error})",
            hint="compute the statistics again with --overwrite",
            code="data.broken",
            finding="broken_record",
        ) from None


def write_recorded(
    stats: Path, entries: Mapping[str, Mapping[str, Any]], inputs: str, contents: str
) -> None:
    """Writes statistics, their digests and their record, in place of earlier ones.

    `inputs` and `contents` are as in `StatsRecord`.
    """
    digests = digests_path(stats)
    record = record_path(stats)
    written = {digests: digests_bytes(entries), stats: stats_bytes(without_digests(entries))}
    for path in (record, digests, stats):
        remove_partials_of(path)
    # A new record with old files would make those look changed by someone else.
    for path in (stats, digests):
        remove_file(path)
    rows: list[dict[str, Any]] = []
    for path, content in written.items():
        digest = hashlib.sha256(content).hexdigest()
        rows.append(row_of(FileEntry(path.name, len(content), digest)))
    document = {
        "command": "stats compute",
        "version": __version__,
        "inputs": inputs,
        "contents": contents,
        "files": rows,
    }
    documents.write_checksummed(record, document)
    for path, content in written.items():
        write_bytes(path, content)


def check_recorded(stats: Path, check: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a statistics file and its digests if they have a record."""
    try:
        record = read_stats_record(stats)
    except DataError as error:
        yield OUTPUT("broken_record", error.message, path=str(record_path(stats)))
        return
    for entry in record.files if record else ():
        yield from check_file(OUTPUT, stats.with_name(entry.path), entry, check)
