"""Metrics of a run: collection between reports, one JSON line per report."""

import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from torch import Tensor

from vlatool.events import Reporter
from vlatool.jobs.append_log import AppendLog


class Meter:
    """Metrics of the steps since the last report.

    Times are wall-clock; `data_wait` is the fraction of time spent waiting for a batch. Metrics of
    the first optimizer have plain names, those of the others are prefixed with the optimizer name.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._rates: dict[str, float] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._counts: dict[str, float] = {}
        self._samples = 0
        self._steps = 0
        self._data_wait = 0.0
        self._since = time.perf_counter()

    def sums(self, optimizer: str) -> tuple[Mapping[str, Tensor], float]:
        """Sums and count of an optimizer since the last report, float64, on the CPU."""
        return self._sums.get(optimizer, {}), self._counts.get(optimizer, 0.0)

    def add_wait(self, seconds: float) -> None:
        """Adds time that was spent waiting for a batch."""
        self._data_wait += seconds

    def add_samples(self, samples: int) -> None:
        """Adds one step with its number of samples over all ranks."""
        self._samples += samples
        self._steps += 1

    def add_update(self, prefix: str, loss: float | None, norm: float, rate: float) -> None:
        """Adds an optimizer update: mean loss, gradient norm before clipping, learning rate."""
        if loss is not None:
            self._values.setdefault(f"{prefix}loss", []).append(loss)
        self._values.setdefault(f"{prefix}grad_norm", []).append(norm)
        self._rates[f"{prefix}lr"] = rate

    def add(self, optimizer: str, sums: Mapping[str, Tensor], count: float) -> None:
        """Adds the loss sums and the element count of one step over all ranks."""
        totals = self._sums.setdefault(optimizer, {})
        for name, value in sums.items():
            totals[name] = totals[name] + value if name in totals else value
        self._counts[optimizer] = self._counts.get(optimizer, 0.0) + count

    def report(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Means since the last report, with `metrics` added; resets the meter."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {
            **self._rates,
            **{name: sum(values) / len(values) for name, values in self._values.items()},
            **metrics,
            "samples_per_second": self._samples / seconds,
            "step_ms": 1000 * seconds / max(self._steps, 1),
            "data_wait": self._data_wait / seconds,
        }
        self._clear()
        return values


class MetricsFile:
    """Metrics file of a run, JSON lines; each line also goes to the reporter."""

    def __init__(self, path: Path | None, reporter: Reporter) -> None:
        self._path = path
        self._reporter = reporter

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; does nothing on ranks without a path."""
        if self._path is None:
            return
        row = {"step": step, **{name: _finite_or_none(value) for name, value in values.items()}}
        with AppendLog(self._path) as log:
            log.append(row)
        self._reporter.metrics(step, values)


def _finite_or_none(value: float) -> float | None:
    """The value with nine digits; None if it is not finite, which JSON cannot express."""
    return float(f"{value:.9g}") if isfinite(value) else None
