"""Reads what a step left behind, one step later, and tells it."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlatool.errors import DataError
from vlatool.events import Progress, Reporter
from vlatool.loading.base import MicroBatch
from vlatool.models.base import Objective
from vlatool.training.metrics import Meter, MetricsFile
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import OptimizerStep

# The one that decides how the run ends comes first.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HELD_OUT = "held-out"
_NAMED_SAMPLES = 8
# A share of fewer samples than these says little.
_FEW_SAMPLES = 1000


@dataclass(frozen=True)
class StepRecord:
    """One step on its way to the host.

    Attributes:
        step: Steps done, this one included.
        samples: Positions consumed.
        moved: What each optimizer did, in order.
        names: Names of this rank's samples, by micro-batch.
        first_drop: What was wrong with a sample of this rank; empty where none was dropped.
    """

    step: int
    samples: int
    updates: Sequence[OptimizerStep]
    names: Sequence[Sequence[str]]
    first_drop: str


@dataclass
class MetricsLogger:
    """Numbers of a run, on their way to the metrics file and the bar.

    Attributes:
        metrics: Where they go.
        reporter: Told of warnings.
        bar: Advances with the steps.
        runtime: All ranks read the same sums, so all of them end together.
        log_every: Steps between lines.
        total_steps: The last one has a line of its own.
        drop_reasons: Of the kind of data, in the order of `MicroBatch.dropped`.
        max_dropped_share: Share of the samples above which the run ends.
        stopped_by: The signal by which a rank was asked to stop; the same on all ranks.
    """

    metrics: MetricsFile
    reporter: Reporter
    bar: Progress
    runtime: Runtime
    log_every: int
    total_steps: int
    drop_reasons: Sequence[str] = ()
    max_dropped_share: float = 1.0
    stopped_by: int | None = None

    def __post_init__(self) -> None:
        self.meter = Meter()
        self._pending: StepRecord | None = None
        self._warned: set[str] = set()

    def rank_counters(self, micro_batches: Sequence[MicroBatch], stop: int | None) -> list[float]:
        """What this rank adds to the first reduction of a step: signals and dropped samples."""
        dropped = [0] * len(self.drop_reasons)
        for one in micro_batches:
            dropped = [a + b for a, b in zip(dropped, one.dropped, strict=True)]
        return [*(float(stop == number) for number in _SIGNALS), *map(float, dropped)]

    def log_step(self, record: StepRecord, state: TrainState, objective: Objective) -> None:
        """Takes in a step and reads the one before.

        Raises:
            DataError: As `flush`.
        """
        self.flush(state, objective)
        self._pending = record

    def flush(self, state: TrainState, objective: Objective) -> None:
        """Reads the last step.

        Raises:
            DataError: A loss or gradient was not finite, too many samples were dropped, or the
                objective has an alarm that is an error.
        """
        record, self._pending = self._pending, None
        if record is None:
            return
        loss: float | None = None
        first = next(iter(objective.optimizers()))
        for place, moved in enumerate(record.updates):
            host = moved.on_host.read()
            norm, ok, total, count, _, *rest = host[: 5 + moved.sums.extra].tolist()
            if not ok and not count <= 0:
                raise self._not_finite(record)
            mean = total / count if count > 0 else None
            prefix = "" if moved.optimizer == first else f"{moved.optimizer}/"
            self.meter.add_update(prefix, mean, norm, moved.rate)
            self.meter.add(moved.optimizer, moved.sums.read(host[2:]), count)
            if moved.optimizer == first:
                loss = mean
            if place == 0:
                self._add_counters(rest, record, state)
        self.meter.add_samples(record.samples // record.step)
        self._log(record, state, objective, loss)

    def _add_counters(self, extras: Sequence[float], record: StepRecord, state: TrainState) -> None:
        asked = [number for number, ranks in zip(_SIGNALS, extras, strict=False) if ranks]
        self.stopped_by = self.stopped_by or next(iter(asked), None)
        counts = {
            reason: int(count)
            for reason, count in zip(self.drop_reasons, extras[len(_SIGNALS) :], strict=True)
            if count
        }
        if not counts:
            return
        for reason, count in counts.items():
            state.dropped[reason] = state.dropped.get(reason, 0) + count
        total = sum(state.dropped.values())
        is_new = bool(counts.keys() - self._warned)
        is_too_much = total > self.max_dropped_share * max(record.samples, _FEW_SAMPLES)
        if not is_new and not is_too_much:
            return
        examples = self.runtime.gather([record.first_drop] if record.first_drop else [])
        if is_new:
            self._warned |= counts.keys()
            told = f"a sample is left out at step {record.step}, further ones are counted"
            self.reporter.warn("data.dropped_samples", f"{told}: {examples[0]}")
        if is_too_much:
            raise DataError(
                f"{total} of {record.samples} samples could not be used "
                f"({_listed(state.dropped)}); the last: {examples[0]}",
                hint="`vlatool verify` names what is damaged; data.max_dropped_share sets the "
                "share above which a run ends",
                code="data.too_many_dropped",
                details={"dropped": dict(state.dropped), "samples": record.samples},
            )

    def _log(
        self, record: StepRecord, state: TrainState, objective: Objective, loss: float | None
    ) -> None:
        fields = {} if loss is None else {"loss": round(loss, 4)}
        if record.step % self.log_every and record.step != self.total_steps:
            self.bar.advance(1)
            return
        figures = self._metrics(objective)
        values = self.meter.report(figures)
        rate = round(values["samples_per_second"], 1)
        self.bar.advance(1, **fields, **{"samples/s": rate})
        dropped = {"dropped": float(sum(state.dropped.values()))} if state.dropped else {}
        self.metrics.write(record.step, {"samples": float(record.samples), **values, **dropped})
        self.check_metrics(objective, figures)

    def warn_validation_drops(self, count: int, first_drop: str) -> None:
        """Tells, once, that held-out samples cannot be used; every process calls it."""
        examples = self.runtime.gather([first_drop] if first_drop else [])
        if _HELD_OUT not in self._warned:
            self._warned.add(_HELD_OUT)
            told = f"{count} held-out samples are left out at each validation"
            self.reporter.warn("data.dropped_samples", f"{told}: {examples[0]}")

    def _metrics(self, objective: Objective) -> dict[str, float]:
        """Those of every optimizer that moved since the last report."""
        found: dict[str, float] = {}
        for place, optimizer in enumerate(objective.optimizers()):
            sums, count = self.meter.sums(optimizer)
            told = objective.metrics(optimizer, sums, count) if count > 0 else {}
            prefix = "" if place == 0 else f"{optimizer}/"
            found |= {f"{prefix}{name}": float(value) for name, value in told.items()}
        return found

    def check_metrics(self, objective: Objective, metrics: Mapping[str, float]) -> None:
        """Tells each kind of alarm once; an error ends the run."""
        for finding in objective.check_metrics(metrics):
            if finding.severity == "error":
                raise DataError(finding.message, hint=finding.action, code=finding.code)
            if finding.code not in self._warned:
                self._warned.add(finding.code)
                self.reporter.warn(finding.code, finding.message)

    def _not_finite(self, record: StepRecord) -> DataError:
        """Names samples of the bad micro-batches of all ranks; all of them come here."""
        bad = [
            name
            for moved in record.updates
            for total, names in zip(moved.totals, record.names, strict=True)
            if not total.isfinite()
            for name in names
        ]
        keys = self.runtime.gather(bad) or self.runtime.gather(
            [name for names in record.names for name in names]
        )
        keys = list(dict.fromkeys(keys))[:_NAMED_SAMPLES]
        return DataError(
            f"the loss or its gradient is not finite at step {record.step}; weights were not "
            f"changed; samples: {', '.join(keys)}",
            hint="look at these samples; a lower hparams.lr or hparams.grad_clip_norm may help",
            code="data.loss_not_finite",
            details={"samples": keys},
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items())
