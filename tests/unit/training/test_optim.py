import torch
from torch import nn

from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.models.diffusion_policy.spec import (
    DiffusionPolicyConfig,
    TransformerConfig,
    ViTBackboneConfig,
)
from vlatool.training.config import HParams
from vlatool.training.optim import build_optimizer


def policy() -> DiffusionPolicy:
    backbone = ViTBackboneConfig(
        hidden_dim=16, inter_dim=32, patch_size=16, img_size=32, n_heads=2, n_layers=1
    )
    transformer = TransformerConfig(
        hidden_dim=32, n_layers=1, n_heads=2, ffn_type="gelu", post_embed_norm=True
    )
    config = DiffusionPolicyConfig(
        vision_language_backbone=backbone,
        transformer=transformer,
        action_dim=2,
        proprioception_dim=3,
    )
    return DiffusionPolicy(config)


def decays(module: nn.Module) -> dict[str, float]:
    """Name of each parameter to its weight decay; fails when one is in two groups."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, float] = {}
    for group in build_optimizer(module, HParams(wd=0.3)).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = group["weight_decay"]
    return found


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    module = policy()
    module.output_layer.weight.requires_grad_(False)
    trainable = {name for name, one in module.named_parameters() if one.requires_grad}
    assert decays(module).keys() == trainable


def test_only_matrices_decay() -> None:
    found = decays(policy())
    spared = {name for name, decay in found.items() if decay == 0.0}
    for name in found:
        exempt = (
            name.endswith("bias")
            or "norm" in name
            or any(part in name for part in (".ln1.", ".ln2."))
            or "time_encoding" in name
            or "position_embedding" in name
        )
        assert (name in spared) == exempt, name
    assert set(found.values()) == {0.0, 0.3}


def test_text_embedding_and_temperature_do_not_decay() -> None:
    module = nn.Module()
    module.table = nn.Embedding(4, 2)
    module.temperature = nn.Parameter(torch.ones(()))
    module.conv = nn.Conv2d(1, 1, 1)
    assert decays(module) == {
        "table.weight": 0.0,
        "temperature": 0.0,
        "conv.weight": 0.3,
        "conv.bias": 0.0,
    }


def test_module_without_matrices_has_one_group() -> None:
    assert len(build_optimizer(nn.LayerNorm(3), HParams()).param_groups) == 1
