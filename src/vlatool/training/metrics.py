"""Collects the metrics of a run between reports, and writes one JSON line per report.

Results of a step are logged one step late, so that the host does not wait for the device.
"""

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from vlatool.checkpoints.layout import DROPS, read_metrics
from vlatool.errors import DataError
from vlatool.events import Progress, Reporter, counted
from vlatool.loading.base import DroppedSample, MicroBatch
from vlatool.storage.append_log import AppendLog
from vlatool.training.placement import peak_memory
from vlatool.training.setup import Run
from vlatool.training.step import OptimizerStep, Packed, sums_of


class Meter:
    """Metrics of the steps since the last report.

    `ideal_rate`: samples per second at the peak arithmetic of the devices, if known.

    Times are wall-clock; `data_wait` is the fraction of time spent waiting for a batch. Metrics of
    the first optimizer have plain names; all others begin with the name of their optimizer.
    """

    def __init__(self, ideal_rate: float | None = None) -> None:
        self._ideal_rate = ideal_rate
        self._memory = 0.0
        self._ended = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._rates: dict[str, float] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._counts: dict[str, float] = {}
        self._samples = 0
        self._steps = 0
        self._data_wait = 0.0
        self._since = self._ended

    def sums(self, optimizer: str) -> tuple[Mapping[str, Tensor], float]:
        """Sums and count of an optimizer since the last report, float64, on the CPU."""
        return self._sums.get(optimizer, {}), self._counts.get(optimizer, 0.0)

    def add_ranks(self, data_waits_s: Sequence[float], memory: Sequence[float]) -> None:
        """Adds for each rank how long it waited for the batch of a step, and the bytes of its
        device.
        """
        self._data_wait += max(data_waits_s)
        self._memory = max(memory)

    def leave_out(self, seconds: float) -> None:
        """Leaves out seconds in which the run did not train."""
        self._since += seconds

    def add_step(self, samples: int, ended_s: float) -> None:
        """Adds one step: its samples over all ranks, and when it ended."""
        self._samples += samples
        self._steps += 1
        self._ended = ended_s

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
        seconds = max(self._ended - self._since, 1e-9)
        rate = self._samples / seconds
        report = dict(self._rates)
        for name, values in self._values.items():
            report[name] = sum(values) / len(values)
        report |= metrics
        report["samples_per_second"] = rate
        report["step_ms"] = 1000 * seconds / max(self._steps, 1)
        report["data_wait"] = self._data_wait / seconds
        report["memory_gb"] = self._memory / 1e9
        if self._ideal_rate is not None:
            report["mfu"] = rate / self._ideal_rate
        self._clear()
        return report


class MetricsFile:
    """Metrics file of a run, JSON lines; each line also goes to the reporter.

    Numbers have nine digits; NaN and infinity become null, because JSON has neither.
    """

    def __init__(self, path: Path | None, reporter: Reporter) -> None:
        self._path = path
        self._reporter = reporter

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; does nothing on ranks without a path."""
        if self._path is None:
            return
        row: dict[str, float | None] = {"step": step}
        rounded: dict[str, float] = {}
        for name, value in values.items():
            rounded[name] = float(f"{value:.9g}")
            row[name] = rounded[name] if isfinite(value) else None
        with AppendLog(self._path) as log:
            log.append(row)
        self._reporter.metrics(step, rounded)


class DropsFile:
    """File with the dropped samples of a run, JSON lines: each sample once, at its first step."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._listed: set[tuple[object, object]] = set()  # reason and sample
        if path is not None and path.is_file():
            self._listed = {(row.get("reason"), row.get("sample")) for row in read_metrics(path)}

    def add(self, step: int, drops: Sequence[DroppedSample]) -> None:
        """Appends the samples that are not listed yet; does nothing on ranks without a path."""
        if self._path is None:
            return
        with AppendLog(self._path) as log:
            for drop in drops:
                if (drop.reason, drop.sample) not in self._listed:
                    self._listed.add((drop.reason, drop.sample))
                    log.append({"step": step, **asdict(drop)})


# The first one has priority if both arrive.
STOPS = (signal.SIGTERM, signal.SIGINT)
_VALIDATION = "validation"
_NAMED_SAMPLES = 8
# The share of dropped samples is measured over at least this number of samples.
_MIN_SHARE_SAMPLES = 1000


@dataclass(frozen=True)
class StepRecord:
    """A step whose results are being copied to the host."""

    step: int  # steps done, this one included
    samples: int  # positions consumed
    updates: Sequence[OptimizerStep]  # result of each optimizer, in order
    counters: Packed  # of this rank, whose sums are in the first update
    names: Sequence[Sequence[str]]  # sample names on this rank, by micro-batch
    drops: Sequence[DroppedSample]  # dropped samples of this rank
    ended_s: float  # time of `time.perf_counter` when this rank had issued the step


