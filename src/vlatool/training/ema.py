"""Exponential moving average of weights, resumable. Source: lbm-training 3.8, A.3, A.4."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlatool.training.config import EmaConfig


class WeightAverage:
    """A float32 average of parameters; buffers are copied at each update.

    Attributes:
        weights: Name to averaged tensor, as in the module's state dict.
        updates: How many updates were done.
    """

    def __init__(self, config: EmaConfig, module: nn.Module) -> None:
        self._config = config
        self._parameters = {name for name, _ in module.named_parameters()}
        self.weights = {name: _copy(value) for name, value in module.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes in the weights after an optimizer step."""
        decay = self.decay()
        state = module.state_dict()
        for name, value in state.items():
            if name in self._parameters and decay > 0.0:
                self.weights[name].lerp_(value.detach().float(), 1.0 - decay)
            else:
                self.weights[name].copy_(value)
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

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Goes on from a checkpoint."""
        for name, value in weights.items():
            self.weights[name].copy_(value)
        self.updates = updates


def _copy(value: Tensor) -> Tensor:
    return value.detach().clone().float() if value.is_floating_point() else value.detach().clone()
