"""One pass over held-out data, with the raw and the averaged weights."""

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

_TURN = "validation"
_PREFIX = "val/"
_AVERAGED_PREFIX = "val/ema/"


@dataclass(frozen=True)
class Validation:
    """Measures held-out data; every process calls it, with parts in eval mode.

    Attributes:
        open: Starts a pass over this process's micro-batches, on the device; every process makes
            the same number of them.
        objective: Measures a micro-batch.
        runtime: The processes.
        contexts: What the objective may know.
        reports: Where figures go.
    """

    open_batches: Callable[[], Iterator[MicroBatch]]
    objective: Objective
    runtime: Runtime
    contexts: StepContexts
    logger: MetricsLogger

    def __call__(self, state: TrainState) -> None:
        """Writes the losses of all parts as they are, and of the averages where there are any."""
        figures = self._pass(_PREFIX, state.step)
        if state.averages:
            with ExitStack() as stack:
                for average in state.averages.values():
                    stack.enter_context(average.average_parameters())
                figures |= self._pass(_AVERAGED_PREFIX, state.step)
        self.logger.metrics.write(state.step, {"samples": float(state.samples), **figures})
        self.logger.check_metrics(self.objective, figures)

    @torch.no_grad()
    def _pass(self, prefix: str, step: int) -> dict[str, float]:
        local = LossSums(self.runtime.device)
        dropped, first_drop = 0, ""
        for one in self.open_batches():
            dropped, first_drop = dropped + sum(one.dropped), first_drop or one.first_drop
            ctx = self.contexts.of(step, one, _TURN, training=False)
            batch = self.objective.prepare(one.batch, ctx)
            # The randomness of `prepare` is not that of the loss.
            ctx = self.contexts.of(step, one, f"{_TURN} loss", training=False)
            with self.runtime.autocast():
                local.add(self.objective.validate(batch, ctx), is_dummy=one.is_dummy)
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
        told = self.objective.metrics(_TURN, sums.read(packed), count)
        figures = {f"{prefix}{name}": float(value) for name, value in told.items()}
        return {f"{prefix}loss": total / count, **figures}