@dataclass
class MetricsLogger:
    """Writes the metrics of a run and checks them.

    All ranks read the same sums, so all of them raise the same errors and stop together.
    """

    run: Run
    reporter: Reporter  # receives metrics and warnings
    bar: Progress  # the progress bar, which advances with the steps
    # samples per second at the peak arithmetic of all devices; None: unknown
    ideal_rate: float | None = None
    stopped_by: int | None = None  # signal that asked a rank to stop, if any; equal on all ranks
    save_due: bool = False  # True if a rank asked for a checkpoint; equal on all ranks

    def __post_init__(self) -> None:
        folder = self.run.folder if self.run.runtime.is_main else None
        self.metrics = MetricsFile(folder and folder.metrics, self.reporter)
        self.drops = DropsFile(folder and folder.drops)  # lists the dropped samples
        self.meter = Meter(self.ideal_rate)
        self._pending: StepRecord | None = None
        self._warned: set[str] = set()

    @cached_property
    def _drop_reasons(self) -> Sequence[str]:
        """Drop reasons of the data kind, in the order of `MicroBatch.dropped`."""
        return self.run.config.data_kind.drop_reasons

    def rank_counters(
        self,
        micro_batches: Sequence[MicroBatch],
        data_wait_s: float,  # seconds that this rank waited for them
        stop: int | None,  # signal that asked this rank to stop, if any
        *,
        save_due: bool,  # this rank asks for a checkpoint
    ) -> Packed:
        """Numbers of this rank that are added to the first reduction of a step."""
        runtime = self.run.runtime
        dropped: list[int] = []
        for index in range(len(self._drop_reasons)):
            dropped.append(sum(batch.dropped[index] for batch in micro_batches))
        # One number for each rank, 0 for the others: their sums list all ranks.
        data_waits = torch.zeros(runtime.world_size)
        data_waits[runtime.rank] = data_wait_s
        memory = torch.zeros(runtime.world_size)
        memory[runtime.rank] = peak_memory(runtime.device)
        return Packed(
            {
                "stops": torch.tensor([stop == number for number in STOPS]),
                "save_due": torch.tensor(save_due),
                "data_waits": data_waits,
                "memory": memory,
                "dropped": torch.tensor(dropped),
            }
        )

    def log_step(self, record: StepRecord) -> None:
        """Stores the record of a step and logs the step before it."""
        self.flush()
        self._pending = record

    def flush(self) -> None:
        """Logs the stored step."""
        record = self._pending
        self._pending = None
        if record is None:
            return
        first = next(iter(self.run.objective.optimizers()))
        for index, update in enumerate(record.updates):
            host = update.on_host.read(self.run.runtime.timeout_s)
            count = host["count"].item()
            if not host["ok"] and not count <= 0:
                raise self._not_finite(record)
            mean = host["total"].item() / count if count > 0 else None
            prefix = "" if update.optimizer == first else f"{update.optimizer}/"
            self.meter.add_update(prefix, mean, host["norm"].item(), update.rate)
            self.meter.add(update.optimizer, sums_of(host), count)
            if index == 0:
                self._add_counters(record.counters.read(host["extra"]), record)
        self.meter.add_step(record.samples // record.step, record.ended_s)
        self._log(record)

    def _add_counters(self, counters: Mapping[str, Tensor], record: StepRecord) -> None:
        """Reads the sums of `rank_counters` over all ranks."""
        for number, count in zip(STOPS, counters["stops"], strict=True):
            if count and self.stopped_by is None:
                self.stopped_by = number
        self.save_due = self.save_due or bool(counters["save_due"] > 0)
        self.meter.add_ranks(counters["data_waits"].tolist(), counters["memory"].tolist())
        dropped = self.run.state.dropped
        new_reasons: set[str] = set()
        for reason, count in zip(self._drop_reasons, counters["dropped"].tolist(), strict=True):
            if count:
                new_reasons.add(reason)
                dropped[reason] = dropped.get(reason, 0) + int(count)
        if new_reasons:
            self._report_drops(record, new_reasons)

    def _report_drops(self, record: StepRecord, reasons: set[str]) -> None:
        """Lists the samples that a step has dropped; warns once per reason. Collective.

        Raises:
            DataError: More than `data.max_dropped_share` of all samples were dropped.
        """
        drops = self._list_drops(record.step, record.drops)
        if reasons - self._warned:
            self._warned |= reasons
            message = f"a sample was dropped at step {record.step}; {DROPS} lists all of them"
            self.reporter.warn("data.dropped_samples", f"{message}: {drops[0].message}")
        all_dropped = self.run.state.dropped
        total = sum(all_dropped.values())
        limit = self.run.config.data.max_dropped_share
        if total > limit * max(record.samples, _MIN_SHARE_SAMPLES):
            raise DataError(
                f"{total} of {counted(record.samples, 'sample')} could not be used "
                f"({_listed(all_dropped)}); the latest: {drops[0].message}",
                hint=f"{DROPS} lists them, `vlatool verify` the defects of the data; "
                "data.max_dropped_share is the share that a run accepts",
                code="data.incomplete",
                details={"dropped": dict(all_dropped), "samples": record.samples},
            )

    def _log(self, record: StepRecord) -> None:
        is_last = record.step == self.run.plan.total_steps
        if record.step % self.run.config.log_every_n_steps and not is_last:
            self.bar.advance(1)
            return
        metrics = self._metrics()
        values = self.meter.report(metrics)
        shown: dict[str, float] = {}
        if "loss" in values:
            shown["loss"] = values["loss"]
        shown["samples/s"] = round(values["samples_per_second"], 1)
        self.bar.advance(1, **shown)
        row = {"samples": float(record.samples), **values}
        if self.run.state.dropped:
            row["dropped"] = float(sum(self.run.state.dropped.values()))
        self.metrics.write(record.step, row)
        self.check_metrics(metrics)

    def warn_validation_drops(
        self, step: int, count: int, dropped: Sequence[DroppedSample]
    ) -> None:
        """Lists validation samples that cannot be used, and warns once. Collective."""
        drops = self._list_drops(step, dropped)
        if _VALIDATION not in self._warned:
            self._warned.add(_VALIDATION)
            message = (
                f"{count} validation samples are left out at each validation; {DROPS} lists them"
            )
            self.reporter.warn("data.dropped_samples", f"{message}: {drops[0].message}")

    def _list_drops(self, step: int, dropped: Sequence[DroppedSample]) -> list[DroppedSample]:
        """Lists the dropped samples of all ranks, and returns them. Collective."""
        texts = self.run.runtime.gather([json.dumps(asdict(drop)) for drop in dropped])
        drops = [DroppedSample(**json.loads(text)) for text in texts]
        self.drops.add(step, drops)
        return drops

    def _metrics(self) -> dict[str, float]:
        """Metrics of every optimizer that made a step since the last report."""
        objective = self.run.objective
        metrics: dict[str, float] = {}
        for index, optimizer in enumerate(objective.optimizers()):
            prefix = "" if index == 0 else f"{optimizer}/"
            sums, count = self.meter.sums(optimizer)
            if count <= 0:
                continue
            for name, value in objective.metrics(optimizer, sums, count).items():
                metrics[f"{prefix}{name}"] = float(value)
        return metrics

    def check_metrics(self, metrics: Mapping[str, float]) -> None:
        """Warns once per finding code of the objective; raises DataError for an error."""
        for finding in self.run.objective.check_metrics(metrics):
            if finding.severity == "error":
                raise DataError(finding.message, hint=finding.action, code=finding.code)
            if finding.code not in self._warned:
                self._warned.add(finding.code)
                self.reporter.warn(finding.code, finding.message)

    def _not_finite(self, record: StepRecord) -> DataError:
        """The error that names the samples of the non-finite micro-batches. Collective."""
        runtime = self.run.runtime
        bad: list[str] = []
        for update in record.updates:
            for total, names in zip(update.totals, record.names, strict=True):
                if not total.isfinite():
                    bad += names
        keys = runtime.gather(bad)
        if not keys:  # the gradient alone: any sample of the step may be the reason
            keys = runtime.gather(list(chain.from_iterable(record.names)))
        keys = list(dict.fromkeys(keys))[:_NAMED_SAMPLES]
        checkpoint = None
        last = "there is no checkpoint yet"
        if checkpoints := self.run.folder.checkpoints():
            checkpoint = checkpoints[-1][1]
            last = f"the last is {checkpoint}"
        return DataError(
            f"the loss or its gradient is not finite at step {record.step}; the weights were not "
            f"changed, and {last}; samples: {', '.join(keys)}",
            hint="inspect these samples; lower hparams.lr or hparams.grad_clip_norm",
            code="data.not_finite",
            details={
                "step": record.step,
                "samples": keys,
                "checkpoint": None if checkpoint is None else str(checkpoint),
            },
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items())
