"""Places the parts of a model: device, gradient checkpointing, compilation, DDP or FSDP.

The only module that uses DDP and `fully_shard`. Weights keep the names of the unwrapped modules.
"""

import re
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vlatool.errors import UsageError
from vlatool.models.base import ModelType, Part
from vlatool.training.state import named_tensors, replace_tensors, scatter

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch.distributed.device_mesh import DeviceMesh


# `update_buffers` changes buffers equally on all ranks; a copy in the middle of a step would
# overwrite tensors that the backward pass needs. Newer versions of torch renamed the argument.
_SYNC = "forward_sync_buffers"
_ARGUMENTS = signature(DistributedDataParallel).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {_SYNC if _SYNC in _ARGUMENTS else "broadcast_buffers": False}


@dataclass(frozen=True)
class Placement:
    device: torch.device  # device of this rank
    world_size: int = 1  # number of ranks
    # mesh that parameters are sharded over; None: no sharding. Parameters are gathered in float32,
    # so that a part can compute in float32 where it disables autocast
    mesh: "DeviceMesh | None" = None
    reshard_after_forward: bool = False  # free gathered parameters also after the forward pass
    # recompute blocks in the backward pass instead of storing activations
    grad_checkpointing: bool = False
    compile_blocks: bool = False


class PlacedParts:
    def __init__(
        self, parts: Mapping[str, Part], placement: Placement, model_type: ModelType
    ) -> None:
        self._parts = parts
        self._sharded = placement.mesh is not None
        for part in parts.values():
            if not part.trained:
                part.module.requires_grad_(requires_grad=False)
            if not (part.trained and self._sharded):
                _to_device(part.module, placement)
        trained: list[nn.Module] = []
        blocks: list[nn.Module] = []
        for part in parts.values():
            if part.trained:
                trained.append(part.module)
                # A block that is the whole part is placed as the part.
                blocks += [block for block in part.blocks if block is not part.module]
        if placement.compile_blocks:
            for block in blocks or trained:
                block.forward = torch.compile(block.forward)
        if placement.grad_checkpointing:
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if placement.mesh is not None:
            _check_shardable(parts)
            _shard(trained, blocks, placement)
        # What an objective calls, by part: the module or its wrapper.
        self.callables: dict[str, Any] = {}
        for name, part in parts.items():
            methods = model_type.methods.get(name, ())
            self.callables[name] = self._callable(part, methods, placement)
        self.train()

    def _callable(self, part: Part, methods: Sequence[str], placement: Placement) -> Any:
        if placement.mesh is not None and part.trained:
            for method in methods:
                register_fsdp_forward_method(part.module, method)
            return part.module
        is_trained = part.trained and any(p.requires_grad for p in part.module.parameters())
        if placement.world_size == 1 or not is_trained:
            return part.module
        return _DdpPart(part, methods, placement.device)

    def train(self) -> None:
        """Sets trained parts to training mode. Frozen modules and all other parts are set to eval
        mode: they do not adapt to dropout, so they run without it.
        """
        for part in self._parts.values():
            part.module.train(part.trained)
            for module in part.module.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()

    def eval(self) -> None:
        """Sets all parts to eval mode."""
        for part in self._parts.values():
            part.module.eval()

    @contextmanager
    def only_trains(self, names: Iterable[str]) -> "Generator[None]":
        """Context in which only the named parts collect gradients.

        Sharded parameters of other parts collect gradients too, which are discarded at the end:
        FSDP fixes `requires_grad` when it gathers a parameter for the first time.
        """
        trained = set(names)
        idle: list[nn.Parameter] = []
        for name, part in self._parts.items():
            if name not in trained:
                idle += [p for p in part.module.parameters() if p.requires_grad]
        if not self._sharded:
            for parameter in idle:
                parameter.requires_grad = False
        try:
            yield
        finally:
            for parameter in idle:
                parameter.grad = None
                parameter.requires_grad = True

    @contextmanager
    def gradient_sync(self, names: Iterable[str], *, last: bool) -> "Generator[None]":
        """Context that reduces gradients of the named parts over ranks in the last micro-batch.

        Gradients of other sharded parts are reduced too: otherwise FSDP would keep them and add
        them to the next gradients. `only_trains` discards them.
        """
        synced = set(names)
        with ExitStack() as stack:
            for name, call in self.callables.items():
                if isinstance(call, _DdpPart) and not (last and name in synced):
                    stack.enter_context(call.no_sync())
                if isinstance(call, FSDPModule):
                    call.set_requires_gradient_sync(last or name not in synced)
            yield


