"""The training loop, whatever the model."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from vlatool.errors import DataError
from vlatool.events import Progress
from vlatool.models.base import Batch, Objective
from vlatool.training.config import HParams
from vlatool.training.metrics import Meter, MetricsFile
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.schedule import learning_rate
from vlatool.training.state import TrainState

_NAMED_SAMPLES = 8


@dataclass
class Trainer:
    """Moves weights until the plan is done.

    Attributes:
        plan: Steps, batches and checkpoints.
        h: Rates, clipping, seed.
        runtime: Devices and processes.
        metrics: Where numbers go.
        log_every: Steps between reports.
        save: Called at checkpoint steps.
        stop_asked: True once the run shall end early.
    """

    plan: TrainPlan
    h: HParams
    runtime: Runtime
    metrics: MetricsFile
    log_every: int
    save: Callable[[TrainState], None]
    stop_asked: Callable[[], bool]

    def fit(
        self, state: TrainState, loader: Iterable[Batch], objective: Objective, bar: Progress
    ) -> None:
        """Trains from `state.step` to the end of the plan, or until a stop is asked for."""
        batches = iter(loader)
        meter = Meter()
        objective.model.train()
        while state.step < self.plan.total_steps and not self._stopping():
            micro_batches = self._fetch(batches, meter)
            rng = self.runtime.generator(self.h.seed, state.step)
            rate = learning_rate(self.h, state.step, self.plan.total_steps)
            for turn in objective.turns(state.step):
                optimizer = state.optimizers[turn]
                self._set_rate(optimizer, rate)
                self._step(turn, optimizer, objective, micro_batches, rng, meter)
            state.step += 1
            state.samples += self.plan.global_batch
            meter.consumed(self.plan.global_batch)
            if state.average is not None:
                state.average.update(state.model)
            self._report(state, meter, rate, bar)
            if state.step in self.plan.checkpoint_steps:
                self.save(state)

    def _fetch(self, batches: Iterator[Batch], meter: Meter) -> list[Batch]:
        started = time.perf_counter()
        fetched = [next(batches) for _ in range(self.plan.accumulation)]
        meter.waited(time.perf_counter() - started)
        return [self.runtime.to_device(batch) for batch in fetched]

    def _step(
        self,
        turn: str,
        optimizer: Optimizer,
        objective: Objective,
        micro_batches: list[Batch],
        rng: torch.Generator,
        meter: Meter,
    ) -> None:
        """Loss, backward, clip and update of one optimizer."""
        optimizer.zero_grad(set_to_none=True)
        sums: list[Tensor] = []
        scalars: dict[str, Tensor] = {}
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with (
                self.runtime.without_exchange(objective.model, last=last),
                self.runtime.autocast(),
            ):
                loss = objective.loss(turn, batch, rng)
                loss.total.backward()
            sums.append(torch.stack([loss.total.detach().float(), loss.count.float()]))
            scalars.update(loss.scalars)
        total, count = self.runtime.sum(torch.stack(sums).sum(0))
        self._check_finite(total, sums, micro_batches)
        norm = self._scale_and_clip(optimizer, count)
        self._check_finite(norm, sums, micro_batches)
        optimizer.step()
        meter.step(total / count.clamp(min=1), norm, scalars)

    def _scale_and_clip(self, optimizer: Optimizer, count: Tensor) -> Tensor:
        """Turns gradients of summed losses into those of the mean; returns their norm."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Gradient exchange averages over processes; the mean is over all counted elements.
        scale = self.runtime.world_size / count.clamp(min=1)
        for gradient in gradients:
            gradient.mul_(scale)
        limit = self.h.grad_clip_norm
        return torch.nn.utils.clip_grad_norm_(
            parameters, float("inf") if limit is None else limit, foreach=True
        )

    def _check_finite(self, value: Tensor, sums: list[Tensor], batches: list[Batch]) -> None:
        """Stops every process before weights change when a loss or gradient norm is no number.

        Raises:
            DataError: It is not finite; names samples of this process's bad micro-batches.
        """
        if torch.isfinite(value):
            return
        bad = [batch for batch, one in zip(batches, sums, strict=True) if not one.isfinite().all()]
        bad = bad or batches
        keys = [str(key) for batch in bad for key in batch.get("keys", [])][:_NAMED_SAMPLES]
        raise DataError(
            "the loss or its gradient is not finite; weights were not changed; "
            f"samples: {', '.join(keys)}",
            hint="look at these samples; a lower hparams.lr or hparams.grad_clip_norm may help",
            code="data.loss_not_finite",
            details={"samples": keys},
        )

    def _set_rate(self, optimizer: Optimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate

    def _report(self, state: TrainState, meter: Meter, rate: float, bar: Progress) -> None:
        done = state.step == self.plan.total_steps
        if state.step % self.log_every and not done:
            bar.advance(1)
            return
        values = meter.report()
        bar.advance(
            1, loss=round(values["loss"], 4), samples_s=round(values["samples_per_second"], 1)
        )
        self.metrics.write(state.step, {"samples": float(state.samples), "lr": rate, **values})

    def _stopping(self) -> bool:
        """Whether any process was asked to stop."""
        if self.runtime.world_size == 1:
            return self.stop_asked()
        flag = torch.tensor([float(self.stop_asked())], device=self.runtime.device)
        return bool(self.runtime.sum(flag).item())
