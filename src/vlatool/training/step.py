"""Step of one optimizer: losses of all micro-batches, gradients, update."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlatool.loading.base import MicroBatch
from vlatool.models.base import Objective, StepContext
from vlatool.training.config import HParams
from vlatool.training.optim import set_rate, update
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.reduction import AsyncHostCopy, LossSums, ReducedLoss
from vlatool.training.runtime import Runtime
from vlatool.training.schedule import learning_rate
from vlatool.training.state import TrainState


@dataclass(frozen=True)
class OptimizerStep:
    """Result of one optimizer in a step.

    Attributes:
        optimizer: Name of the optimizer.
        rate: Learning rate.
        sums: Loss sums over all ranks.
        norm: Gradient norm of the mean loss, before clipping.
        ok: bool scalar on the device; True if weights were updated.
        totals: Losses of the micro-batches of this rank.
        on_host: Host copy of [norm, ok, *sums.packed], which is read one step later.
    """

    optimizer: str
    rate: float
    sums: ReducedLoss
    norm: Tensor
    ok: Tensor
    totals: Sequence[Tensor]
    on_host: AsyncHostCopy


class StepContexts:
    """Factory of the contexts that an objective receives."""

    def __init__(self, runtime: Runtime, placed: PlacedParts, seed: int, plan: TrainPlan) -> None:
        self._runtime = runtime
        self._placed = placed
        self._seed = seed
        self._plan = plan

    def seed_step(self, step: int) -> None:
        """Seeds torch's global generators for a step."""
        self._runtime.seed(self._seed, step)

    def of(
        self, step: int, micro_batch: MicroBatch, rng_key: object, *, training: bool = True
    ) -> StepContext:
        """The context of a micro-batch; randomness depends on its positions and `rng_key`."""
        total = self._plan.global_batch
        # A dummy micro-batch has no positions, and the size of a full one.
        rows = micro_batch.positions or range(self._plan.micro_batch)
        key = (step, rng_key) if training else (rows[0] // total, rng_key)
        return StepContext(
            step=step,
            rng=self._runtime.rng(rows, total, self._seed, *key),
            parts=self._placed.callables,
            training=training,
            samples=micro_batch.samples,
        )


class OptimizerStepper:
    """Runs the step of one optimizer at a time.

    After a loss or gradient that is not finite, on any rank, no weight changes on any rank, in this
    step and all later ones; the host raises the error one step later. A step without counted
    elements changes nothing and is not an error.
    """

    def __init__(
        self,
        h: HParams,
        total_steps: int,
        runtime: Runtime,
        placed: PlacedParts,
        contexts: StepContexts,
    ) -> None:
        self._contexts = contexts
        self._h = h
        self._total_steps = total_steps
        self._runtime = runtime
        self._placed = placed
        self._halted = torch.zeros((), dtype=torch.bool, device=runtime.device)

    def step(
        self,
        name: str,
        state: TrainState,
        objective: Objective,
        micro_batches: Sequence[MicroBatch],
        extra: Sequence[float],
    ) -> OptimizerStep:
        """Runs loss, backward pass, reduction, clipping and update. Collective.

        Args:
            name: Name of the optimizer.
            state: Training state, which is updated.
            objective: Computes the losses.
            micro_batches: Prepared micro-batches, on the device.
            extra: Numbers of this rank to sum over ranks together with the losses.
        """
        spec, optimizer = objective.optimizers()[name], state.optimizers[name]
        steps_left = self._total_steps - spec.starts_at
        rate = learning_rate(self._h, state.step - spec.starts_at, steps_left, spec.lr)
        set_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        with self._placed.only_trains(spec.parts):
            local = self._backward(name, state.step, objective, micro_batches)
        sums = local.reduced(self._runtime, extra)
        is_empty = sums.count <= 0
        # DDP and FSDP average gradients over ranks; the mean loss is over all counted elements.
        count = torch.where(is_empty, torch.ones_like(sums.count), sums.count)
        scale = (self._runtime.world_size / count).float()
        skip = self._halted | sums.is_bad | is_empty
        norm = update(optimizer, scale, self._h.grad_clip_norm, skip)
        ok = ~skip & norm.isfinite()
        self._halted = self._halted | (~is_empty & ~ok)
        host_copy = AsyncHostCopy(
            torch.cat([torch.stack([norm.double(), ok.double()]), sums.packed])
        )
        return OptimizerStep(name, rate, sums, norm, ok, local.totals, host_copy)

    def _backward(
        self, name: str, step: int, objective: Objective, micro_batches: Sequence[MicroBatch]
    ) -> LossSums:
        optimizers = objective.optimizers()
        parts, rng_key = optimizers[name].parts, list(optimizers).index(name)
        local = LossSums(self._runtime.device)
        for index, micro_batch in enumerate(micro_batches):
            ctx = self._contexts.of(step, micro_batch, rng_key)
            is_last = index == len(micro_batches) - 1
            with self._placed.gradient_sync(parts, last=is_last):
                with self._runtime.autocast():
                    loss = objective.loss(name, micro_batch.batch, ctx)
                # A dummy micro-batch takes part in every collective and adds nothing.
                (loss.total * 0.0 if micro_batch.is_dummy else loss.total).backward()
            local.add(loss, is_dummy=micro_batch.is_dummy)
        return local
