"""Adapters of low rank beside linear layers (LoRA, arXiv 2106.09685).

Weights of the layers keep their names, so that checkpoints of a model without adapters fit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_ADAPTER = "adapter"


class Adapter(nn.Module):
    """Product of two small matrices, zero at first."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.scale * self.up(self.down(x))


class AdaptedLinear(nn.Linear):
    """Linear layer with an adapter; its own weights are frozen."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.adapter = Adapter(layer.in_features, layer.out_features, rank, scale)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """[..., inputs] to [..., outputs]."""
        return super().forward(input) + self.adapter(input)


def add_adapters(network: nn.Module, rank: int, alpha: float) -> None:
    """Replaces all linear layers inside a network, and freezes everything but the adapters."""
    network.requires_grad_(requires_grad=False)
    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if type(layer) is nn.Linear:
                setattr(parent, name, AdaptedLinear(layer, rank, alpha / rank))


def adapter_names(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, Adapter)]


@torch.no_grad()
def merged_weights(state: Mapping[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """State dict without adapters, their products added to the weights of their layers; `alpha`:
    their scale times their rank.
    """
    merged = {name: value for name, value in state.items() if f".{_ADAPTER}." not in name}
    for name in state:
        layer, is_adapter, _ = name.partition(f".{_ADAPTER}.up.")
        if is_adapter:
            up, down = state[name], state[f"{layer}.{_ADAPTER}.down.weight"]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + alpha / rank * (up @ down)
    return merged
