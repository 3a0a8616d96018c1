"""Adapters of low rank (LoRA, arXiv 2106.09685) beside linear layers, for networks of any type.

Weights of layers with adapters keep their names, so that weights without adapters fit.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.errors import ConfigError

_ADAPTER = "adapter"


class Adapter(nn.Module):
    """Product of two small matrices, zero at first."""

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.scale * self.up(self.down(self.dropout(x)))


class AdaptedLinear(nn.Linear):
    """Linear layer with an adapter; its own weights are frozen."""

    def __init__(self, layer: nn.Linear, adapter: Adapter) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.bias = layer.bias
        self.adapter = adapter

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """[..., inputs] to [..., outputs]."""
        return super().forward(input) + self.adapter(input).to(input.dtype)


def add_adapters(
    network: nn.Module, rank: int, alpha: float, targets: str = ".*", dropout: float = 0.0
) -> None:
    """Replaces linear layers inside a network, and freezes everything but the adapters.

    `targets`: pattern of the whole names of these layers. Layers of `nn.MultiheadAttention`, which
    reads their weights itself, stay.
    """
    network.requires_grad_(requires_grad=False)
    layers: list[tuple[nn.Module, str, nn.Linear]] = []
    for path, parent in network.named_modules():
        for name, layer in parent.named_children():
            whole = f"{path}.{name}".lstrip(".")
            if type(layer) is nn.Linear and re.fullmatch(targets, whole):
                layers.append((parent, name, layer))
    if not layers:
        raise ConfigError(
            f"lora.targets: no linear layer of the model has a name like {targets}",
            hint="leave it out, or write a pattern of whole names, such as .*q_proj",
            code="config.invalid_value",
            details={"key": "lora.targets"},
        )
    for parent, name, layer in layers:
        adapter = Adapter(layer.in_features, layer.out_features, rank, alpha / rank, dropout)
        setattr(parent, name, AdaptedLinear(layer, adapter.to(layer.weight.device)))


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
            up = state[name]
            down = state[f"{layer}.{_ADAPTER}.down.weight"]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + alpha / rank * (up @ down)
    return merged


def peft_adapters(
    state: Mapping[str, Tensor], rank: int, alpha: float, base: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of adapter_config.json and adapter_model.safetensors of the package peft.

    `alpha`: scale of the adapters times their rank; `base`: location of the weights beside which
    they are.
    """
    tensors: dict[str, Tensor] = {}
    layers: list[str] = []
    for name in state:
        layer, is_adapter, _ = name.partition(f".{_ADAPTER}.up.")
        if is_adapter:
            layers.append(layer)
            tensors[f"base_model.model.{layer}.lora_A.weight"] = state[
                f"{layer}.{_ADAPTER}.down.weight"
            ]
            tensors[f"base_model.model.{layer}.lora_B.weight"] = state[name]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": layers,
        "bias": "none",
    }
    return config, tensors
