"""What a run measures of itself: sums on the device, one JSON line now and then."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlatool.events import Reporter
from vlatool.jobs.append_log import AppendLog


class Meter:
    """Collects the numbers of the steps since the last report.

    Times are wall-clock; `data_wait` is the share of time spent waiting for a batch.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._loss: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._scalars: dict[str, list[Tensor]] = {}
        self._samples = 0
        self._steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Time that the model stood still for lack of a batch."""
        self._waited += seconds

    def consumed(self, samples: int) -> None:
        """Samples of one step over all ranks."""
        self._samples += samples
        self._steps += 1

    def step(self, loss: Tensor, norm: Tensor, scalars: Mapping[str, Tensor]) -> None:
        """One update of an optimizer: mean loss, gradient norm before clipping."""
        self._loss.append(loss)
        self._norms.append(norm)
        for name, value in scalars.items():
            self._scalars.setdefault(name, []).append(value.detach())

    def report(self) -> dict[str, float]:
        """Means since the last report; starts anew."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {
            "loss": _mean(self._loss),
            "grad_norm": _mean(self._norms),
            **{name: _mean(values) for name, values in self._scalars.items()},
            "samples_per_second": self._samples / seconds,
            "step_ms": 1000 * seconds / max(self._steps, 1),
            "data_wait": self._waited / seconds,
        }
        self._clear()
        return values


class MetricsFile:
    """Appends JSON lines, and tells the reporter."""

    def __init__(self, path: Path | None, reporter: Reporter) -> None:
        self._path = path
        self._reporter = reporter

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line; only the process that was given a path writes."""
        if self._path is None:
            return
        row = {"step": step, **{name: round(value, 8) for name, value in values.items()}}
        with AppendLog(self._path) as log:
            log.append(row)
        self._reporter.metrics(step, values)


def _mean(values: list[Tensor]) -> float:
    return float(sum(value.item() for value in values) / len(values)) if values else 0.0
