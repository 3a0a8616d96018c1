"""Validation of a run, and the images that an objective logs."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlatool.artifacts.run.format import EVALUATION, VALIDATION, RunDir, read_metrics
from vlatool.episode import UInt8Array
from vlatool.errors import BugError, VlatoolError
from vlatool.events import Reporter
from vlatool.loading.base import DroppedSample, MicroBatch
from vlatool.models.base import Objective, Policy
from vlatool.storage.atomic import open_atomic
from vlatool.training.metrics import MetricsLogger
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import LossSums, StepContexts
from vlatool.training.trainer import StopRequest, exit_stopped

_PHASE = "validation"
_CHUNKS = "validation chunks"
_AVERAGED = f"{VALIDATION}ema/"


@dataclass(frozen=True)
class Validation:
    """Validation of a run. Collective; expects the parts in eval mode."""

    # starts a pass over the micro-batches of this rank, on the device; their number is equal on all
    # ranks
    open_batches: Callable[[], Iterator[MicroBatch]]
    # the same for the samples whose action chunks are sampled
    open_chunk_batches: Callable[[], Iterator[MicroBatch]]
    objective: Objective  # computes the loss of a micro-batch
    runtime: Runtime  # the ranks of the run
    contexts: StepContexts  # makes the contexts of the objective
    logger: MetricsLogger  # logs the metrics

    def __call__(self, state: TrainState) -> None:
        """Writes the metrics with raw weights, and with averaged weights if there are any."""
        metrics = self._pass(VALIDATION, state.step)
        if state.averages:
            with ExitStack() as stack:
                for average in state.averages.values():
                    stack.enter_context(average.average_parameters())
                metrics |= self._pass(_AVERAGED, state.step)
        self.logger.metrics.write(state.step, {"samples": float(state.samples), **metrics})
        self.logger.check_metrics(self.objective, metrics)

    def _pass(self, prefix: str, step: int) -> dict[str, float]:
        values = self._losses(prefix, step) | self._chunk_errors(step)
        return {f"{prefix}{name}": value for name, value in values.items()}

    @torch.no_grad()
    def _losses(self, prefix: str, step: int) -> dict[str, float]:
        local = LossSums(self.runtime.device)
        drops: list[DroppedSample] = []
        for micro_batch in self.open_batches():
            drops += micro_batch.drops
            ctx = self.contexts.of(step, micro_batch, _PHASE, training=False)
            batch = self.objective.prepare(micro_batch.batch, ctx)
            # `prepare` and the loss have separate streams of randomness.
            ctx = self.contexts.of(step, micro_batch, f"{_PHASE} loss", training=False)
            with self.runtime.autocast():
                local.add(self.objective.validate(batch, ctx), is_dummy=micro_batch.is_dummy)
        sums = local.reduced(self.runtime, [float(len(drops))])
        packed = sums.packed.cpu()
        total, count, bad, all_dropped = packed[:4].tolist()
        if bad:
            self.logger.reporter.warn(
                "data.not_finite", f"{prefix}loss is not finite in {bad:.0f} micro-batches"
            )
        if all_dropped:
            self.logger.warn_validation_drops(step, int(all_dropped), drops)
        if count <= 0:
            return {}
        values = self.objective.metrics(_PHASE, sums.read(packed), count)
        return {"loss": total / count, **{name: float(value) for name, value in values.items()}}

    @torch.no_grad()
    def _chunk_errors(self, step: int) -> dict[str, float]:
        """Mean errors of sampled action chunks; empty if the objective samples none."""
        if not self.objective.samples_chunks:
            return {}
        sums: dict[str, Tensor] = {}
        for micro_batch in self.open_chunk_batches():
            ctx = self.contexts.of(step, micro_batch, f"{_CHUNKS} batch", training=False)
            batch = self.objective.prepare(micro_batch.batch, ctx)
            ctx = self.contexts.of(step, micro_batch, _CHUNKS, training=False)
            for name, value in self.objective.chunk_errors(batch, ctx).items():
                # All ranks sample equally often; a dummy micro-batch counts nothing.
                counted = torch.zeros_like(value) if micro_batch.is_dummy else value
                sums[name] = sums[name] + counted if name in sums else counted
        if not sums:
            return {}
        totals = self.runtime.sum(torch.stack(list(sums.values()))).tolist()
        rows = zip(sums, totals, strict=True)
        return {name: total / count for name, (total, count) in rows if count > 0}


_COLUMNS = 8


@dataclass(frozen=True)
class ImageLogger:
    """Writes the images of an objective for a micro-batch. Collective.

    They are made with the averaged weights if there are any, because these are used for inference.
    """

    run: RunDir  # the run folder
    objective: Objective  # makes the images
    runtime: Runtime  # the ranks of the run; rank 0 writes
    contexts: StepContexts  # makes the context of a micro-batch
    reporter: Reporter  # also gets the images, on rank 0

    @torch.no_grad()
    def __call__(self, state: TrainState, micro_batch: MicroBatch) -> None:
        """Writes the images of a micro-batch; expects the parts in eval mode."""
        ctx = self.contexts.of(state.step, micro_batch, "images")
        with ExitStack() as stack:
            for average in state.averages.values():
                stack.enter_context(average.average_parameters())
            stack.enter_context(self.runtime.autocast())
            images = self.objective.images(micro_batch.batch, ctx)
        if self.runtime.is_main:
            save_image_grid(self.run, state.step, images)
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


class CheckpointRollouts(Protocol):
    """Rollouts of the checkpoints of a run; evaluation defines them."""

    def check(self, policy: Policy) -> None:
        """Raises a VlatoolError if a policy cannot act in the environment."""
        ...

    def __call__(self, checkpoint: Path, output: Path) -> Mapping[str, float]:
        """Rolls out a checkpoint with its averaged weights, if there are any; returns map from name
        of a metric to value, `success_rate` among them.
        """
        ...


def is_pending(run: RunDir, step: int, steps: tuple[int, ...]) -> bool:
    """True if the checkpoint of a step is to be rolled out, and no row of the metrics has it."""
    rows = read_metrics(run.metrics) if step in steps and run.metrics.is_file() else []
    measured = [row for row in rows if any(name.startswith(EVALUATION) for name in row)]
    return step in steps and all(row["step"] != step for row in measured)


@dataclass(frozen=True)
class SuccessRate:
    """Rolls out the checkpoint of the present step on rank 0, while the others wait. Collective."""

    run: RunDir  # the run folder
    runtime: Runtime  # the ranks of the run
    roll_out: (
        CheckpointRollouts | None
    )  # the rollouts; None on ranks that only wait, and if none are planned
    logger: MetricsLogger  # logs the metrics, and a warning if the rollouts fail; the run continues
    stop: StopRequest  # A request to stop ends the rollouts at once
    resume_hint: str  # rest of the note on a run that was stopped

    def __call__(self, state: TrainState) -> None:
        """Writes the metrics of the rollouts, and the best checkpoint."""
        started = time.perf_counter()
        metrics = self._measured(state.step) if self.runtime.is_main else {}
        metrics, signal = self.runtime.broadcast((metrics, self.stop.signal))
        if signal is not None:
            self._exit(state.step, signal)
        self.logger.meter.leave_out(time.perf_counter() - started)
        if metrics:
            values = {f"{EVALUATION}{name}": value for name, value in metrics.items()}
            self.logger.metrics.write(state.step, {"samples": float(state.samples), **values})
        if self.runtime.is_main:
            self.run.update_best()

    def _measured(self, step: int) -> Mapping[str, float]:
        """Metrics of the rollouts; empty if a request to stop ended them, or if they failed."""
        assert self.roll_out is not None
        try:
            with self.stop.interrupting():
                return self.roll_out(self.run.checkpoint(step), self.run.rollouts(step))
        except KeyboardInterrupt:
            if self.stop.signal is None:
                raise
        except BugError:
            raise
        except VlatoolError as error:
            self.logger.reporter.warn(
                "rollouts_failed",
                f"the rollouts of step {step} failed, and the run continues: {error.message}",
            )
        return {}

    def _exit(self, step: int, signal: int) -> NoReturn:
        self.logger.reporter.note(f"stopped in the rollouts of step {step}{self.resume_hint}")
        exit_stopped(signal)
