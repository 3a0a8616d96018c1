"""Checks of stats.json against the samples.

Legend of shapes: N samples, T steps, C channels. Source: formats/lbm 4.1, 6.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.fields import dimension_label
from vlatool.artifacts.shards.check_samples import ExpectedSample, SampleContext, numeric_fields
from vlatool.artifacts.shards.findings import STATS
from vlatool.artifacts.shards.format import ShardFolder
from vlatool.artifacts.stats.format import compact, number_array, read_stats
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.documents import parse_json

_NEEDED = ("mean", "std", "min", "max", "count")
# Sums of float64 in another order; published files agree with their samples to 1e-12.
_TOLERANCE = 1e-9


class StatsCheck:
    """Compares the values of samples with the recorded statistics."""

    def __init__(self, folder: ShardFolder, expected: ExpectedSample, *, recompute: bool) -> None:
        self.path = folder.statistics_file
        self._expected = expected
        self._folder = folder
        self._entries: dict[str, dict[str, Any]] = {}
        self._recompute = recompute
        self._bounds: dict[str, tuple[Array, Array]] = {}
        self._moments: dict[str, _FieldMoments] = {}
        self._outside: dict[str, Finding] = {}
        self._num_samples = 0

    def read(self) -> Iterator[Finding]:
        """Reads the file and yields its findings."""
        if not self.path.is_file():
            if self._expected.has_statistics:
                yield self._finding("missing", "is missing")
            return
        try:
            self._entries = read_stats(self.path)
        except DataError as error:
            yield self._finding("broken", error.message)
            return
        if not _is_strict(self.path):
            yield self._finding("not_strict", "has NaN or Infinity")
        yield from self._check_copies()
        self._bounds = {
            name: bounds for name, entry in self._entries.items() if (bounds := _bounds(entry))
        }

    def add(self, context: SampleContext, arrays: Mapping[str, Array]) -> None:
        """Adds the fields [T, C] of a sample; padded rows do not count."""
        self._num_samples += 1
        valid = arrays["past_mask"] | arrays["future_mask"]
        for name, (low, high) in self._bounds.items():
            if name not in arrays:
                continue
            values = _as_float(arrays[name])
            if values.shape == low.shape == high.shape and len(valid) == len(values):
                self._compare(context, name, values, valid[:, None], (low, high))
                if self._recompute:
                    self._moments.setdefault(name, _FieldMoments(values.shape)).add(values, valid)

    def findings(
        self, fields: Mapping[str, tuple[tuple[int, ...], str]], samples: int
    ) -> Iterator[Finding]:
        """Yields the remaining findings after the last sample; `fields`: shape and data type of
        each field of the samples; empty if none was read.
        """
        yield from self._outside.values()
        numeric = numeric_fields(fields)
        for name in numeric if self._entries else ():
            entry = self._entries.get(name)
            if entry is None:
                yield self._finding("missing_field", f"has no entry for {name!r}", name)
            else:
                yield from self._check_entry(name, entry, fields[name][0])
        for name in self._entries if fields else ():
            if name not in numeric:
                yield self._finding("extra_field", f"has {name!r}, which samples lack", name)
        yield from self._check_counts(samples)
        # A sample with invalid arrays is in the recorded statistics, but not in the moments.
        for name, total in self._moments.items() if self._num_samples == samples else ():
            yield from self._check_values(name, total)

    def _compare(
        self,
        context: SampleContext,
        name: str,
        values: Array,
        valid: Array,
        bounds: tuple[Array, Array],
    ) -> None:
        """Records the first value of a field outside `bounds`, each [T, C], as a finding."""
        low, high = bounds
        slack = _TOLERANCE * np.maximum(np.maximum(np.abs(low), np.abs(high)), 1e-30)
        outside = valid & ((values < low - slack) | (values > high + slack))
        if name in self._outside or not outside.any():
            return
        step, dimension = (int(index) for index in np.argwhere(outside)[0])
        at = (step, dimension)
        label = dimension_label(name, dimension, values.shape[1], self._expected.names)
        message = (
            f"{label!r}, step {step}: {values[at]:.9g} in sample "
            f"{context.sample.key} is not within {low[at]:.9g} .. {high[at]:.9g}"
        )
        location = {"shard": context.shard, "sample": context.sample.key}
        self._outside[name] = self._finding("out_of_range", message, name, **location)

    def _check_entry(
        self, name: str, entry: Mapping[str, Any], shape: Sequence[int]
    ) -> Iterator[Finding]:
        steps, width = shape[0], int(np.prod(shape[1:]))
        missing = [key for key in _NEEDED if entry.get(key) is None]
        if missing:
            yield self._finding("broken", f"{name!r} lacks {', '.join(missing)}", name)
            return
        shapes = {"mean": (width,), "min": (width,), "max": (width,), "count": (steps,)}
        shapes |= {"mean_per_timestep": (steps, width)} if "mean_per_timestep" in entry else {}
        for key, expected in shapes.items():
            numbers = number_array(entry[key])
            if numbers is None or numbers.shape != expected:
                problem = "is ragged" if numbers is None else f"has the shape {list(numbers.shape)}"
                message = f"{name!r}: {key} {problem}, expected {list(expected)}"
                yield self._finding("wrong_shape", message, name)

    def _check_counts(self, samples: int) -> Iterator[Finding]:
        """Compares `count` with the number of samples; the anchor is never padded."""
        for name, entry in self._entries.items():
            counts = entry.get("count")
            is_list = isinstance(counts, list) and all(isinstance(value, int) for value in counts)
            if not is_list or not counts:
                continue
            past = self._expected.past
            anchor = counts[past] if past is not None and past < len(counts) else max(counts)
            if anchor != samples or max(counts) > samples:
                message = (
                    f"{name!r} counts {counted(anchor, 'row')} at the anchor, expected "
                    f"{counted(samples, 'sample')}"
                )
                yield self._finding("wrong_count", message, name)

    def _check_values(self, name: str, total: "_FieldMoments") -> Iterator[Finding]:
        entry = self._entries[name]
        scale = total.scale()
        for key, computed in total.entry().items():
            published = number_array(entry.get(key))
            if (
                published is None
                or np.broadcast_shapes(published.shape, computed.shape) != computed.shape
            ):
                continue
            slack = 0.0 if key == "count" else _TOLERANCE * scale
            differs = np.isfinite(computed) & ~(np.abs(published - computed) <= slack)
            if differs.any():
                index = tuple(int(part) for part in np.argwhere(differs)[0])
                value = np.broadcast_to(published, computed.shape)[index]
                label = f"{name!r}: {key}{list(index)}"
                if key != "count":
                    names = self._expected.names
                    label += f" ({dimension_label(name, index[-1], computed.shape[-1], names)})"
                message = f"{label} is {value:.12g}, samples give "
                yield self._finding("wrong_value", f"{message}{computed[index]:.12g}", name)

    def _check_copies(self) -> Iterator[Finding]:
        """Compares the file with its compact copy and with the copies of the other folder."""
        for copy in self._folder.statistics_copies():
            try:
                is_equal = compact(read_stats(copy)) == compact(self._entries)
            except DataError:
                is_equal = False
            if not is_equal:
                yield STATS.at("copies_differ", copy, f"differs from {self.path}")

    def _finding(
        self, code: str, message: str, field: str | None = None, **location: Any
    ) -> Finding:
        return STATS(code, f"{self.path}: {message}", path=str(self.path), field=field, **location)


class _FieldMoments:
    """Count, mean, variance, minimum and maximum [T, C] of the values so far."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._count = np.zeros((shape[0], 1))
        self._mean, self._m2 = np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, values: Array, valid: Array) -> None:
        """Adds one sample's values [T, C] where `valid` [T] is true."""
        rows = valid[:, None]
        self._count = self._count + rows
        delta = np.where(rows, values - self._mean, 0.0)
        self._mean += delta / np.maximum(self._count, 1)
        self._m2 += delta * np.where(rows, values - self._mean, 0.0)
        self._low = np.where(rows, np.minimum(self._low, values), self._low)
        self._high = np.where(rows, np.maximum(self._high, values), self._high)

    def scale(self) -> Array:
        """Largest absolute value of each dimension [C], to which rounding errors are relative."""
        largest = np.maximum(np.abs(self._low), np.abs(self._high))
        finite = np.where(np.isfinite(largest), largest, 0.0).max(axis=0)
        return np.maximum(finite, np.finfo(np.float64).tiny)

    def entry(self) -> dict[str, Array]:
        """The statistics under their keys in stats.json."""
        total = max(float(self._count.sum()), 1.0)
        mean = (self._mean * self._count).sum(axis=0) / total
        variance = self._m2 / np.maximum(self._count - 1, 1)
        squares = variance * self._count + self._count * (self._mean - mean) ** 2
        return {
            "count": self._count[:, 0],
            "mean": mean,
            "std": np.sqrt(squares.sum(axis=0) / total),
            "min": self._low.min(axis=0),
            "max": self._high.max(axis=0),
            "mean_per_timestep": self._mean,
            "std_per_timestep": np.sqrt(variance),
            "min_per_timestep": self._low,
            "max_per_timestep": self._high,
        }


def _bounds(entry: Mapping[str, Any]) -> tuple[Array, Array] | None:
    """Minimum and maximum [T, C] of a field; NaN where they are not recorded."""
    low, high = (number_array(entry.get(f"{key}_per_timestep")) for key in ("min", "max"))
    return None if low is None or high is None else (low, high)


def _as_float(values: Array) -> Array:
    """The values as float64 [T, C]; a field [T] has one dimension."""
    return values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.float64)


def _is_strict(path: Path) -> bool:
    constants: list[str] = []
    parse_json(read_file(path), constants=constants.append)
    return not constants
