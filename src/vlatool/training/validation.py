"""Validation: one pass over the validation data, with raw and with averaged weights."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from vlatool.loading.base import MicroBatch
from vlatool.models.base import Objective
from vlatool.training.reduction import LossSums
from vlatool.training.report import MetricsLogger
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import StepContexts

_PHASE = "validation"
_PREFIX = "val/"
_AVERAGED_PREFIX = "val/ema/"


@dataclass(frozen=True)
class Validation:
    """Validation of a run. Collective; expects the parts in eval mode.

    Attributes:
        open_batches: Starts a pass over the micro-batches of this rank, on the device; their number
            is equal on all ranks.
        objective: Computes the loss of a micro-batch.
        runtime: The ranks of the run.
        contexts: Makes the contexts of the objective.
        logger: Logs the metrics.
    """

    open_batches: Callable[[], Iterator[MicroBatch]]
    objective: Objective
    runtime: Runtime
    contexts: StepContexts
    logger: MetricsLogger

    def __call__(self, state: TrainState) -> None:
        """Writes the metrics with raw weights, and with averaged weights if there are any."""
        metrics = self._pass(_PREFIX, state.step)
        if state.averages:
            with ExitStack() as stack:
                for average in state.averages.values():
                    stack.enter_context(average.average_parameters())
                metrics |= self._pass(_AVERAGED_PREFIX, state.step)
        self.logger.metrics.write(state.step, {"samples": float(state.samples), **metrics})
        self.logger.check_metrics(self.objective, metrics)

    @torch.no_grad()
    def _pass(self, prefix: str, step: int) -> dict[str, float]:
        local = LossSums(self.runtime.device)
        dropped, first_drop = 0, ""
        for micro_batch in self.open_batches():
            dropped, first_drop = (
                dropped + sum(micro_batch.dropped),
                first_drop or micro_batch.first_drop,
            )
            ctx = self.contexts.of(step, micro_batch, _PHASE, training=False)
            batch = self.objective.prepare(micro_batch.batch, ctx)
            # `prepare` and the loss have separate streams of randomness.
            ctx = self.contexts.of(step, micro_batch, f"{_PHASE} loss", training=False)
            with self.runtime.autocast():
                local.add(self.objective.validate(batch, ctx), is_dummy=micro_batch.is_dummy)
        sums = local.reduced(self.runtime, [float(dropped)])
        packed = sums.packed.cpu()
        total, count, bad, all_dropped = packed[:4].tolist()
        if bad:
            self.logger.reporter.warn(
                "data.loss_not_finite", f"{prefix}loss is not finite in {bad:.0f} micro-batches"
            )
        if all_dropped:
            self.logger.warn_validation_drops(int(all_dropped), first_drop)
        if count <= 0:
            return {}
        values = self.objective.metrics(_PHASE, sums.read(packed), count)
        metrics = {f"{prefix}{name}": float(value) for name, value in values.items()}
        return {f"{prefix}loss": total / count, **metrics}
