"""AdamW with decay on matrices only. Source: lbm-training 3.6, 8.1 (6)."""

import torch
from torch import nn
from torch.optim import AdamW

from vlatool.training.config import HParams


def build_optimizer(module: nn.Module, h: HParams) -> AdamW:
    """AdamW over the trainable parameters of a module.

    Only weights of two and more dimensions outside embeddings and norms decay: a bias, a norm, a
    scalar or a table of positions has no reason to be small.
    """
    decayed = _decayed_parameters(module)
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": h.wd},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=h.lr,
        betas=(h.beta1, h.beta2),
        eps=h.eps,
        fused=_all_floating(trainable),
    )


def _decayed_parameters(module: nn.Module) -> set[int]:
    matrices = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        id(part.weight)
        for part in module.modules()
        if isinstance(part, matrices) and part.weight.requires_grad
    }


def _all_floating(parameters: list[nn.Parameter]) -> bool:
    return all(torch.is_floating_point(p) for p in parameters)
