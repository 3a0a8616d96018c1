"""A training step: prepares batches, computes losses and gradients, reduces, updates, averages.

`TrainStep.__call__` runs these in order, for each optimizer of the objective that is active:

1. `Objective.prepare` turns each micro-batch into inputs and targets;
2. `Objective.loss` and backward, once per micro-batch; gradients add up;
3. one collective sums losses, counts and further numbers of all ranks;
4. gradients are divided by the number of counted elements, clipped, and applied;
5. averaged weights (EMA) follow.

All values to sum are in one vector, so that there is one collective. It is float64, because element
counts and histograms must be exact. Its copy to the host starts at once and is read one step later,
so that the host does not wait for the device.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam, AdamW, Optimizer

from vlatool.loading.base import Batch, MicroBatch
from vlatool.models import base
from vlatool.training.config import HParams
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan, learning_rate
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState


def build_optimizer(spec: base.OptimizerSpec, parts: Mapping[str, nn.Module], h: HParams) -> Adam:
    """Adam or AdamW for the parts of one optimizer, which must already be placed."""
    chosen = {name: parts[name] for name in spec.parts}
    if spec.groups is None:
        groups = default_param_groups(chosen, by_name=h.decay_by_name)
        groups = split_by_rate(groups, chosen, spec.rates)
    else:
        groups = spec.groups(chosen)
    rows: list[dict[str, Any]] = []
    for group in groups:
        params = [p for p in group.params if p.requires_grad]
        if params:
            decay = h.wd if group.decay is None else group.decay
            decay = decay if group.decays else 0.0
            rows.append({"params": params, "weight_decay": decay, "rate": group.rate})
    kind = Adam if h.optimizer == "adam" else AdamW
    return kind(
        rows,
        lr=h.lr if spec.lr is None else spec.lr,
        betas=spec.betas or (h.beta1, h.beta2),
        eps=h.eps,
        # Only the fused kernels can skip an update without a host sync (`found_inf`).
        fused=True,
    )


def default_param_groups(
    parts: Mapping[str, nn.Module], *, by_name: bool = False
) -> Sequence[base.ParamGroup]:
    """Two groups: weights of linear and convolution layers with weight decay, the rest without.

    Biases, norms, scalars and position embeddings have no reason to be small.
    """
    parameters: dict[int, nn.Parameter] = {}  # by id: parts may share them
    decayed_ids: set[int] = set()
    for part in parts.values():
        for name, parameter in part.named_parameters():
            parameters[id(parameter)] = parameter
            if by_name and base.decays_by_name(name):
                decayed_ids.add(id(parameter))
        if not by_name:
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    decayed_ids.add(id(module.weight))
    decayed = [p for key, p in parameters.items() if key in decayed_ids]
    others = [p for key, p in parameters.items() if key not in decayed_ids]
    return [base.ParamGroup(decayed), base.ParamGroup(others, decays=False)]


def split_by_rate(
    groups: Sequence[base.ParamGroup], parts: Mapping[str, nn.Module], rates: Mapping[str, float]
) -> Sequence[base.ParamGroup]:
    """The groups, split so that all parameters of a group have the same learning rate factor."""
    factors: dict[int, float] = {}  # by id of the parameter
    for part in parts.values():
        for name, parameter in part.named_parameters():
            for prefix, rate in rates.items():
                if name.startswith(prefix):
                    factors[id(parameter)] = rate
    split: list[base.ParamGroup] = []
    for group in groups:
        for rate in sorted({1.0, *rates.values()}, reverse=True):
            params = [p for p in group.params if factors.get(id(p), 1.0) == rate]
            split.append(replace(group, params=params, rate=rate))
    return split


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of the next update, times the factor of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]  # of the group: its factor


def update(optimizer: Optimizer, scale: Tensor, limit: float | None, skip: Tensor) -> Tensor:
    """Updates the weights; changes nothing if `skip` is true or a gradient is not finite.

    `limit`: maximum gradient norm; None: no clipping; `skip`: bool scalar on the device; returns
    the norm of the scaled gradients before clipping, which is not finite if the update was skipped
    because of it.
    """
    gradients: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradients.append(parameter.grad)
    norm = _norm(gradients, scale) * scale
    factor = scale
    if limit is not None:
        factor = scale * (limit / (norm + 1e-6)).clamp(max=1.0)
    # Fused kernels divide by grad_scale and skip if found_inf is set, without a host sync.
    optimizer.grad_scale = factor.reciprocal().float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.found_inf = (skip | ~norm.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return norm


def _norm(gradients: list[Tensor], like: Tensor) -> Tensor:
    """Norm over all gradients, including the shards on other ranks."""
    if not gradients:
        return torch.zeros_like(like)
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


# Short compared with a step on a GPU.
_POLL_S = 0.0002


@dataclass
class LossSums:
    """Losses of the micro-batches of one optimizer on this rank."""

    device: torch.device
    totals: list[Tensor] = field(default_factory=list[Tensor])  # loss of each micro-batch, detached
    _counts: list[Tensor] = field(default_factory=list[Tensor])
    _sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, loss: base.Loss, *, is_dummy: bool) -> None:
        """Adds the loss of a micro-batch; a dummy micro-batch counts nothing."""
        if is_dummy:
            zero = torch.zeros((), dtype=torch.float64, device=self.device)
            self.totals.append(zero)
            self._counts.append(zero)
        else:
            self.totals.append(loss.total.detach().double())
            self._counts.append(loss.count.detach().double())
        for name, value in loss.sums.items():
            value = value.detach().double()
            if is_dummy:
                value = torch.zeros_like(value)
            if name in self._sums:
                value = self._sums[name] + value
            self._sums[name] = value

    def reduced(self, runtime: Runtime, extra: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over all ranks by name, float64: `total`, `count`, the number of micro-batches that
        are not finite as `bad`, further numbers as `extra`, and the sums of the objective
        (`sums_of`). Collective; `extra`: numbers [E] of this rank, with the same E on all ranks.
        """
        totals = torch.stack(self.totals)
        counts = torch.stack(self._counts)
        bad = ~(totals.isfinite() & counts.isfinite())
        more = torch.zeros(0) if extra is None else extra
        values = {
            "total": totals.sum(),
            "count": counts.sum(),
            "bad": bad.sum(),
            "extra": more.to(self.device, non_blocking=True),
        }
        for name in sorted(self._sums):
            values[f"{_SUMS}{name}"] = self._sums[name].to(self.device)
        packed = Packed(values)
        return packed.read(runtime.sum(packed.vector))


