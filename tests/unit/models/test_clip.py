"""CLIP backbone: outputs, trainable weights and text tokenizer."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from tests.builders.base_models import clip_base, clip_config
from tests.builders.errors import fails
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.backbones.clip import ClipBackbone
from vlatool.models.backbones.config import ClipBackboneConfig
from vlatool.models.backbones.images import ImageNormalizer
from vlatool.models.backbones.text import example_text, make_text_tokenizer
from vlatool.models.diffusion_policy.config import (
    DiffusionPolicyConfig,
    NoiseConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.training.step import default_param_groups

DATA = RoboticsDataConfig(camera_names=["a", "b"], image_indices=[0])
COLORS = "preprocessor_config.json"


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


def test_sizes_and_colors_come_from_the_base_model(base: Path, tmp_path: Path) -> None:
    derived, rules = ClipBackboneConfig(hf_pretrained=str(base)).derive(DATA)
    assert derived.architecture is not None
    assert derived.architecture["vision_config"]["hidden_size"] == 16
    assert (derived.image_mean, derived.image_std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert derived.num_images == 2
    assert rules.keys() == {"architecture", "image_mean", "image_std", "num_images"}
    again, _ = derived.derive(DATA)
    assert again == derived

    folder = clip_base(tmp_path / "clip")
    config = {**clip_config(), "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "auto_map" not in (section(folder).architecture or {})


def test_derived_section_does_not_need_its_base_model(base: Path) -> None:
    stored = json.loads(
        section(base).model_copy(update={"hf_pretrained": "gone"}).model_dump_json()
    )
    ClipBackbone(ClipBackboneConfig.model_validate(stored).derive(DATA)[0])


# Source: reference/policy 1.4
def test_image_is_projected_then_normalized_and_text_vice_versa(base: Path) -> None:
    module, images = backbone(base), make_images()
    tokens = module(images, TEXT)
    network = module._model.model
    pixels = ImageNormalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(images.flatten(0, 1), (32, 32))
    states = network.vision_model(pixels).last_hidden_state
    pooled = network.vision_model.post_layernorm(states[:, 0])
    expected = normalize(network.visual_projection(pooled), dim=-1).view(2, 2, 8)
    torch.testing.assert_close(tokens[:, 1:], expected)
    hidden = network.text_model(input_ids=(TEXT - 1).clamp(min=0)).last_hidden_state
    end_states = hidden[torch.arange(2), torch.tensor([3, 4])]
    torch.testing.assert_close(tokens[:, 0], network.text_projection(normalize(end_states, dim=-1)))


def test_padding_after_a_text_changes_nothing(base: Path) -> None:
    module, images = backbone(base), make_images()
    longer = torch.cat([TEXT, torch.zeros(2, 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(module(images, longer), module(images, TEXT))


def test_without_text_there_are_only_image_tokens(base: Path) -> None:
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
def test_freezing_a_tower_does_not_freeze_its_projection(base: Path, tower: str) -> None:
    module = backbone(base, **{f"freeze_{tower}_encoder": True})
    name = {"text": "text", "image": "vision"}[tower]
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    inside = {
        n for n, _ in module.named_parameters() if n.startswith(f"_model.model.{name}_model.")
    }
    assert frozen == inside


def test_towers_equal_those_of_transformers_and_their_gradients(base: Path) -> None:
    from transformers import CLIPModel

    module, pixels = backbone(base), torch.randn(3, 3, 32, 32)
    module.load_base()
    towers, reference = module._model, CLIPModel.from_pretrained(base)
    outputs = [towers.encode_images(pixels), towers.encode_text(TEXT)]
    ids = (TEXT - 1).clamp(min=0)
    expected = [
        normalize(
            reference.visual_projection(reference.vision_model(pixels).pooler_output), dim=-1
        ),
        reference.text_projection(
            normalize(reference.text_model(input_ids=ids).pooler_output, dim=-1)
        ),
    ]
    for output, expected_output in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, expected_output)
        output.square().sum().add(output.sum()).backward()
        expected_output.square().sum().add(expected_output.sum()).backward()
    gradients = {name: p.grad for name, p in towers.model.named_parameters()}
    for name, parameter in reference.named_parameters():
        if name != "logit_scale":
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_images_of_another_size_are_resized_as_image_libraries_do() -> None:
    from PIL import Image

    images = make_images(48).flatten(0, 1)
    resized = ImageNormalizer((0, 0, 0), (1, 1, 1))(images, (32, 32)) * 255
    for original, result in zip(images, resized, strict=True):
        image = Image.fromarray(original.permute(1, 2, 0).numpy())
        small = image.resize((32, 32), Image.Resampling.BICUBIC)
        expected = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(32, 32, 3)
        assert (result.permute(1, 2, 0) - expected).abs().max() <= 1.01


# sentences


def test_instructions_are_encoded_with_the_stored_tokenizer(base: Path, tmp_path: Path) -> None:
    config = section(base)
    config.save_assets(tmp_path)
    moved = config.model_copy(update={"hf_pretrained": "gone/model"})
    sentences = pickle.loads(pickle.dumps(make_text_tokenizer(moved, None, tmp_path)))
    encoded = sentences(["put the red block", ""])
    assert encoded.shape == (2, 16)
    assert encoded[:, :7].tolist() == [[9, 2, 3, 4, 5, 10, 0], [9, 10, 0, 0, 0, 0, 0]]
    assert torch.equal(example_text(config, 2), sentences(["", ""]))
    # A long text keeps its end token; the published words of images precede the text.
    cut = make_text_tokenizer(config, 5, None)(["put the red block away"])
    assert cut.tolist() == [[9, 2, 3, 4, 10]]
    published = make_text_tokenizer(section(base, image_words=True), None, None)(["put"])
    assert published[0, :5].tolist() == [9, 8, 8, 2, 10]


def test_run_without_its_tokenizer_is_an_error(base: Path, tmp_path: Path) -> None:
    with fails("data.broken"):
        make_text_tokenizer(section(base), None, tmp_path)


# broken base models


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "config.json").unlink(), "data.missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "data.missing"),
        (lambda folder: (folder / "config.json").write_text("[]"), "data.missing"),
        (lambda folder: _write(folder / "config.json", model_type="bert"), "data.missing"),
        (lambda folder: _write(folder / COLORS, image_mean=3), "data.missing"),
        (lambda folder: folder.rename(folder.with_name("moved")), "data.no_source"),
    ],
)
def test_unusable_base_model_is_an_error_before_training(
    tmp_path: Path, spoil: Any, code: str
) -> None:
    folder = clip_base(tmp_path / "clip")
    spoil(folder)
    with fails(code):
        section(folder)


def _write(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def _pickled(file: Path, content: Any) -> None:
    torch.save({**load_file(file), "logit_scale": content}, file.with_name("pytorch_model.bin"))
    file.unlink()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda file: file.unlink(), "data.missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "data.broken"),
        (lambda file: _pickled(file, os.getcwd), "data.unsafe"),
        (lambda file: _pickled(file, torch.zeros(()).to_sparse()), "data.broken"),
    ],
    ids=["missing", "cut", "code", "sparse"],
)
def test_unreadable_weights_of_a_base_model_are_an_error(
    tmp_path: Path, spoil: Any, code: str
) -> None:
    module = backbone(clip_base(tmp_path / "clip"))
    spoil(tmp_path / "clip/model.safetensors")
    with fails(code):
        module.load_base()


@pytest.fixture(scope="module")
def bellpepper() -> DiffusionPolicy:
    """The network of the published job, without weights. Source: reference/policy 1.7."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    architecture = {"model_type": "clip", "projection_dim": 512, "text_config": text}
    architecture["vision_config"] = {"hidden_size": 768, "patch_size": 32}
    colors: Any = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
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


