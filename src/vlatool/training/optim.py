"""AdamW and its parameter groups. Source: reference/training 3.1."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from vlatool.models.base import OptimizerSpec, ParamGroup, decays_by_name
from vlatool.training.sections import HParams


def build_optimizer(spec: OptimizerSpec, parts: Mapping[str, nn.Module], h: HParams) -> AdamW:
    """AdamW over the parts of one optimizer; the parts must be placed already."""
    chosen = {name: parts[name] for name in spec.parts}
    if spec.groups is None:
        groups = default_param_groups(chosen, by_name=h.decay_by_name)
        groups = split_by_rate(groups, chosen, spec.rates)
    else:
        groups = spec.groups(chosen)
    trainable = [(group, [p for p in group.params if p.requires_grad]) for group in groups]
    return AdamW(
        [
            {"params": params, "weight_decay": h.wd if group.decays else 0.0, "rate": group.rate}
            for group, params in trainable
            if params
        ],
        lr=h.lr if spec.lr is None else spec.lr,
        betas=spec.betas or (h.beta1, h.beta2),
        eps=h.eps,
        # Only the fused kernels can skip an update without a host sync (`found_inf`).
        fused=True,
    )


def default_param_groups(
    parts: Mapping[str, nn.Module], *, by_name: bool = False
) -> Sequence[ParamGroup]:
    """Two groups: weights of linear and convolution layers with weight decay, the rest without.

    Biases, norms, scalars and position embeddings have no reason to be small.
    """
    named = [pair for part in parts.values() for pair in part.named_parameters()]
    if by_name:
        decayed = {id(p) for name, p in named if decays_by_name(name)}
    else:
        modules = [module for part in parts.values() for module in part.modules()]
        matrices = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        decayed = {id(module.weight) for module in modules if isinstance(module, matrices)}
    parameters = {id(p): p for _, p in named}
    return [
        ParamGroup([p for key, p in parameters.items() if key in decayed]),
        ParamGroup([p for key, p in parameters.items() if key not in decayed], decays=False),
    ]


def split_by_rate(
    groups: Sequence[ParamGroup], parts: Mapping[str, nn.Module], rates: Mapping[str, float]
) -> Sequence[ParamGroup]:
    """The groups, split so that all parameters of a group have the same learning rate factor."""
    named = [item for part in parts.values() for item in part.named_parameters()]
    factors = {
        id(p): rate
        for name, p in named
        for prefix, rate in rates.items()
        if name.startswith(prefix)
    }
    return [
        replace(
            group, params=[p for p in group.params if factors.get(id(p), 1.0) == rate], rate=rate
        )
        for group in groups
        for rate in sorted({1.0, *rates.values()}, reverse=True)
    ]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of the next update, times the factor of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def update(optimizer: Optimizer, scale: Tensor, limit: float | None, skip: Tensor) -> Tensor:
    """Updates the weights; changes nothing if `skip` is true or a gradient is not finite.

    `limit`: maximum gradient norm; None: no clipping; `skip`: bool scalar on the device; returns
    norm of the scaled gradients before clipping; not finite if the update was skipped for it.
    """
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
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
