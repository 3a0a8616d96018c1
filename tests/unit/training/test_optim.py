import pytest
import torch
from torch import nn

from vlatool.models.backbones.config import ViTBackboneConfig
from vlatool.models.base import OptimizerSpec, ParamGroup
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, TransformerConfig
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.training.config import HParams
from vlatool.training.step import build_optimizer, set_rate, update


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


def optimizer_of(module: nn.Module, **keys: float) -> torch.optim.AdamW:
    h = HParams.model_validate(keys)
    return build_optimizer(OptimizerSpec(("model",)), {"model": module}, h)


def decays(module: nn.Module, **keys: float) -> dict[str, float]:
    """Parameter name to weight decay; fails if a parameter is in two groups."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decay_of: dict[str, float] = {}
    for group in optimizer_of(module, wd=0.3, **keys).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in decay_of
            decay_of[name] = group["weight_decay"]
    return decay_of


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    module = policy()
    module.output_layer.weight.requires_grad_(False)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert decays(module).keys() == trainable
    assert len(optimizer_of(nn.LayerNorm(3)).param_groups) == 1  # no matrices


def test_parameters_with_a_rate_factor_keep_their_decay() -> None:
    module = policy()
    rates = {"vision_language_backbone.": 0.1}
    spec = OptimizerSpec(("model",), rates=rates)
    optimizer = build_optimizer(spec, {"model": module}, HParams(wd=0.3))
    set_rate(optimizer, 2.0)

    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(groups) == len(names)
    assert {name: group["weight_decay"] for name, group in groups} == decays(module)
    slow = {name for name, group in groups if group["lr"] == pytest.approx(0.2)}
    assert slow == {name for name in names.values() if name.startswith("vision_language_backbone.")}
    assert {group["lr"] for name, group in groups if name not in slow} == {2.0}


def test_only_matrices_decay() -> None:
    decay_of = decays(policy())
    undecayed = {name for name, decay in decay_of.items() if decay == 0.0}
    for name in decay_of:
        exempt = (
            name.endswith("bias")
            or "norm" in name
            or any(part in name for part in (".ln1.", ".ln2."))
            or "time_encoding" in name
            or "position_embedding" in name
        )
        assert (name in undecayed) == exempt, name
    assert set(decay_of.values()) == {0.0, 0.3}


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


def test_published_rule_goes_by_names() -> None:
    module = nn.Module()
    module.table = nn.Embedding(4, 2)
    module.temperature = nn.Parameter(torch.ones(()))
    module.ln1 = nn.LayerNorm(2)
    module.pre_layrnorm = nn.LayerNorm(2)
    module.Norm = nn.Linear(1, 1)
    undecayed = {name for name, decay in decays(module, decay_by_name=True).items() if not decay}
    assert undecayed == {
        "ln1.bias",
        "pre_layrnorm.weight",
        "pre_layrnorm.bias",
        "Norm.weight",
        "Norm.bias",
    }


def test_spec_can_set_rates_and_groups() -> None:
    parts = {"model": nn.Linear(2, 2), "critic": nn.Linear(2, 2), "other": nn.Linear(2, 2)}
    spec = OptimizerSpec(
        ("model", "critic"),
        groups=lambda modules: [
            ParamGroup(list(modules["model"].parameters()), rate=0.1),
            ParamGroup(list(modules["critic"].parameters()), decays=False),
        ],
        lr=2e-3,
        betas=(0.5, 0.9),
    )
    optimizer = build_optimizer(spec, parts, HParams(wd=0.3))
    set_rate(optimizer, 1e-2)
    first, second = optimizer.param_groups
    assert (first["lr"], first["weight_decay"]) == (pytest.approx(1e-3), 0.3)
    assert (second["lr"], second["weight_decay"]) == (1e-2, 0.0)
    assert first["betas"] == (0.5, 0.9)


# one update

NO = torch.tensor(False)


def with_gradients(scale: float = 1.0, **keys: float) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    (scale * module(torch.randn(5, 3)).square().sum()).backward()
    return module, optimizer_of(module, lr=0.1, **keys)


@pytest.mark.parametrize("limit", [None, 1e-2, 1e6])
def test_update_equals_that_of_torch_with_clipping(limit: float | None) -> None:
    module, optimizer = with_gradients(eps=1.0)
    other, _ = with_gradients(0.25)
    plain = torch.optim.AdamW(
        [{"params": [other.weight], "weight_decay": 0.01}, {"params": [other.bias]}],
        lr=0.1, betas=(0.9, 0.95), eps=1.0, weight_decay=0.0,
    )  # fmt: skip
    expected = torch.nn.utils.clip_grad_norm_(other.parameters(), limit or float("inf"))
    plain.step()

    norm = update(optimizer, torch.tensor(0.25), limit, NO)

    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("scale", "skip"), [(1.0, True), (float("nan"), False)])
def test_skipped_update_changes_nothing(scale: float, skip: bool) -> None:
    module, optimizer = with_gradients()
    update(optimizer, torch.tensor(1.0), None, NO)
    before = [value.clone() for value in module.state_dict().values()]
    moments = [value.clone() for value in optimizer.state[module.weight].values()]
    assert module.weight.grad is not None
    module.weight.grad *= scale

    norm = update(optimizer, torch.tensor(1.0), 0.5, torch.tensor(skip))

    assert bool(norm.isfinite()) is skip
    assert all(map(torch.equal, before, module.state_dict().values()))
    assert all(map(torch.equal, moments, optimizer.state[module.weight].values()))


def test_part_without_gradients_stays_unchanged() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    assert update(optimizer_of(module), torch.tensor(1.0), None, NO).item() == 0.0
    assert torch.equal(module.weight, before)