class _Methods(nn.Module):
    """Module whose forward pass runs any method of another module, so that DDP can wrap it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str | None, *args: Any, **named: Any) -> Any:
        call = self.module if method is None else getattr(self.module, method)
        return call(*args, **named)


class _DdpPart:
    """DDP wrapper that is called like the module itself, listed methods included."""

    def __init__(self, part: Part, methods: Sequence[str], device: torch.device) -> None:
        self._module = part.module
        self._methods = frozenset(methods)
        self._wrapped = DistributedDataParallel(
            _Methods(part.module),
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=not part.uses_all,
            **_NO_BUFFER_SYNC,
        )

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._wrapped(None, *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name in self._methods:
            return partial(self._wrapped, name)
        return getattr(self._module, name)

    def no_sync(self) -> AbstractContextManager[None]:
        """Context in which gradients are not reduced over ranks."""
        return self._wrapped.no_sync()


def _to_device(module: nn.Module, placement: Placement) -> None:
    """Moves a whole module of rank 0 to the devices of all ranks. Collective."""
    if placement.world_size == 1:
        # Fake tensors, with which memory is estimated, cannot be moved, and are there already.
        if any(tensor.device != placement.device for _, tensor in named_tensors(module)):
            module.to(placement.device)
        return
    weights = dict(named_tensors(module))
    replace_tensors(module, lambda tensor: torch.empty_like(tensor, device=placement.device))
    scatter(weights, dict(named_tensors(module)))


def _shard(trained: Sequence[nn.Module], blocks: Sequence[nn.Module], placement: Placement) -> None:
    """Shards modules of rank 0 over all ranks: no device ever holds a whole module. Collective."""
    weights = [dict(named_tensors(module)) for module in trained]
    for module in trained:
        replace_tensors(module, lambda tensor: tensor.to("meta"))
    for unit in dict.fromkeys([*blocks, *trained]):
        fully_shard(
            unit, mesh=placement.mesh, reshard_after_forward=placement.reshard_after_forward
        )
    for module, full in zip(trained, weights, strict=True):
        replace_tensors(module, lambda tensor: torch.empty_like(tensor, device=placement.device))
        scatter(full, dict(named_tensors(module)))


def _check_shardable(parts: Mapping[str, Part]) -> None:
    """Raises UsageError if a trained parameter is a scalar, which cannot be sharded."""
    for name, part in parts.items():
        for key, parameter in part.module.named_parameters():
            if part.trained and parameter.dim() == 0:
                raise UsageError(
                    f"{name}.{key} is a scalar, which cannot be sharded",
                    hint="unset distributed.fsdp, or give this parameter the shape [1] in the "
                    "model type",
                    code="usage.unsupported",
                    details={"parameter": f"{name}.{key}"},
                )


# Dense TFLOP/s of matrix products in bfloat16, by words of the name that torch reports; the first
# row whose words are all there counts. Source: reference/training 5.4
_PEAKS: dict[str, float | None] = {
    "B200": 2250.0,
    "H200 NVL": None,  # not the rate of the next row
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090 D": None,
    "RTX 5090": 209.5,
    "RTX 4090 D": None,
    "RTX 4090": 165.2,
    "RTX 3090 Ti": None,
    "RTX 3090": 71.0,
    "A40": 150.0,
    "A10": 125.0,
}
_TF32_SHARE = 0.5  # of the rate in bfloat16, on all of them


def peak_memory(device: torch.device) -> int:
    """Peak in bytes so far: of tensors on a GPU; without a GPU, of this process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def peak_tflops(device: torch.device, *, mixed: bool) -> float | None:
    """TFLOP/s of dense matrix products on a device; None if unknown, as for a CPU."""
    if device.type != "cuda":
        return None
    peak = bfloat16_tflops(torch.cuda.get_device_name(device))
    return peak if peak is None or mixed else _TF32_SHARE * peak


def bfloat16_tflops(name: str) -> float | None:
    """TFLOP/s of a GPU in bfloat16, by its name; None if unknown, as for a part of a GPU (MIG)."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    if "MIG" in words or "Laptop" in words:
        return None
    for row, peak in _PEAKS.items():
        if words.issuperset(row.split()):
            return peak
    return None
