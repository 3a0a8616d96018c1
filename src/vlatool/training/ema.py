"""Exponential moving average of weights, resumable. Source: lbm-training 3.8, A.3, A.4."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlatool.training.config import EmaConfig


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
        self._parameters = {name for name, _ in module.named_parameters()}
        self.weights = {name: _copy(value) for name, value in module.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, ok: Tensor) -> None:
        """Takes in the weights after an optimizer step; changes nothing where `ok` is false."""
        decay = self.decay()
        share = ok.float() * (1.0 - decay)
        for name, value in self._module.state_dict().items():
            mean, new = local(self.weights[name]), local(value)
            if name in self._parameters and mean.is_floating_point():
                mean.lerp_(new.float(), share)
            else:
                mean.copy_(torch.where(ok, new, mean))
        self.updates += 1

    def decay(self) -> float:
        """The decay of the next update."""
        config = self._config
        if config.type == "vanilla":
            return config.alpha if self.updates else 0.0
        step = max(0, self.updates - config.update_after_step - 1)
        if step == 0:
            return 0.0
        grown = 1.0 - (1.0 + step / config.inv_gamma) ** -config.power
        return min(max(grown, config.min_value), config.max_value)

    @contextmanager
    def in_place_of_weights(self) -> Generator[None]:
        """Within it the module has the averaged weights."""
        state = self._module.state_dict()
        raw = {name: local(value).clone() for name, value in state.items()}
        _assign(state, self.weights)
        try:
            yield
        finally:
            _assign(state, raw)


@torch.no_grad()
def _assign(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        local(value).copy_(local(values[name]))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone().float() if value.is_floating_point() else value.detach().clone()
