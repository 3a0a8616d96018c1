"""Vision-language models from the hub as backbones, and a language model as denoiser."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders.base_models import VLM_VOCABULARY, causal_base, vlm_base
from tests.builders.errors import fails
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.backbones.config import VlmBackboneConfig
from vlatool.models.backbones.prompts import FAMILIES, image_side, image_tokens
from vlatool.models.backbones.text import example_text, make_text_tokenizer
from vlatool.models.backbones.vlm import VlmBackbone
from vlatool.models.diffusion_policy.config import CausalLMConfig
from vlatool.models.diffusion_policy.model import CausalLM

DATA = RoboticsDataConfig(camera_names=["a", "b"], image_indices=[0])
TINY = ["paligemma", "smolvlm", "qwen3_vl"]
LAYERS = 2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hub")
    return {family: vlm_base(folder / family, family) for family in TINY}


def section(base: Path, **keys: Any) -> VlmBackboneConfig:
    values = {"hf_pretrained": str(base), "num_vlm_layers_to_use": LAYERS, "image_size": 32, **keys}
    return VlmBackboneConfig.model_validate(values).derive(DATA)[0]


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)


def encoded(config: VlmBackboneConfig, *sentences: str) -> Tensor:
    return make_text_tokenizer(config, None, None)(sentences)


@pytest.mark.parametrize("family", TINY)
def test_output_is_the_last_states_of_a_token_after_the_instruction(
    bases: dict[str, Path], family: str
) -> None:
    config = section(bases[family])
    module = VlmBackbone(config).eval()
    text = encoded(config, "put the red block", "put")
    tokens = module(images(), text)
    assert tokens.shape == (2, 1, 16 * LAYERS)
    # Single and without padding, as transformers expects it.
    length = int((text[1] > 0).sum())
    ids = torch.cat([text[1:, :length] - 1, torch.tensor([[VLM_VOCABULARY]])], dim=1)
    states = module._network.model(
        input_ids=ids, output_hidden_states=True, **module._pixels(images()[1:], ids)
    ).hidden_states
    expected = torch.cat([state[:, -1] for state in states[-LAYERS:]], dim=1)
    torch.testing.assert_close(tokens[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TINY)
def test_output_depends_on_images_and_text_and_gives_gradients(
    bases: dict[str, Path], family: str
) -> None:
    config = section(bases[family])
    module = VlmBackbone(config)
    text = encoded(config, "put the red block", "put the green block")
    tokens = module(images(), text)
    assert (module(255 - images(), text) - tokens).abs().max() > 1e-6
    assert (module(images(), text.flip(0)) - tokens).abs().max() > 1e-6
    assert module(images(), example_text(config, 2)).isfinite().all()
    torch.testing.assert_close(module.eval()(images(), text), tokens)
    tokens.sum().backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("family", TINY)
def test_published_weights_are_loaded_and_the_new_token_is_their_mean(
    bases: dict[str, Path], family: str
) -> None:
    from transformers import AutoModelForImageTextToText

    module = VlmBackbone(section(bases[family]))
    module.load_base()
    published = AutoModelForImageTextToText.from_pretrained(bases[family]).state_dict()
    embeddings = module._network.get_input_embeddings().weight
    torch.testing.assert_close(embeddings[-1], embeddings[:-1].mean(dim=0))
    for name, value in module._network.state_dict().items():
        assert torch.equal(value[: len(published[name])], published[name])


def test_patches_equal_those_of_the_processor_of_the_model(bases: dict[str, Path]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        do_resize=False, patch_size=8, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    flat = images().flatten(0, 1)
    expected = processor([image.permute(1, 2, 0).numpy() for image in flat], return_tensors="pt")
    module = VlmBackbone(section(bases["qwen3_vl"]))
    result = module._pixels(images(), torch.zeros(2, 1, dtype=torch.int64))
    torch.testing.assert_close(result["pixel_values"], expected["pixel_values"])
    assert torch.equal(result["image_grid_thw"], expected["image_grid_thw"])


# Sizes of the published models: google/paligemma-3b-pt-224, SmolVLM2-256M and Qwen3-VL-2B.
@pytest.mark.parametrize(
    ("family", "vision", "more", "side", "tokens"),
    [
        ("paligemma", {"image_size": 224, "patch_size": 14}, {}, 224, 256),
        ("smolvlm", {"image_size": 512, "patch_size": 16}, {"scale_factor": 4}, 512, 64),
        ("qwen3_vl", {"patch_size": 16, "spatial_merge_size": 2}, {}, 256, 64),
    ],
)
def test_image_has_the_published_number_of_tokens(
    family: str, vision: dict[str, int], more: dict[str, int], side: int, tokens: int
) -> None:
    architecture = {"model_type": family, "vision_config": vision, **more}
    assert image_side(architecture) == side
    assert image_tokens(architecture, side) == tokens
    before, _ = FAMILIES[family].prompt(2, tokens)
    assert before.count(FAMILIES[family].token) == 2 * tokens


def test_unknown_model_type_and_too_small_text_length_are_errors(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    config = (bases["smolvlm"] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"smolvlm"', '"blip"'))
    with fails("data.missing"):
        section(tmp_path, image_size=None)
    with fails("usage.bad_value"):
        make_text_tokenizer(section(bases["smolvlm"]), 10, None)


# a language model as denoiser


def test_language_model_denoises_without_token_embeddings(tmp_path: Path) -> None:
    from transformers import AutoModel

    language_model = causal_base(tmp_path)

    config = CausalLMConfig(hf_pretrained=str(language_model)).derive(DATA)[0]
    denoiser = CausalLM(config)
    assert denoiser.width == config.width == 16
    assert not [name for name in denoiser.state_dict() if "embed_tokens" in name or "head" in name]
    denoiser.load_base()
    tokens = torch.randn(2, 5, 16)
    published = AutoModel.from_pretrained(language_model)
    expected = published(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(denoiser(tokens), expected)
    denoiser(tokens).sum().backward()
    assert not [name for name, value in denoiser.named_parameters() if value.grad is None]
