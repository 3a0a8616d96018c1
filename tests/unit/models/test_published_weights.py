"""Import and export of published checkpoints. Source: formats/published-runs 4, 4.1."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders.base_models import clip_config, vlm_config
from tests.builders.errors import fails
from vlatool.models.backbones.config import ByteTextConfig, ClipBackboneConfig, ViTBackboneConfig
from vlatool.models.base import Part
from vlatool.models.diffusion_policy.config import (
    DiffusionPolicyConfig,
    NoiseConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.models.diffusion_policy.spec import DiffusionPolicyType
from vlatool.models.diffusion_policy.weights import (
    export_published,
    import_published,
    load_policy,
    load_section,
    without_wrappers,
    write_published,
    write_published_average,
)
from vlatool.models.published import WeightsOrigin

VOCABULARY = 11


def config(layers: int = 1, **keys: Any) -> DiffusionPolicyConfig:
    clip = ClipBackboneConfig(
        architecture=clip_config(num_hidden_layers=layers),
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )
    values: dict[str, Any] = {
        "vision_language_backbone": clip,
        "transformer": TransformerConfig(
            hidden_dim=16, n_layers=layers, n_heads=2, post_embed_norm=True, vocab_size=VOCABULARY
        ),
        "noise_scheduler": NoiseConfig(num_timesteps=20),
        "action_dim": 4,
        "proprioception_dim": 3,
    }
    return DiffusionPolicyConfig.model_validate({**values, **keys})


def policy(seed: int = 0, **keys: Any) -> DiffusionPolicy:
    torch.manual_seed(seed)
    return DiffusionPolicy(config(**keys)).eval()


def published(network: DiffusionPolicy) -> dict[str, Tensor]:
    """The state dict as published training writes it; unused weights are not zero."""
    state = export_published(network.config, network.state_dict())
    return {name: value + 1 if name.startswith(DEAD) else value for name, value in state.items()}


POSITIONS = "vision_language_backbone._model.model.text_model.embeddings.position_ids"
DEAD = ("transformer.embeddings.", "transformer.output.", "transformer.norm.")


def velocity(network: DiffusionPolicy) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.tensor([[9, 2, 10], [9, 3, 10]])
    state = torch.randn(2, 2, 3, generator=generator)
    seen = {"images": images, "text": text, "proprioception": state}
    with torch.no_grad():
        return network(seen, torch.ones(2, 5, 4), torch.tensor([3, 19]))


# Source: formats/published-runs 4.2
def test_export_of_the_published_layers_has_as_many_tensors_as_published() -> None:
    network = policy(layers=12)
    assert len(export_published(network.config, network.state_dict())) == 522


def test_export_adds_the_weights_that_a_policy_does_not_use() -> None:
    network = policy()
    result = export_published(network.config, network.state_dict())
    shapes = {
        name: list(result[name].shape) for name in result.keys() - network.state_dict().keys()
    }
    assert shapes == {
        "transformer.embeddings.weight": [VOCABULARY, 16],
        "transformer.output.weight": [VOCABULARY, 16],
        "transformer.norm.weight": [16],
        "transformer.norm.bias": [16],
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_published_weights_give_the_same_velocity(tmp_path: Path, prefix: str) -> None:
    source, target, average = policy(1), policy(2), policy(3)
    state = {prefix + name: value for name, value in published(source).items()}
    write_published(tmp_path / "checkpoint_3.pt", state, number=3, step=100)
    result = load_policy(target, str(tmp_path / "checkpoint_3.pt"))
    assert {name.rpartition(".")[0] for name in result.dead} == {
        prefix.rstrip(".") for prefix in DEAD
    }
    assert torch.equal(velocity(target), velocity(source))
    write_published_average(tmp_path / "ema_3.pt", state, number=3, step=9)
    load_policy(average, str(tmp_path / "ema_3.pt"))
    assert torch.equal(velocity(average), velocity(source))


def _truncated(path: Path) -> None:
    write_published(path, published(policy()), number=1, step=1)
    path.write_bytes(path.read_bytes()[:-2000])


def test_weights_in_half_precision_are_loaded(tmp_path: Path) -> None:
    source, target = policy(1), policy(2)
    state = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in published(source).items()
    }
    write_published(tmp_path / "checkpoint_1.pt", state, number=1, step=1)
    load_policy(target, str(tmp_path / "checkpoint_1.pt"))
    assert target.output_layer.weight.dtype == torch.float32
    torch.testing.assert_close(velocity(target), velocity(source), rtol=0.1, atol=0.05)


def test_buffers_that_follow_from_the_configuration_are_recomputed() -> None:
    network = policy()
    state = published(network)
    state["scheduler.betas"] = torch.ones(3)
    state["vision_language_backbone._model.model.text_model.embeddings.position_ids"] = torch.ones(
        1
    )
    state["sinusoidal_position_embeddings.emb"] = torch.zeros(1)
    del state["transformer.layers.0.attention.pos_embed.inv_freq"]
    result = import_published(state, network)
    assert set(result.computed) == {
        "scheduler.betas",
        "sinusoidal_position_embeddings.emb",
        POSITIONS,
    }
    expected = network.state_dict()
    assert result.weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in result.weights.items())


# Source: formats/published-runs 4.1
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["_orig_mod.module.a"], ["a"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "b"]),
        (["a", "module.b"], ["a", "module.b"]),
        ([], []),
    ],
)
def test_first_name_decides_which_wrappers_are_removed(
    names: list[str], expected: list[str]
) -> None:
    assert list(without_wrappers(dict.fromkeys(names, torch.ones(1)))) == expected


def test_head_of_a_vision_language_model_is_dropped_and_recreated(tmp_path: Path) -> None:
    vlm = {"type": "vlm_backbone", "architecture": vlm_config("smolvlm")}
    vlm |= {"num_vlm_layers_to_use": 1, "image_size": 32}
    vlm |= {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    source, target = (policy(seed, vision_language_backbone=vlm) for seed in (1, 2))
    write_published(tmp_path / "checkpoint_1.pt", published(source), number=1, step=1)
    result = load_policy(target, str(tmp_path / "checkpoint_1.pt"))
    assert "vision_language_backbone._model.model.lm_head.weight" in result.dead
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in target.state_dict().items())


def test_section_loads_from_a_policy_or_from_its_own_file(tmp_path: Path) -> None:
    source, target, third = policy(1), policy(2), policy(3)
    write_published(tmp_path / "checkpoint_1.pt", published(source), number=1, step=1)
    load_section(target.transformer, "transformer", str(tmp_path / "checkpoint_1.pt"))
    section = {
        name.removeprefix("transformer."): value
        for name, value in published(source).items()
        if name.startswith("transformer.")
    }
    torch.save(section, tmp_path / "section.pt")
    load_section(third.transformer, "transformer", str(tmp_path / "section.pt"))
    for network in (target, third):
        for name, value in network.transformer.state_dict().items():
            assert torch.equal(value, source.transformer.state_dict()[name])
        assert not torch.equal(network.output_layer.weight, source.output_layer.weight)


def test_modules_with_other_dimensions_can_be_excluded(tmp_path: Path) -> None:
    source, target = policy(1), policy(2, action_dim=7)
    write_published(tmp_path / "checkpoint_1.pt", published(source), number=1, step=1)
    path = tmp_path / "checkpoint_1.pt"
    with fails("data.checkpoint_mismatch"):
        load_policy(target, str(path))
    load_policy(target, str(path), excluded=["action_encode", "output_layer"])
    assert torch.equal(target.time_encoding.weight, source.time_encoding.weight)
    assert target.output_layer.weight.shape == (7, 16)


def test_configuration_excludes_modules_from_loading(tmp_path: Path) -> None:
    source = policy(1)
    write_published(tmp_path / "checkpoint_1.pt", published(source), number=1, step=1)
    network = policy(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    excluded = ["transformer", "output_layer"]
    location = str(tmp_path / "checkpoint_1.pt")
    init = WeightsOrigin.find(location)
    DiffusionPolicyType().load_init(network.config, {"model": Part(network)}, init, excluded)
    changed = {
        name.partition(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert not changed & {"transformer", "output_layer"}
    assert changed >= {"vision_language_backbone", "action_encode", "condition_encode"}


# broken files


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("opened",)


def test_pickle_with_code_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, "checkpoint_1.pt")
    with fails("data.unsafe"):
        load_policy(policy(), str(tmp_path / "checkpoint_1.pt"))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda path: path.write_bytes(b"no weights at all"), "data.broken"),
        (lambda path: path.write_bytes(b""), "data.broken"),
        (_truncated, "data.broken"),
        (lambda path: torch.save([1, 2], path), "data.broken"),
        (lambda path: torch.save({"optimizer": {"state": {}}}, path), "data.missing"),
        (lambda path: torch.save({"state_dict": {}}, path), "data.missing"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "data.checkpoint_mismatch"),
        (lambda path: None, "data.no_source"),
    ],
)
def test_file_without_weights_of_the_policy_is_an_error(
    tmp_path: Path, write: Callable[[Path], Any], code: str
) -> None:
    write(tmp_path / "checkpoint_1.pt")
    with fails(code, 3):
        load_policy(policy(), str(tmp_path / "checkpoint_1.pt"))


def test_policy_without_a_published_module_is_not_exported() -> None:
    vit = ViTBackboneConfig(
        hidden_dim=16,
        inter_dim=16,
        img_size=16,
        n_heads=2,
        n_layers=0,
        text_encoder=ByteTextConfig(),
    )
    with fails("usage.unsupported"):
        export_published(config(vision_language_backbone=vit), {})
