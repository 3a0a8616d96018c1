"""AdamW with decay on matrices only. Source: reference/training 3.1."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from vlatool.models.base import OptimizerSpec, ParamGroup
from vlatool.training.config import HParams


def build_optimizer(spec: OptimizerSpec, parts: Mapping[str, nn.Module], h: HParams) -> AdamW:
    """AdamW over the parts of one optimizer, which are placed already."""
    chosen = {name: parts[name] for name in spec.parts}
    if spec.groups is None:
        groups = split_by_rate(default_param_groups(chosen), chosen, spec.rates)
    else:
        groups = spec.groups(chosen)
    kept = [(group, [p for p in group.params if p.requires_grad]) for group in groups]
    return AdamW(
        [
            {"params": params, "weight_decay": h.wd if group.decays else 0.0, "rate": group.rate}
            for group, params in kept
            if params
        ],
        lr=h.lr if spec.lr is None else spec.lr,
        betas=spec.betas or (h.beta1, h.beta2),
        eps=h.eps,
        # The fused kernels alone leave weights as they are where a loss is not finite.
        fused=True,
    )


def default_param_groups(parts: Mapping[str, nn.Module]) -> Sequence[ParamGroup]:
    """Weights of linear and convolutional layers decay, the rest does not.

    A bias, a norm, a scalar or a table of positions has no reason to be small.
    """
    modules = [module for part in parts.values() for module in part.modules()]
    matrices = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    decayed = {id(module.weight) for module in modules if isinstance(module, matrices)}
    parameters = {id(p): p for part in parts.values() for p in part.parameters()}
    return [
        ParamGroup([p for key, p in parameters.items() if key in decayed]),
        ParamGroup([p for key, p in parameters.items() if key not in decayed], decays=False),
    ]


def split_by_rate(
    groups: Sequence[ParamGroup], parts: Mapping[str, nn.Module], rates: Mapping[str, float]
) -> Sequence[ParamGroup]:
    """The groups, each with those of its parameters apart that have a rate of their own."""
    named = [one for part in parts.values() for one in part.named_parameters()]
    factors = {
        id(p): rate for name, p in named for start, rate in rates.items() if name.startswith(start)
    }
    return [
        replace(
            group, params=[p for p in group.params if factors.get(id(p), 1.0) == rate], rate=rate
        )
        for group in groups
        for rate in sorted({1.0, *rates.values()}, reverse=True)
    ]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """The learning rate of the next update; groups scale it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def update(optimizer: Optimizer, scale: Tensor, limit: float | None, skip: Tensor) -> Tensor:
    """Moves the weights, or leaves everything as it is where `skip` or a gradient says so.

    Args:
        optimizer: A fused one.
        scale: What gradients are multiplied with before they are clipped; scalar.
        limit: Largest gradient norm.
        skip: bool scalar: change nothing.

    Returns:
        The norm of the scaled gradients before clipping; what is not finite moved nothing.
    """
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = _norm(gradients, scale) * scale
    factor = scale
    if limit is not None:
        factor = scale * (limit / (norm + 1e-6)).clamp(max=1.0)
    # Fused kernels divide by the one and stop at the other; nothing is read by the host.
    optimizer.grad_scale = factor.reciprocal().float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.found_inf = (skip | ~norm.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return norm


def _norm(gradients: list[Tensor], like: Tensor) -> Tensor:
    """The norm of all gradients together, those of other processes' shards included."""
    if not gradients:
        return torch.zeros_like(like)
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
