"""Exponential moving average of weights, resumable. Source: reference/training 4.1."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlatool.models.weights import shared_names
from vlatool.training.config import EmaConfig

_PIECE_BYTES = 1 << 28


class WeightAverage:
    """A float32 average of a part's parameters; buffers are copied at each update.

    Sharded parameters have a sharded average.

    Attributes:
        weights: Name to averaged tensor, as in the module's state dict.
        updates: How many updates were done.
    """

    def __init__(self, config: EmaConfig, module: nn.Module) -> None:
        self._config = config
        self._module = module
        again = {name for names in shared_names(module) for name in names[1:]}
        moving = {name for name, p in module.named_parameters() if p.requires_grad}
        state = {name: one for name, one in module.state_dict().items() if name not in again}
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        # What is frozen is its own average and needs no copy.
        self.weights = {n: one if n in frozen else _copy(one) for n, one in state.items()}
        self._moving = [name for name in state if name in moving]
        self._copied = [name for name in state if name not in moving | frozen]
        self.updates = 0

    @torch.no_grad()
    def update(self, ok: Tensor) -> None:
        """Takes in the weights after an optimizer step; changes nothing where `ok` is false."""
        share = ok.float() * (1.0 - self.decay())
        state = self._module.state_dict()
        for names in _pieces(self._moving, self.weights):
            means = [local(self.weights[name]) for name in names]
            distances = torch._foreach_sub([local(state[name]).float() for name in names], means)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_mul_(distances, share)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(means, distances)  # pyright: ignore[reportPrivateImportUsage]
        for name in self._copied:
            mean = local(self.weights[name])
            mean.copy_(torch.where(ok, local(state[name]), mean))
        self.updates += 1

    def decay(self) -> float:
        """The decay of the next update."""
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
        """Within it the module has the averaged weights."""
        state = self._module.state_dict()
        changed = {name: self.weights[name] for name in (*self._moving, *self._copied)}
        raw = {name: local(state[name]).clone() for name in changed}
        _assign(state, changed)
        try:
            yield
        finally:
            # Asked for again: sharded weights that were gathered meanwhile are let go by that.
            _assign(self._module.state_dict(), raw)


@torch.no_grad()
def _assign(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        local(state[name]).copy_(local(value))


def _pieces(names: Sequence[str], weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names in groups of a bounded number of bytes, for what is computed on the way."""
    piece: list[str] = []
    held = 0
    for name in names:
        piece.append(name)
        held += local(weights[name]).nbytes
        if held >= _PIECE_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone().float() if value.is_floating_point() else value.detach().clone()
