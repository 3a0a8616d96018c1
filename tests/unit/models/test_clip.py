"""CLIP as a backbone: what it computes, what of it learns, and where its words come from."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.builders.base_models import clip_base, clip_config
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.diffusion_policy.clip import ClipBackbone
from vlatool.models.diffusion_policy.config import (
    ClipBackboneConfig,
    NoiseConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.models.diffusion_policy.pixels import ImageNormalizer
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.text import example_text, make_text_tokenizer
from vlatool.training.optim import default_param_groups

DATA = RoboticsDataConfig(camera_names=["a", "b"], image_indices=[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_base(tmp_path_factory.mktemp("hub") / "clip")


def section(base: Path, **keys: Any) -> ClipBackboneConfig:
    return ClipBackboneConfig(hf_pretrained=str(base), **keys).derive(DATA)[0]


def backbone(base: Path, **keys: Any) -> ClipBackbone:
    torch.manual_seed(0)
    return ClipBackbone(section(base, **keys))


def make_images(size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 2, 3, size, size), generator=generator, dtype=torch.uint8)


TEXT = torch.tensor([[9, 2, 3, 10, 0], [9, 2, 3, 4, 10]])


def test_sizes_and_colors_come_from_the_base_model(base: Path) -> None:
    derived, rules = ClipBackboneConfig(hf_pretrained=str(base)).derive(DATA)
    assert derived.architecture is not None
    assert derived.architecture["vision_config"]["hidden_size"] == 16
    assert (derived.image_mean, derived.image_std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert derived.num_images == 2
    assert rules.keys() == {"architecture", "image_mean", "image_std", "num_images"}
    again, _ = derived.derive(DATA)
    assert again == derived


def test_derived_section_needs_its_base_model_no_more(base: Path) -> None:
    stored = json.loads(
        section(base).model_copy(update={"hf_pretrained": "gone"}).model_dump_json()
    )
    ClipBackbone(ClipBackboneConfig.model_validate(stored).derive(DATA)[0])


# Source: reference/policy 1.4
def test_image_is_projected_then_normalized_and_sentence_the_other_way_round(base: Path) -> None:
    module, images = backbone(base), make_images()
    tokens = module(images, TEXT)
    network = module._model.model
    pixels = ImageNormalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(images.flatten(0, 1), (32, 32))
    states = network.vision_model(pixels).last_hidden_state
    pooled = network.vision_model.post_layernorm(states[:, 0])
    expected = normalize(network.visual_projection(pooled), dim=-1).view(2, 2, 8)
    torch.testing.assert_close(tokens[:, 1:], expected)
    hidden = network.text_model(input_ids=(TEXT - 1).clamp(min=0)).last_hidden_state
    ends = hidden[torch.arange(2), torch.tensor([3, 4])]
    torch.testing.assert_close(tokens[:, 0], network.text_projection(normalize(ends, dim=-1)))


def test_filling_behind_a_sentence_changes_nothing(base: Path) -> None:
    module, images = backbone(base), make_images()
    longer = torch.cat([TEXT, torch.zeros(2, 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(module(images, longer), module(images, TEXT))


def test_without_text_there_is_a_token_per_image_alone(base: Path) -> None:
    module = backbone(base, disable_text=True)
    assert module(make_images(), TEXT).shape == (2, 2, 8)
    text = [p for n, p in module.named_parameters() if ".text_" in n]
    assert text
    assert not any(parameter.requires_grad for parameter in text)


def test_padded_images_are_zeros(base: Path) -> None:
    mask = torch.tensor([[True, False], [True, True]])
    tokens = backbone(base)(make_images(), TEXT, mask)
    assert not tokens[0, 2].any()
    assert bool(tokens[:, :2].any(dim=2).all())


@pytest.mark.parametrize("tower", ["text", "image"])
def test_freezing_a_tower_leaves_its_projection_free(base: Path, tower: str) -> None:
    module = backbone(base, **{f"freeze_{tower}_encoder": True})
    name = {"text": "text", "image": "vision"}[tower]
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    inside = {
        n for n, _ in module.named_parameters() if n.startswith(f"_model.model.{name}_model.")
    }
    assert frozen == inside


def test_every_weight_that_learns_gets_a_gradient(base: Path) -> None:
    module = backbone(base)
    module(make_images(), TEXT).sum().backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


def test_published_weights_are_loaded_from_the_base_model(base: Path) -> None:
    module = backbone(base)
    before = module(make_images(), TEXT)
    module.load_base()
    from transformers import CLIPModel

    published = CLIPModel.from_pretrained(base).state_dict()
    loaded = module._model.model.state_dict()
    assert all(torch.equal(value, published[name]) for name, value in loaded.items())
    assert not torch.equal(module(make_images(), TEXT), before)


def test_towers_give_what_those_of_transformers_give_and_the_same_gradients(base: Path) -> None:
    from transformers import CLIPModel

    module, pixels = backbone(base), torch.randn(3, 3, 32, 32)
    module.load_base()
    own, other = module._model, CLIPModel.from_pretrained(base)
    found = [own.encode_images(pixels), own.encode_text(TEXT)]
    ids = (TEXT - 1).clamp(min=0)
    expected = [
        normalize(other.visual_projection(other.vision_model(pixels).pooler_output), dim=-1),
        other.text_projection(normalize(other.text_model(input_ids=ids).pooler_output, dim=-1)),
    ]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)
        one.square().sum().add(one.sum()).backward()
        two.square().sum().add(two.sum()).backward()
    gradients = {name: p.grad for name, p in own.model.named_parameters()}
    for name, parameter in other.named_parameters():
        if name != "logit_scale":
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_images_of_another_size_are_resized_as_image_libraries_do() -> None:
    from PIL import Image

    images = make_images(48).flatten(0, 1)
    resized = ImageNormalizer((0, 0, 0), (1, 1, 1))(images, (32, 32)) * 255
    for one, found in zip(images, resized, strict=True):
        image = Image.fromarray(one.permute(1, 2, 0).numpy())
        small = image.resize((32, 32), Image.Resampling.BICUBIC)
        expected = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(32, 32, 3)
        assert (found.permute(1, 2, 0) - expected).abs().max() <= 1.01


# sentences


def test_sentences_are_tokens_of_what_was_kept(base: Path, tmp_path: Path) -> None:
    one = section(base)
    one.save_assets(tmp_path)
    away = one.model_copy(update={"hf_pretrained": "gone/model"})
    sentences = pickle.loads(pickle.dumps(make_text_tokenizer(away, None, tmp_path)))
    encoded = sentences(["put the red block", ""])
    assert encoded.shape == (2, 16)
    assert encoded[:, :7].tolist() == [[9, 2, 3, 4, 5, 10, 0], [9, 10, 0, 0, 0, 0, 0]]


def test_run_without_its_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        make_text_tokenizer(section(base), None, tmp_path)
    assert caught.value.code == "data.broken_run"


def test_long_sentence_keeps_its_end(base: Path) -> None:
    encoded = make_text_tokenizer(section(base), 5, None)(["put the red block away"])
    assert encoded.tolist() == [[9, 2, 3, 4, 10]]


def test_published_image_words_stand_before_a_sentence(base: Path) -> None:
    encoded = make_text_tokenizer(section(base, image_words=True), None, None)(["put"])
    assert encoded[0, :5].tolist() == [9, 8, 8, 2, 10]


def test_example_is_a_sentence_without_words(base: Path) -> None:
    one = section(base)
    assert torch.equal(example_text(one, 2), make_text_tokenizer(one, None, None)(["", ""]))


# what is wrong with a base model


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
        lambda folder: (folder / "preprocessor_config.json").write_text('{"image_mean": 3}'),
    ],
)
def test_unusable_base_model_is_refused_before_training(tmp_path: Path, spoil: Any) -> None:
    folder = clip_base(tmp_path / "clip")
    spoil(folder)
    with pytest.raises(DataError) as caught:
        section(folder)
    assert caught.value.code == "data.base_model"


def test_missing_base_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        section(tmp_path / "nowhere")
    assert caught.value.code == "data.no_source"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda file: file.unlink(), "data.base_model"),
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "data.broken_checkpoint"),
    ],
)
def test_weights_of_a_base_model_that_cannot_be_read_are_refused(
    tmp_path: Path, spoil: Any, code: str
) -> None:
    module = backbone(clip_base(tmp_path / "clip"))
    spoil(tmp_path / "clip/model.safetensors")
    with pytest.raises(DataError) as caught:
        module.load_base()
    assert caught.value.code == code


@pytest.fixture(scope="module")
def bellpepper() -> DiffusionPolicy:
    """The network of the published job, without its numbers. Source: reference/policy 1.7."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    architecture = {"model_type": "clip", "projection_dim": 512, "text_config": text}
    architecture["vision_config"] = {"hidden_size": 768, "patch_size": 32}
    colors = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    clip = ClipBackboneConfig(architecture=architecture, freeze_text_encoder=True, **colors)
    config = DiffusionPolicyConfig(
        vision_language_backbone=clip,
        transformer=TransformerConfig(hidden_dim=512, n_layers=12, n_heads=8, post_embed_norm=True),
        noise_scheduler=NoiseConfig(),
        action_dim=20,
        proprioception_dim=20,
    )
    with torch.device("meta"):
        return DiffusionPolicy(config)


