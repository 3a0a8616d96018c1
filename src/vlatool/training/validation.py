"""Validates a run, logs the images of its objective, and rolls out checkpoints."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlatool.checkpoints.layout import EVALUATION, VALIDATION, RunDir, read_metrics
from vlatool.episode import UInt8Array
from vlatool.errors import BugError, VlatoolError
from vlatool.events import Reporter
from vlatool.loading.base import DroppedSample, MicroBatch
from vlatool.storage.atomic import open_atomic
from vlatool.training.metrics import MetricsLogger
from vlatool.training.setup import Run
from vlatool.training.step import AsyncHostCopy, LossSums, Packed, sums_of
from vlatool.training.trainer import StopPoll, StopRequest

_PHASE = "validation"
_CHUNKS = "validation chunks"
_AVERAGED = f"{VALIDATION}ema/"


class _StoppedError(Exception):
    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


@dataclass(frozen=True)
class Validation:
    """Validation of a run. Collective; expects the parts in eval mode."""

    run: Run
    logger: MetricsLogger  # logs the metrics
    # starts a pass over the micro-batches of this rank, on the device; their number is equal on all
    # ranks
    open_batches: Callable[[], Iterator[MicroBatch]]
    # the same for the samples whose action chunks are sampled
    open_chunk_batches: Callable[[], Iterator[MicroBatch]]
    stop: StopRequest  # a request to stop ends the validation, and a resumed run repeats it
    end: Callable[[str, int], NoReturn]  # ends the run for a signal; says where it stopped

    def __call__(self) -> None:
        """Writes the metrics with raw weights, and with averaged weights if there are any, and the
        best checkpoint.
        """
        state = self.run.state
        try:
            metrics = self._pass(VALIDATION, state.step)
            if state.averages:
                with ExitStack() as stack:
                    for average in state.averages.values():
                        stack.enter_context(average.average_parameters())
                    metrics |= self._pass(_AVERAGED, state.step)
        except _StoppedError as stopped:
            self.end("in the validation of", stopped.signal)
        self.logger.metrics.write(state.step, {"samples": float(state.samples), **metrics})
        if self.run.runtime.is_main:
            # If the validation is repeated, the checkpoint of this step is there already.
            self.run.folder.update_best()
        self.logger.check_metrics(metrics)

    def _pass(self, prefix: str, step: int) -> dict[str, float]:
        values = self._losses(prefix, step) | self._chunk_errors(step)
        return {f"{prefix}{name}": value for name, value in values.items()}

    def _until_stop(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """The micro-batches; raises _StoppedError when a rank is asked to stop. Collective."""
        poll = StopPoll(self.run.runtime, self.stop)
        for micro_batch in batches:
            yield micro_batch
            signal = poll()
            if signal is not None:
                raise _StoppedError(signal)

    @torch.no_grad()
    def _losses(self, prefix: str, step: int) -> dict[str, float]:
        objective = self.run.objective
        runtime = self.run.runtime
        contexts = self.run.contexts
        local = LossSums(runtime.device)
        drops: list[DroppedSample] = []
        for micro_batch in self._until_stop(self.open_batches()):
            drops += micro_batch.drops
            ctx = contexts.of(step, micro_batch, _PHASE, training=False)
            batch = objective.prepare(micro_batch.batch, ctx)
            # `prepare` and the loss have separate streams of randomness.
            ctx = contexts.of(step, micro_batch, f"{_PHASE} loss", training=False)
            with runtime.autocast():
                local.add(objective.validate(batch, ctx), is_dummy=micro_batch.is_dummy)
        reduced = Packed(local.reduced(runtime, torch.tensor([len(drops)])))
        host = AsyncHostCopy(reduced).read(runtime.timeout_s)
        if bad := int(host["bad"]):
            self.logger.reporter.warn(
                "data.not_finite", f"{prefix}loss is not finite in {bad} micro-batches"
            )
        if all_dropped := int(host["extra"]):
            self.logger.warn_validation_drops(step, all_dropped, drops)
        count = host["count"].item()
        if count <= 0:
            return {}
        values = {"loss": host["total"].item() / count}
        for name, value in objective.metrics(_PHASE, sums_of(host), count).items():
            values[name] = float(value)
        return values

    @torch.no_grad()
    def _chunk_errors(self, step: int) -> dict[str, float]:
        """Mean errors of sampled action chunks; empty if the objective samples none."""
        objective = self.run.objective
        if not objective.samples_chunks:
            return {}
        contexts = self.run.contexts
        sums: dict[str, Tensor] = {}
        for micro_batch in self._until_stop(self.open_chunk_batches()):
            ctx = contexts.of(step, micro_batch, f"{_CHUNKS} batch", training=False)
            batch = objective.prepare(micro_batch.batch, ctx)
            ctx = contexts.of(step, micro_batch, _CHUNKS, training=False)
            for name, value in objective.chunk_errors(batch, ctx).items():
                # All ranks sample equally often; a dummy micro-batch counts nothing.
                if micro_batch.is_dummy:
                    value = torch.zeros_like(value)
                if name in sums:
                    value = sums[name] + value
                sums[name] = value
        if not sums:
            return {}
        totals = self.run.runtime.sum(torch.stack(list(sums.values()))).tolist()
        means: dict[str, float] = {}
        for name, (total, count) in zip(sums, totals, strict=True):
            if count > 0:
                means[name] = total / count
        return means


_COLUMNS = 8


@dataclass(frozen=True)
class ImageLogger:
    """Writes the images of an objective for a micro-batch. Collective.

    They are made with the averaged weights if there are any, because inference uses these.
    """

    run: Run
    reporter: Reporter  # also gets the images, on rank 0

    @torch.no_grad()
    def __call__(self, micro_batch: MicroBatch) -> None:
        """Writes the images of a micro-batch; expects the parts in eval mode."""
        run = self.run
        state = run.state
        ctx = run.contexts.of(state.step, micro_batch, "images")
        with ExitStack() as stack:
            for average in state.averages.values():
                stack.enter_context(average.average_parameters())
            stack.enter_context(run.runtime.autocast())
            images = run.objective.images(micro_batch.batch, ctx)
        if run.runtime.is_main:
            save_image_grid(run.folder, state.step, images)
            self.reporter.images(state.step, images)


def save_image_grid(run: RunDir, step: int, images_by_name: Mapping[str, UInt8Array]) -> None:
    """Writes the images uint8 [N, H, W, 3] of each name as one PNG, in rows of eight."""
    for name, images in images_by_name.items():
        if not len(images):
            continue
        rows = [images[start : start + _COLUMNS] for start in range(0, len(images), _COLUMNS)]
        width = max(len(row) for row in rows)
        grid = np.concatenate([_row(row, width) for row in rows])
        path = run.image(step, name.replace("/", "_"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            Image.fromarray(grid).save(file, format="PNG")


def _row(images: UInt8Array, width: int) -> UInt8Array:
    padding = np.zeros((width - len(images), *images.shape[1:]), np.uint8)
    return np.concatenate([*images, *padding], axis=1)


def is_pending(run: RunDir, step: int, steps: tuple[int, ...], prefix: str) -> bool:
    """True if a step should be measured and no row of the metrics has the result. `prefix`: start
    of the names of these metrics.
    """
    if step not in steps:
        return False
    if not run.metrics.is_file():
        return True
    for row in read_metrics(run.metrics):
        if row["step"] == step and any(name.startswith(prefix) for name in row):
            return False
    return True


@dataclass(frozen=True)
class SuccessRate:
    """Rolls out the checkpoint of the present step on rank 0, while the others wait. Collective."""

    run: Run
    logger: MetricsLogger  # logs the metrics, and a warning if the rollouts fail; the run continues
    stop: StopRequest  # A request to stop ends the rollouts at once
    end: Callable[[str, int], NoReturn]  # ends the run for a signal; says where it stopped

    def __call__(self) -> None:
        """Writes the metrics of the rollouts, and the best checkpoint."""
        state = self.run.state
        runtime = self.run.runtime
        started = time.perf_counter()
        metrics: Mapping[str, float] = {}
        with runtime.main_works():
            if runtime.is_main:
                metrics = self._measured(state.step)
        metrics, signal = runtime.broadcast((metrics, self.stop.signal))
        if signal is not None:
            self.end("in the rollouts of", signal)
        self.logger.meter.leave_out(time.perf_counter() - started)
        if metrics:
            values = {f"{EVALUATION}{name}": value for name, value in metrics.items()}
            self.logger.metrics.write(state.step, {"samples": float(state.samples), **values})
        if runtime.is_main:
            self.run.folder.update_best()

    def _measured(self, step: int) -> Mapping[str, float]:
        """Metrics of the rollouts; empty if they failed, or a request to stop ended them."""
        roll_out = self.run.roll_out
        assert roll_out is not None
        try:
            with self.stop.interrupting():
                folder = self.run.folder
                return roll_out(folder.checkpoint(step), folder.rollouts(step))
        except KeyboardInterrupt:
            if self.stop.signal is None:
                raise
        except BugError:
            raise
        except VlatoolError as error:
            self.logger.reporter.warn(
                "rollouts_failed",
                f"the rollouts of step {step} failed, but the run continues: {error.message}",
            )
        return {}
