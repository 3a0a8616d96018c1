"""A training step on fake tensors, which shows how much memory a real one takes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Batch, Objective, StepContext
from vlatool.training.config import TrainConfig
from vlatool.training.meter import AllocationMeter
from vlatool.training.placement import PlacedParts, Placement
from vlatool.training.scatter import replace_tensors


class Gradients(Enum):
    """Gradients that are in memory when the backward pass begins."""

    NEW = "none: they appear one by one"
    HELD = "all: those of the micro-batch before, or the buckets of DDP"
    SENT = "none: each one leaves at once, to be reduced over devices"


@dataclass(frozen=True)
class StepBytes:
    """Memory of a step besides that of weights and the state of optimizers."""

    peak: int  # bytes at the peak, without those of the gradients at the end
    retained: int  # bytes that the process does not give back after the step, without these too


@dataclass(frozen=True)
class FakeStep:
    """A step of a run."""

    config: TrainConfig  # configuration of the run, derived
    info: DatasetInfo  # metadata of the training data
    device: torch.device  # device of the run
    micro_batch: int  # samples per device and micro-batch
    last_step: int  # index of the last step
    batch: Callable[[int], Batch]  # returns a batch of a number of samples, on the CPU
    for_gpu: bool = False  # the run is for GPUs, which this machine may not have

    def run(self, size: int, gradients: Gradients, *, checkpointing: bool) -> StepBytes:
        """Runs loss and backward pass of all optimizers."""
        config, model_type = self.config, self.config.model_type
        meter, batch = AllocationMeter(self.device, for_gpu=self.for_gpu), self.batch(size)
        with torch.device("meta"):
            parts = model_type.build(config.model)
        for part in parts.values():
            replace_tensors(part.module, meter.resident)
        with meter:
            placement = Placement(self.device, grad_checkpointing=checkpointing)
            placed = PlacedParts(parts, placement, model_type)
            objective = model_type.objective(config.model, config.data, self.info, parts)
            modules = {name: part.module for name, part in parts.items()}
            if gradients is Gradients.SENT:
                for parameter in _trainable(modules.values()):
                    parameter.register_post_accumulate_grad_hook(_drop)
            self._losses(objective, placed, modules, meter, batch, gradients)
            held = sum(p.grad.nbytes for p in _trainable(modules.values()) if p.grad is not None)
        return StepBytes(max(meter.peak - held, 0), max(meter.retained - held, 0))

    def _losses(
        self,
        objective: Objective,
        placed: PlacedParts,
        modules: dict[str, nn.Module],
        meter: AllocationMeter,
        batch: Batch,
        gradients: Gradients,
    ) -> None:
        specs = objective.optimizers()
        step = min(first_full_step(objective), self.last_step)
        names = objective.optimizers_at(step)
        size = len(next(iter(batch.values())))
        ctx = StepContext(step, _AnyRng(size, self.device), placed.callables, samples=("",) * size)
        # Gradients of an optimizer last until its next step, while others compute.
        for _ in range(2 if len(names) > 1 else 1):
            copied = {
                key: meter.copied(value) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }
            with torch.no_grad():
                copied = objective.prepare(copied, ctx)
            for name in names:
                parts = [modules[part] for part in specs[name].parts]
                for parameter in _trainable(parts):
                    parameter.grad = None
                with placed.only_trains(specs[name].parts):
                    for _ in range(2 if gradients is Gradients.HELD else 1):
                        self._backward(objective, name, copied, ctx)
            del copied

    def _backward(self, objective: Objective, name: str, batch: Batch, ctx: StepContext) -> None:
        is_mixed = self.config.hparams.precision.startswith("amp")
        cast = torch.autocast(self.device.type, torch.bfloat16) if is_mixed else nullcontext()
        with cast:
            loss = objective.loss(name, batch, ctx)
        loss.total.backward()


def first_full_step(objective: Objective) -> int:
    """First step at which all optimizers have started."""
    return max(spec.starts_at for spec in objective.optimizers().values())


class _AnyRng:
    """Random numbers of no particular seed, in the shapes of `models.base.Rng`."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self._size, *shape), device=self._device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand((self._size, *shape), device=self._device)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (self._size, *shape), device=self._device)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _trainable(modules: Any) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]
