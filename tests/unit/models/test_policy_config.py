"""Sections of the diffusion policy: what goes together, and what published files say."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from vlatool.errors import DataError, UsageError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.diffusion_policy.config import KeypointBackboneConfig, TransformerConfig
from vlatool.models.diffusion_policy.denoisers import NativeTransformer
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig, DiffusionPolicyType

DATA = RoboticsDataConfig(camera_names=["a"], image_indices=[0], action_dim=2, proprioception_dim=3)
SMALL = KeypointBackboneConfig(hidden_dim=16, channels=(4, 8), num_keypoints=4)


def config(**keys: Any) -> DiffusionPolicyConfig:
    transformer = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, **keys.pop("transformer", {})}
    given = {"vision_language_backbone": SMALL, "transformer": transformer, **keys}
    return DiffusionPolicyConfig.model_validate(given)


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
def test_solver_is_the_one_that_is_named_or_that_of_the_process(
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
def test_what_cannot_work_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**keys)


@pytest.mark.parametrize("name", ["vision_language_backbone", "transformer"])
def test_frozen_section_does_not_learn(name: str) -> None:
    one = config()
    section = getattr(one, name).model_copy(update={"freeze": True})
    derived, _ = DiffusionPolicyType().derive(one.model_copy(update={name: section}), DATA, None)  # type: ignore[arg-type]
    network = DiffusionPolicy(derived)
    frozen = {key for key, value in network.named_parameters() if not value.requires_grad}
    assert frozen == {key for key, _ in network.named_parameters() if key.startswith(f"{name}.")}


def test_derive_says_where_each_key_came_from() -> None:
    derived, rules = DiffusionPolicyType().derive(config(), DATA, None)  # type: ignore[arg-type]
    assert (derived.action_dim, derived.vision_language_backbone.num_cameras) == (2, 1)
    assert rules.keys() == {
        "action_dim",
        "proprioception_dim",
        "vision_language_backbone.num_cameras",
        "vision_language_backbone.num_times",
    }


@pytest.mark.parametrize("section", ["", "transformer", "vision_language_backbone"])
def test_weights_to_begin_with_are_looked_for_before_data(section: str) -> None:
    one = config()
    start = {"resume_from_checkpoint": "nowhere/checkpoint_3.pt", "resume_weights_only": True}
    changed = getattr(one, section).model_copy(update=start) if section else None
    one = one.model_copy(update={section: changed} if section else start)
    with pytest.raises(DataError) as caught:
        DiffusionPolicyType().check_init_weights(one)
    assert caught.value.code == "data.no_source"


def test_whole_run_is_not_taken_up_by_its_weights() -> None:
    one = config(resume_from_checkpoint="checkpoint_3.pt")
    with pytest.raises(UsageError) as caught:
        DiffusionPolicyType().check_init_weights(one)
    assert caught.value.code == "usage.resume_weights_only"


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
    given = {**sizes, "norm_type": norm_type, "positional_embedding_type": "none"}
    network = NativeTransformer(TransformerConfig.model_validate(given))
    tokens = torch.randn(2, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = network(tokens)
    torch.testing.assert_close(lowered.float(), network(tokens), rtol=0.05, atol=0.05)
    assert network.layers[0].attention.q_norm.state_dict().keys() == names
