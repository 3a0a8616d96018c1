"""Tensors of rank 0 on all ranks: weights are read and kept on the host of one rank only.

The other ranks build their parts on the meta device, and allocate what they train on their device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_source() -> bool:
    """True on the rank whose tensors are sent; always with one process."""
    return not _has_ranks() or distributed.get_rank() == 0


@torch.no_grad()
def scatter(weights: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copies tensors of rank 0 to those of the same names on all ranks. Collective.

    `weights`: full tensors, on any device; used on rank 0 only; `into`: tensors of this rank; of a
    sharded one it takes its shard.
    """
    names = [[name for name in into if name in weights]]
    if _has_ranks():
        distributed.broadcast_object_list(names)
    for name in names[0]:
        target = into[name]
        if is_source():
            value = weights[name].detach().to(target.device, target.dtype).contiguous()
        else:
            value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        if isinstance(target, DTensor):
            placed = distribute_tensor(value, target.device_mesh, target.placements)
            target.to_local().copy_(placed.to_local())
            continue
        if _has_ranks():
            distributed.broadcast(value, 0)
        target.copy_(value)


@dataclass(frozen=True)
class TensorFacts:
    """Type of a tensor of a module on rank 0, after its weights were loaded."""

    dtype: torch.dtype
    requires_grad: bool


def tensor_facts(module: nn.Module) -> dict[str, TensorFacts]:
    """Map from name to type of all parameters and buffers of a module."""
    return {name: TensorFacts(t.dtype, t.requires_grad) for name, t in named_tensors(module)}


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors of all parameters and buffers, tied ones once."""
    return [*module.named_parameters(), *module.named_buffers()]


def with_facts(module: nn.Module, facts: Mapping[str, TensorFacts]) -> None:
    """Gives a module on the meta device the types of the one of rank 0."""
    tensors = dict(named_tensors(module))
    assert tensors.keys() == facts.keys(), "load() has changed the structure of a part"
    for name, tensor in tensors.items():
        tensor.data = tensor.data.to(facts[name].dtype)
        tensor.requires_grad_(facts[name].requires_grad)


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces all parameters and buffers of a module; tied ones stay tied."""
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for owner in module.modules():
        for name, value in owner.named_parameters(recurse=False, remove_duplicate=False):
            if id(value) not in done:
                new = nn.Parameter(make(value.detach()), requires_grad=value.requires_grad)
                done[id(value)] = value, new
            setattr(owner, name, done[id(value)][1])
        for name, value in owner.named_buffers(recurse=False, remove_duplicate=False):
            if id(value) not in done:
                done[id(value)] = value, make(value)
            setattr(owner, name, done[id(value)][1])


def _has_ranks() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1