class Packed:
    """Tensors in one float64 vector, so that one collective, or one copy, takes all of them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.vector = torch.cat([value.reshape(-1).double() for value in values.values()])
        self._shapes = {name: value.shape for name, value in values.items()}

    def read(self, vector: Tensor) -> dict[str, Tensor]:
        """The tensors by name, from another vector of this kind."""
        parts = vector.split([prod(shape) for shape in self._shapes.values()])
        shapes = self._shapes.items()
        return {
            name: part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)
        }


_SUMS = "sums/"  # before the name of a sum of the objective


def sums_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums of the objective among reduced values."""
    sums: dict[str, Tensor] = {}
    for name, value in values.items():
        if name.startswith(_SUMS):
            sums[name.removeprefix(_SUMS)] = value
    return sums


class AsyncHostCopy:
    """Asynchronous copy of small tensors to the host."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._event: torch.cuda.Event | None = None
        values = packed.vector
        if values.device.type != "cuda":
            self._values = values.detach().clone()
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values.detach(), non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def read(self, timeout_s: float) -> dict[str, Tensor]:
        """The values on the host by name; waits until the copy is done."""
        until = time.monotonic() + timeout_s
        while self._event is not None and not self._event.query():
            if time.monotonic() > until:
                raise TimeoutError("Timed out waiting for the device")
            time.sleep(_POLL_S)
        return self._packed.read(self._values)


@dataclass(frozen=True)
class OptimizerStep:
    optimizer: str
    rate: float  # learning rate
    sums: Mapping[str, Tensor]  # of the objective, over all ranks
    ok: Tensor  # bool scalar on the device; True if weights were updated
    totals: Sequence[Tensor]  # losses of the micro-batches of this rank
    # Copy of the reduced values, `ok`, and the gradient norm of the mean loss before clipping as
    # `norm`, which is read one step later.
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
    ) -> base.StepContext:
        """The context of a micro-batch; random numbers depend on its positions and `rng_key`."""
        total = self._plan.global_batch
        # A dummy micro-batch has no positions, and the size of a full one.
        rows = micro_batch.positions or range(self._plan.micro_batch)
        key = (step, rng_key) if training else (rows[0] // total, rng_key)
        return base.StepContext(
            step=step,
            rng=self._runtime.rng(rows, total, self._seed, *key),
            parts=self._placed.callables,
            training=training,
            samples=micro_batch.samples,
        )


class TrainStep:
    """Runs the steps of a run, one call each.

    After a loss or gradient that is not finite, on any rank, no weight changes on any rank, in this
    step and all later ones; the host raises the error one step later. A step without counted
    elements changes nothing and is not an error.
    """

    def __init__(self, h: HParams, plan: TrainPlan, runtime: Runtime, placed: PlacedParts) -> None:
        self.contexts = StepContexts(runtime, placed, h.seed, plan)
        self._h = h
        self._plan = plan
        self._runtime = runtime
        self._placed = placed
        self._halted = torch.zeros((), dtype=torch.bool, device=runtime.device)

    def __call__(
        self,
        state: TrainState,  # updated
        objective: base.Objective,
        fetched: Sequence[MicroBatch],  # of this rank, on the device
        # numbers of this rank to sum over ranks with the first losses
        extra: Tensor | None = None,
    ) -> tuple[list[OptimizerStep], list[MicroBatch]]:
        """Result of each optimizer that is active, and the prepared micro-batches. Collective."""
        self.contexts.seed_step(state.step)
        micro_batches = self._prepared(objective, state.step, fetched)
        names = objective.optimizers_at(state.step)
        assert names, f"no optimizer is active at step {state.step}"
        updates: list[OptimizerStep] = []
        for name in names:
            numbers = None if updates else extra
            result = self._optimizer_step(name, state, objective, micro_batches, numbers)
            with torch.no_grad():
                objective.update_buffers(name, result.sums, result.ok)
            updates.append(result)
        specs = objective.optimizers()
        for name, average in state.averages.items():
            oks = [step.ok for step in updates if name in specs[step.optimizer].parts]
            if oks:
                average.update(torch.stack(oks).all())
        state.step += 1
        state.samples += self._plan.global_batch
        return updates, micro_batches

    def _prepared(
        self, objective: base.Objective, step: int, fetched: Sequence[MicroBatch]
    ) -> list[MicroBatch]:
        """Prepared micro-batches of a step of this rank, with the global sums. Collective."""
        runtime = self._runtime
        contexts = self.contexts
        local = LossSums(runtime.device)
        zero = torch.zeros((), device=runtime.device)
        micro_batches: list[MicroBatch] = []
        with torch.no_grad():
            for micro_batch in fetched:
                ctx = contexts.of(step, micro_batch, "prepare")
                batch = objective.prepare(dict(micro_batch.batch), ctx)
                micro_batches.append(replace(micro_batch, batch=batch))
            if len(fetched) == 1 and runtime.world_size == 1:
                return micro_batches
            for micro_batch in micro_batches:
                with runtime.autocast():
                    sums = objective.global_sums(
                        micro_batch.batch, contexts.of(step, micro_batch, 0)
                    )
                if not sums:
                    return micro_batches
                local.add(base.Loss(zero, zero, sums), is_dummy=micro_batch.is_dummy)
        total = sums_of(local.reduced(runtime))
        return [replace(item, batch={**item.batch, **total}) for item in micro_batches]

    def _optimizer_step(
        self,
        name: str,
        state: TrainState,
        objective: base.Objective,
        micro_batches: Sequence[MicroBatch],
        extra: Tensor | None,
    ) -> OptimizerStep:
        """Runs loss, backward pass, reduction, clipping and update. Collective."""
        spec = objective.optimizers()[name]
        optimizer = state.optimizers[name]
        steps_left = self._plan.total_steps - spec.starts_at
        step = state.step - spec.starts_at
        rate = learning_rate(self._h, step, steps_left, spec.lr)
        if spec.schedule is not None and self._h.lr_scheduler == "model":
            peak = self._h.lr if spec.lr is None else spec.lr
            rate = peak * spec.schedule(step, steps_left)
        set_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        with self._placed.only_trains(spec.parts):
            optimizers = objective.optimizers()
            parts = optimizers[name].parts
            rng_key = list(optimizers).index(name)
            local = LossSums(self._runtime.device)
            for index, micro_batch in enumerate(micro_batches):
                ctx = self.contexts.of(state.step, micro_batch, rng_key)
                is_last = index == len(micro_batches) - 1
                is_dummy = micro_batch.is_dummy
                with self._placed.gradient_sync(parts, last=is_last):
                    cast = self._runtime.autocast()
                    loss = backward(
                        objective, name, micro_batch.batch, ctx, cast, is_dummy=is_dummy
                    )
                local.add(loss, is_dummy=is_dummy)
        values = local.reduced(self._runtime, extra)
        count = values["count"]
        is_empty = count <= 0
        # DDP and FSDP average gradients over ranks; the mean loss is over all counted elements.
        scale = (self._runtime.world_size / torch.where(is_empty, 1.0, count)).float()
        skip = self._halted | (values["bad"] > 0) | is_empty
        norm = update(optimizer, scale, self._h.grad_clip_norm, skip)
        ok = ~skip & norm.isfinite()
        self._halted = self._halted | (~is_empty & ~ok)
        on_host = Packed({**values, "norm": norm, "ok": ok})
        return OptimizerStep(name, rate, sums_of(values), ok, local.totals, AsyncHostCopy(on_host))


def backward(
    objective: base.Objective,
    name: str,  # of the optimizer
    batch: Batch,
    ctx: base.StepContext,
    autocast: AbstractContextManager[object],
    *,
    is_dummy: bool = False,
) -> base.Loss:
    """Loss of a micro-batch; adds its gradients to the existing ones.

    A dummy micro-batch takes part in every collective and adds nothing.
    """
    with autocast:
        loss = objective.loss(name, batch, ctx)
    (loss.total * 0.0 if is_dummy else loss.total).backward()
    return loss