# Without the unused weights and the temperature of CLIP.
def test_number_of_parameters_is_the_published_one(bellpepper: DiffusionPolicy) -> None:
    counts = [parameter.numel() for parameter in bellpepper.parameters()]
    trainable = [p.numel() for p in bellpepper.parameters() if p.requires_grad]
    assert sum(counts) == 244_647_189 - 51_643_392 - 1
    assert sum(trainable) == 181_481_237 - 51_643_392 - 1


# Source: reference/policy 1.7; two token embeddings, a norm and the temperature are missing here.
def test_published_rule_gives_the_published_groups(bellpepper: DiffusionPolicy) -> None:
    groups = default_param_groups({"model": bellpepper}, by_name=True)
    decayed, undecayed = ([p.numel() for p in group.params if p.requires_grad] for group in groups)
    assert (len(undecayed) + 2, sum(undecayed) + 2 * 512) == (180, 151_060)
    tables = 2 * 50_432 * 512
    assert (len(decayed) + 2 + 1, sum(decayed) + tables + 1) == (133, 181_330_177)


def test_only_embeddings_decay_by_the_published_rule_and_not_by_ours(
    bellpepper: DiffusionPolicy,
) -> None:
    names = {id(p): name for name, p in bellpepper.named_parameters() if p.requires_grad}
    groups = default_param_groups({"model": bellpepper})
    undecayed = {names[id(p)] for p in groups[1].params if id(p) in names}

    tables = {
        name for name in undecayed if not name.endswith(".bias") and "norm" not in name.lower()
    }
    start = "vision_language_backbone._model.model.vision_model.embeddings."
    assert tables == {
        "time_encoding.weight",
        f"{start}class_embedding",
        f"{start}position_embedding.weight",
    }
