"""Sections of the diffusion policy: valid combinations, and published keys."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.builders.errors import fails
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.backbones.config import KeypointBackboneConfig
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, TransformerConfig
from vlatool.models.diffusion_policy.model import DiffusionPolicy, NativeTransformer
from vlatool.models.diffusion_policy.spec import DiffusionPolicyType

DATA = RoboticsDataConfig(camera_names=["a"], image_indices=[0], action_dim=2, proprioception_dim=3)
SMALL = KeypointBackboneConfig(hidden_dim=16, channels=(4, 8), num_keypoints=4)


def config(**keys: Any) -> DiffusionPolicyConfig:
    transformer = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, **keys.pop("transformer", {})}
    values = {"vision_language_backbone": SMALL, "transformer": transformer, **keys}
    return DiffusionPolicyConfig.model_validate(values)


@pytest.mark.parametrize(
    ("keys", "solver"),
    [
        ({}, "euler"),
        ({"solver": {"type": "heun"}}, "heun"),
        ({"use_flow_matching_scheduler": False}, "ddim"),
        ({"use_diffusers_scheduler": True}, "ddim"),
        ({"use_diffusers_scheduler": True, "solver": {"type": "ddpm"}}, "ddpm"),
    ],
)
def test_solver_is_the_named_one_or_that_of_the_forward_process(
    keys: dict[str, Any], solver: str
) -> None:
    assert config(**keys).chosen_solver.type == solver


@pytest.mark.parametrize(
    "keys",
    [
        {"solver": {"type": "ddim"}},
        {"solver": {"type": "euler"}, "use_flow_matching_scheduler": False},
        {"freeze": True},
        {"solver": {"type": "rk45"}},
        {"transformer": {"norm_type": "batch_norm"}},
    ],
)
def test_invalid_combination_is_an_error(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**keys)


@pytest.mark.parametrize("name", ["vision_language_backbone", "transformer"])
def test_frozen_section_is_not_trained(name: str) -> None:
    policy_config = config()
    section = getattr(policy_config, name).model_copy(update={"freeze": True})
    derived, _ = DiffusionPolicyType().derive(
        policy_config.model_copy(update={name: section}), DATA, None
    )  # type: ignore[arg-type]
    network = DiffusionPolicy(derived)
    frozen = {key for key, value in network.named_parameters() if not value.requires_grad}
    assert frozen == {key for key, _ in network.named_parameters() if key.startswith(f"{name}.")}


def test_derive_returns_the_rule_of_each_key() -> None:
    derived, rules = DiffusionPolicyType().derive(config(), DATA, None)  # type: ignore[arg-type]
    assert (derived.action_dim, derived.vision_language_backbone.num_cameras) == (2, 1)
    assert rules.keys() == {
        "action_dim",
        "proprioception_dim",
        "vision_language_backbone.num_cameras",
        "vision_language_backbone.num_times",
    }


@pytest.mark.parametrize("section", ["transformer", "vision_language_backbone"])
def test_missing_initial_weights_are_an_error_before_data_is_read(section: str) -> None:
    policy_config = config()
    start = {"resume_from_checkpoint": "nowhere/checkpoint_3.pt", "resume_weights_only": True}
    changed = getattr(policy_config, section).model_copy(update=start)
    policy_config = policy_config.model_copy(update={section: changed})
    with fails("data.no_source"):
        DiffusionPolicyType().check_init(policy_config, None)


@pytest.mark.parametrize(
    ("norm_type", "names"),
    [
        ("default_layer_norm", {"weight", "bias"}),
        ("lp_layer_norm", {"weight", "bias"}),
        ("gain_only_layer_norm", {"weight"}),
        ("gain_only_lp_layer_norm", {"weight"}),
        ("no_wb_layer_norm", set()),
        ("rms_norm", {"weight"}),
    ],
)
def test_every_published_norm_runs_in_half_precision_too(norm_type: str, names: set[str]) -> None:
    sizes = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, "qk_norm": True}
    values = {**sizes, "norm_type": norm_type, "positional_embedding_type": "none"}
    network = NativeTransformer(TransformerConfig.model_validate(values))
    tokens = torch.randn(2, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = network(tokens)
    torch.testing.assert_close(lowered.float(), network(tokens), rtol=0.05, atol=0.05)
    assert network.layers[0].attention.q_norm.state_dict().keys() == names
