"""Modes of the parts of a model while it trains."""

from typing import Any

import torch
from torch import nn

from vlatool.models.base import ModelType, Part
from vlatool.training.placement import PlacedParts, Placement


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.trained = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.frozen.requires_grad_(requires_grad=False)


def test_a_frozen_module_has_no_dropout_while_the_rest_is_trained() -> None:
    network = Network()
    model_type: Any = ModelType
    placed = PlacedParts({"model": Part(network)}, Placement(torch.device("cpu")), model_type)
    placed.eval()
    placed.train()
    assert not any(module.training for module in network.frozen.modules())
    assert all(module.training for module in network.trained.modules())
    assert network.training
