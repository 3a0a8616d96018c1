"""Counts floating-point operations of training on fake tensors, which have no memory or values."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import DynamicOutputShapeException, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils.flop_counter import FlopCounterMode

from vlatool.models.base import Batch, ModelType, Objective, Part, StepContext
from vlatool.models.rng import Distributions

Losses = Callable[[Mapping[str, Part], Batch], Iterable[Tensor]]


def sample_flops(model_type: ModelType, config: Any, data: Any, losses: Losses) -> float | None:
    """Operations of the forward and backward passes of one sample, for `ModelType.flops`.

    Returns the number; None if a network, such as one of a base model, depends on the values.

    A multiplication with an addition counts as two. Only matrix products and convolutions are
    counted, without recomputation by gradient checkpointing.
    """
    batch = model_type.example(config, data, 1)
    with torch.device("meta"):
        parts = model_type.build(config)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, FlopCounterMode(display=False) as counter:
            for part in parts.values():
                part.module.to_empty(device="cpu")
                if not part.trained:
                    part.module.requires_grad_(requires_grad=False)
            for loss in losses(parts, _without_values(batch, mode)):
                loss.backward()
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    return float(counter.get_total_flops())


def objective_losses(make: Callable[[Mapping[str, Part]], Objective]) -> Losses:
    """The losses of all optimizers of an objective, at a step in which all of them run."""

    def losses(parts: Mapping[str, Part], batch: Batch) -> Iterable[Tensor]:
        objective = make(parts)
        step = max(spec.starts_at for spec in objective.optimizers().values())
        modules = {name: part.module for name, part in parts.items()}
        ctx = StepContext(step, _ShapeRng(), modules)
        with torch.no_grad():
            batch = objective.prepare(batch, ctx)
        for name in objective.optimizers_at(step):
            yield objective.loss(name, batch, ctx).total

    return losses


class _ShapeRng(Distributions):
    """Random numbers of one sample without values."""

    def _draw(
        self, function: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        return function(*bounds, (1, *shape))


def _without_values(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    return (
        {k: _without_values(v, mode) for k, v in value.items()}
        if isinstance(value, dict)
        else value
    )
