"""State of a run that changes during training: weights, their averages, optimizers, counters."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlatool.models.base import Part
from vlatool.models.weights import shared_names
from vlatool.training.sections import EmaConfig

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
        tied = {name for names in shared_names(module) for name in names[1:]}
        trainable = {name for name, p in module.named_parameters() if p.requires_grad}
        state = {name: value for name, value in module.state_dict().items() if name not in tied}
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        # A frozen parameter is its own average and needs no copy.
        # map from name to averaged tensor; names as in the state dict of the module
        self.weights = {n: value if n in frozen else _copy(value) for n, value in state.items()}
        self._averaged = [name for name in state if name in trainable]
        self._copied = [name for name in state if name not in trainable | frozen]
        self.updates = 0  # number of updates done

    @torch.no_grad()
    def update(self, ok: Tensor) -> None:
        """Updates the average after an optimizer step; changes nothing if `ok` is false."""
        factor = ok.float() * (1.0 - self.decay())
        state = self._module.state_dict()
        for names in _chunks(self._averaged, self.weights):
            means = [local(self.weights[name]) for name in names]
            differences = torch._foreach_sub([local(state[name]).float() for name in names], means)  # pyright: ignore[reportPrivateImportUsage]
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
            chunk, size = [], 0
    if chunk:
        yield chunk


def local(tensor: Tensor) -> Tensor:
    """The local shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone().float() if value.is_floating_point() else value.detach().clone()


@dataclass
class TrainState:
    """Weights, optimizers and counters of a run."""

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
