"""One optimizer's part of a step: losses of all micro-batches, gradients, update."""

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
    """What one optimizer did in a step.

    Attributes:
        optimizer: Its name.
        rate: Learning rate.
        sums: Over all ranks.
        norm: Of the gradient of the mean loss, before clipping.
        ok: bool on the device: weights were changed.
        totals: Losses of this rank's micro-batches.
        on_host: [norm, ok, *sums.packed], a step later.
    """

    optimizer: str
    rate: float
    sums: ReducedLoss
    norm: Tensor
    ok: Tensor
    totals: Sequence[Tensor]
    on_host: AsyncHostCopy


class StepContexts:
    """Makes what an objective may know of a moment."""

    def __init__(self, runtime: Runtime, placed: PlacedParts, seed: int, plan: TrainPlan) -> None:
        self._runtime = runtime
        self._placed = placed
        self._seed = seed
        self._plan = plan

    def seed_step(self, step: int) -> None:
        """Seeds what draws from torch's global generators in this step."""
        self._runtime.seed(self._seed, step)

    def of(
        self, step: int, one: MicroBatch, rng_key: object, *, training: bool = True
    ) -> StepContext:
        """The moment of a micro-batch; randomness depends on its positions and the turn."""
        total = self._plan.global_batch
        # A fake micro-batch is made in the size of a whole one.
        rows = one.positions or range(self._plan.micro_batch)
        key = (step, rng_key) if training else (rows[0] // total, rng_key)
        return StepContext(
            step=step,
            rng=self._runtime.rng(rows, total, self._seed, *key),
            parts=self._placed.callables,
            training=training,
            samples=one.samples,
        )


class OptimizerStepper:
    """Moves one optimizer at a time.

    A loss or gradient that is not finite, on any rank, changes no weight on any rank, and neither
    does anything after it: the host learns of it a step later. Where nothing is counted nothing
    changes, and that is no error.
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
        """Loss, backward, reduction, clip and update.

        Args:
            name: The optimizer.
            state: Holds it.
            objective: Gives the losses.
            micro_batches: Prepared, on the device.
            extra: Numbers of this rank that are added up over ranks beside the losses.
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
        # Gradient exchange averages over processes; the mean is over all counted elements.
        count = torch.where(is_empty, torch.ones_like(sums.count), sums.count)
        scale = (self._runtime.world_size / count).float()
        skip = self._halted | sums.is_bad | is_empty
        norm = update(optimizer, scale, self._h.grad_clip_norm, skip)
        ok = ~skip & norm.isfinite()
        self._halted = self._halted | (~is_empty & ~ok)
        told = AsyncHostCopy(torch.cat([torch.stack([norm.double(), ok.double()]), sums.packed]))
        return OptimizerStep(name, rate, sums, norm, ok, local.totals, told)

    def _backward(
        self, name: str, step: int, objective: Objective, micro_batches: Sequence[MicroBatch]
    ) -> LossSums:
        optimizers = objective.optimizers()
        parts, turn = optimizers[name].parts, list(optimizers).index(name)
        local = LossSums(self._runtime.device)
        for index, one in enumerate(micro_batches):
            ctx = self._contexts.of(step, one, turn)
            last = index == len(micro_batches) - 1
            with self._placed.gradient_sync(parts, last=last):
                with self._runtime.autocast():
                    loss = objective.loss(name, one.batch, ctx)
                # A fake micro-batch takes part in every exchange and adds nothing.
                (loss.total * 0.0 if one.is_dummy else loss.total).backward()
            local.add(loss, is_dummy=one.is_dummy)
        return local
