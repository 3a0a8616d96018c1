"""What changes while a run trains: weights, their averages, optimizers, counters."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vlatool.models.base import Part
from vlatool.models.weights import shared_names
from vlatool.training.config import EmaConfig


def is_source() -> bool:
    """True on the rank whose tensors are sent; always True with one process."""
    return not _has_ranks() or distributed.get_rank() == 0


@torch.no_grad()
def scatter(weights: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copies tensors of rank 0 to the tensors with the same names on all ranks. Collective.

    `weights`: full tensors, on any device; used on rank 0 only; `into`: tensors of this rank; a
    sharded tensor takes only its shard.
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
    """Names and tensors of all parameters and buffers; tied ones occur once."""
    return [*module.named_parameters(), *module.named_buffers()]


def with_facts(module: nn.Module, facts: Mapping[str, TensorFacts]) -> None:
    """Gives a module on the meta device the types that its tensors have on rank 0."""
    tensors = dict(named_tensors(module))
    assert tensors.keys() == facts.keys(), "load() has changed the structure of a part"
    for name, tensor in tensors.items():
        tensor.data = tensor.data.to(facts[name].dtype)
        tensor.requires_grad_(facts[name].requires_grad)


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces all parameters and buffers of a module; tied ones stay tied."""
    new: dict[int, Tensor] = {}  # by id of the old tensor
    kept: list[Tensor] = []  # an id is free for others when its tensor is gone
    for owner in module.modules():
        for name, value in owner.named_parameters(recurse=False, remove_duplicate=False):
            if id(value) not in new:
                kept.append(value)
                made = make(value.detach())
                new[id(value)] = nn.Parameter(made, requires_grad=value.requires_grad)
            setattr(owner, name, new[id(value)])
        for name, value in owner.named_buffers(recurse=False, remove_duplicate=False):
            if id(value) not in new:
                kept.append(value)
                new[id(value)] = make(value)
            setattr(owner, name, new[id(value)])


def _has_ranks() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


# Bytes of weights whose average is updated at once.
AVERAGED_AT_ONCE = 1 << 28


class WeightAverage:
    """Float32 moving average of a part's parameters; buffers are copied at each update.

    Source: reference/training 4.1.

    The average of sharded parameters is sharded too.
    """

    def __init__(self, config: EmaConfig, module: nn.Module) -> None:
        self._config = config
        self._module = module
        self.updates = 0  # number of updates done
        # Averaged tensors by their name in the state dict of the module.
        self.weights: dict[str, Tensor] = {}
        self._averaged: list[str] = []  # names of trained parameters
        self._copied: list[str] = []  # names of buffers
        parameters = dict(module.named_parameters())
        tied = {name for names in shared_names(module) for name in names[1:]}
        for name, value in module.state_dict().items():
            if name in tied:
                continue
            if name in parameters and not parameters[name].requires_grad:
                self.weights[name] = value  # a frozen parameter is its own average
                continue
            copy = value.detach().clone()
            self.weights[name] = copy.float() if copy.is_floating_point() else copy
            if name in parameters:
                self._averaged.append(name)
            else:
                self._copied.append(name)

    @torch.no_grad()
    def update(self, ok: Tensor) -> None:
        """Updates the average after an optimizer step; changes nothing if `ok` is false."""
        factor = ok.float() * (1.0 - self.decay())
        state = self._module.state_dict()
        for names in _chunks(self._averaged, self.weights):
            means = [local(self.weights[name]) for name in names]
            values = [local(state[name]).float() for name in names]
            differences = torch._foreach_sub(values, means)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_mul_(differences, factor)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(means, differences)  # pyright: ignore[reportPrivateImportUsage]
        for name in self._copied:
            mean = local(self.weights[name])
            mean.copy_(torch.where(ok, local(state[name]), mean))
        self.updates += 1

    def decay(self) -> float:
        """Decay of the next update."""
        config = self._config
        if config.type == "vanilla":
            return config.alpha if self.updates else 0.0
        if config.type == "rising":
            done = max(0, self.updates - config.update_after_step)
            grown = (1.0 + done) / (10.0 + done) if done else 0.0
            return min(max(grown, config.min_value), config.max_value)
        step = max(0, self.updates - config.update_after_step - 1)
        if step == 0:
            return 0.0
        grown = 1.0 - (1.0 + step / config.inv_gamma) ** -config.power
        return min(max(grown, config.min_value), config.max_value)

    @contextmanager
    def average_parameters(self) -> Generator[None]:
        """Context in which the module holds the averaged weights."""
        state = self._module.state_dict()
        changed = {name: self.weights[name] for name in (*self._averaged, *self._copied)}
        raw = {name: local(state[name]).clone() for name in changed}
        _assign(state, changed)
        try:
            yield
        finally:
            # A new state_dict() call frees sharded weights that were gathered in between.
            _assign(self._module.state_dict(), raw)


@torch.no_grad()
def _assign(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        local(state[name]).copy_(local(value))


def _chunks(names: Sequence[str], weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names in chunks of about 256 MiB of weights, which bounds temporary memory."""
    chunk: list[str] = []
    size = 0
    for name in names:
        chunk.append(name)
        size += local(weights[name]).nbytes
        if size >= AVERAGED_AT_ONCE:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


def local(tensor: Tensor) -> Tensor:
    """The local shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass
class TrainState:
    parts: Mapping[str, Part]  # the placed parts, without wrappers
    # optimizers by the name that the objective gives them
    optimizers: dict[str, Optimizer] = field(default_factory=dict[str, Optimizer])
    # averaged weights by part; empty if weights are not averaged
    averages: dict[str, WeightAverage] = field(default_factory=dict[str, WeightAverage])
    # digest of each part that checkpoints do not hold
    unsaved: Mapping[str, str] = field(default_factory=dict[str, str])
    step: int = 0  # optimizer steps done
    samples: int = 0  # positions consumed, dropped samples included
    # number of dropped samples by reason
    dropped: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Map from part name to network."""
        return {name: part.module for name, part in self.parts.items()}

    @property
    def num_parameters(self) -> int:
        """Number of parameters in the parts that checkpoints hold."""
        saved = (part.module for part in self.parts.values() if part.saved)
        return sum(p.numel() for module in saved for p in module.parameters())
