"""Parts on their devices: moved, checkpointed, compiled, wrapped for gradient exchange or sharded.

The only place that knows DDP and `fully_shard`. Names of weights are those of the bare modules
whatever stands around them.
"""

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

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch.distributed.device_mesh import DeviceMesh


# `settle` changes buffers alike everywhere; a copy in the middle of a step would invalidate what
# the backward pass needs. Newer versions of torch have another name for it.
_SYNC = "forward_sync_buffers"
_ARGUMENTS = signature(DistributedDataParallel).parameters
_BUFFERS_STAY: dict[str, Any] = {_SYNC if _SYNC in _ARGUMENTS else "broadcast_buffers": False}


@dataclass(frozen=True)
class Placement:
    """How parts are placed.

    Attributes:
        device: Of this process.
        world_size: Processes.
        mesh: What parameters are sharded over; None for none. They are gathered in float32, so that
            a part may compute in it where it switches autocast off.
        reshards: Frees gathered parameters after the forward pass too.
        checkpoints: Blocks are computed again in the backward pass instead of kept.
        compiles: Blocks are compiled.
    """

    device: torch.device
    world_size: int = 1
    mesh: "DeviceMesh | None" = None
    reshard_after_forward: bool = False
    grad_checkpointing: bool = False
    compile_blocks: bool = False


class PlacedParts:
    """The parts of a run where they compute.

    Attributes:
        calls: Part to what an objective calls: the module, or what stands in for it.
    """

    def __init__(self, parts: Mapping[str, Part], placement: Placement, model_type: ModelType) -> None:
        self._parts = parts
        self._sharded = placement.mesh is not None
        for part in parts.values():
            part.module.to(placement.device)
            if not part.trained:
                part.module.requires_grad_(requires_grad=False)
        trained = [part.module for part in parts.values() if part.trained]
        blocks = _trained_blocks(model_type.blocks(parts), trained)
        units = blocks or trained
        for block in units if placement.compile_blocks else ():
            block.forward = torch.compile(block.forward)
        for block in blocks if placement.grad_checkpointing else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if placement.mesh is not None:
            _check_shardable(parts)
            for unit in dict.fromkeys([*blocks, *trained]):
                fully_shard(unit, mesh=placement.mesh, reshard_after_forward=placement.reshard_after_forward)
        self.callables: dict[str, Any] = {
            name: self._callable(part, model_type.methods.get(name, ()), placement)
            for name, part in parts.items()
        }
        self.train()

    def _callable(self, part: Part, methods: Sequence[str], how: Placement) -> Any:
        if how.mesh is not None and part.trained:
            for method in methods:
                register_fsdp_forward_method(part.module, method)
            return part.module
        moves = part.trained and any(p.requires_grad for p in part.module.parameters())
        if how.world_size == 1 or not moves:
            return part.module
        return _DdpPart(part.module, methods, how.device)

    def train(self) -> None:
        """What learns is in training mode, everything else in eval mode."""
        for part in self._parts.values():
            part.module.train(part.trained)

    def eval(self) -> None:
        """All parts in eval mode."""
        for part in self._parts.values():
            part.module.eval()

    @contextmanager
    def only_trains(self, names: Iterable[str]) -> "Generator[None]":
        """Within it only the named parts collect gradients.

        Sharded parameters keep theirs until the end: what they gather remembers whether it needs
        a gradient from the first time on.
        """
        others = [part.module for name, part in self._parts.items() if name not in set(names)]
        idle = [p for module in others for p in module.parameters() if p.requires_grad]
        for parameter in () if self._sharded else idle:
            parameter.requires_grad = False
        try:
            yield
        finally:
            for parameter in idle:
                parameter.grad = None
                parameter.requires_grad = True

    @contextmanager
    def gradient_sync(self, names: Iterable[str], *, last: bool) -> "Generator[None]":
        """Gradients of the named parts are exchanged, those of the last micro-batch only.

        Sharded parts that do not move exchange theirs too, because what is not exchanged would be
        kept and added to the next: `moving` throws it away.
        """
        moving = set(names)
        with ExitStack() as stack:
            for name, call in self.callables.items():
                if isinstance(call, _DdpPart) and not (last and name in moving):
                    stack.enter_context(call.no_sync())
                if isinstance(call, FSDPModule):
                    call.set_requires_gradient_sync(last or name not in moving)
            yield


class _Methods(nn.Module):
    """Runs any method of a module as the forward pass of what wraps it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str | None, *args: Any, **named: Any) -> Any:
        call = self.module if method is None else getattr(self.module, method)
        return call(*args, **named)


class _DdpPart:
    """A module whose gradients are exchanged over processes, called like the module itself."""

    def __init__(self, module: nn.Module, methods: Sequence[str], device: torch.device) -> None:
        self._bare = module
        self._methods = frozenset(methods)
        self._wrapped = DistributedDataParallel(
            _Methods(module),
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_BUFFERS_STAY,
        )

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._wrapped(None, *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name in self._methods:
            return partial(self._wrapped, name)
        return getattr(self._bare, name)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within it gradients stay in this process."""
        return self._wrapped.no_sync()


def _check_shardable(parts: Mapping[str, Part]) -> None:
    """UsageError for a parameter that cannot be split over processes."""
    for name, part in parts.items():
        for key, parameter in part.module.named_parameters():
            if part.trained and parameter.dim() == 0:
                raise UsageError(
                    f"{name}.{key} is a scalar, which cannot be sharded",
                    hint="leave distributed.fsdp out; the author of the model type can give it "
                    "the shape [1]",
                    code="usage.scalar_parameter",
                    details={"parameter": f"{name}.{key}"},
                )


def _trained_blocks(blocks: Sequence[nn.Module], trained: Sequence[nn.Module]) -> list[nn.Module]:
    """Blocks inside trained parts; a block that is a part is that part."""
    inside = {id(module) for part in trained for module in part.modules() if module is not part}
    return [block for block in blocks if id(block) in inside]