# All but dead weights and CLIP's temperature.
def test_number_of_parameters_is_the_published_one(bellpepper: DiffusionPolicy) -> None:
    counts = [parameter.numel() for parameter in bellpepper.parameters()]
    learning = [p.numel() for p in bellpepper.parameters() if p.requires_grad]
    assert sum(counts) == 244_647_189 - 51_643_392 - 1
    assert sum(learning) == 181_481_237 - 51_643_392 - 1


# Source: reference/policy 1.7; two word tables, a norm and the temperature are not there.
def test_published_rule_gives_the_published_groups(bellpepper: DiffusionPolicy) -> None:
    learning = {name: p.numel() for name, p in bellpepper.named_parameters() if p.requires_grad}
    spared = {name for name in learning if name.endswith(".bias") or "norm" in name.lower()}
    kept = sum(learning[name] for name in spared)
    assert (len(spared) + 2, kept + 2 * 512) == (180, 151_060)
    decayed = sum(learning.values()) - kept
    tables = 2 * 50_432 * 512
    assert (len(learning) - len(spared) + 2 + 1, decayed + tables + 1) == (133, 181_330_177)


def test_tables_alone_decay_by_the_published_rule_and_not_by_ours(
    bellpepper: DiffusionPolicy,
) -> None:
    names = {id(p): name for name, p in bellpepper.named_parameters() if p.requires_grad}
    groups = default_param_groups({"model": bellpepper})
    spared = {names[id(p)] for p in groups[1].params if id(p) in names}

    tables = {name for name in spared if not name.endswith(".bias") and "norm" not in name.lower()}
    start = "vision_language_backbone._model.model.vision_model.embeddings."
    assert tables == {
        "time_encoding.weight",
        f"{start}class_embedding",
        f"{start}position_embedding.weight",
    }


def test_remote_code_of_a_base_model_is_forgotten(tmp_path: Path) -> None:
    folder = clip_base(tmp_path / "clip")
    given = {**clip_config(), "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(given))
    assert "auto_map" not in (section(folder).architecture or {})
