"""The network of FUTURE-VLA beside numbers of the published model file."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import PCG64, Generator
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from tests.builders.future_vla import TINY_DINO, VOCABULARY, tiny_future_vla
from vlatool.errors import DataError
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.model import FutureVla, build_network

_BESIDE = Path(__file__).parents[3].parent / "shared/data/future_vla_golden.npz"
_GOLDEN = Path(os.environ.get("VLATOOL_FUTURE_VLA", _BESIDE))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not _GOLDEN.is_file():
        pytest.skip(f"no golden numbers at {_GOLDEN}; set VLATOOL_FUTURE_VLA to their file")
    return dict(np.load(_GOLDEN))


def _json(golden: dict[str, Any], key: str) -> Any:
    return json.loads(str(golden[key]))


def _set_by_rule(network: nn.Module) -> None:
    """Sets the weights that the file of golden numbers describes."""
    for name, value in network.state_dict().items():
        draw = Generator(PCG64(zlib.crc32(name.encode()))).standard_normal(
            tuple(value.shape), np.float32
        )
        shift = 1 if value.ndim == 1 and name.endswith(".weight") else 0
        value.copy_(torch.from_numpy(np.float32(0.05) * draw) + shift)


@pytest.fixture(scope="module")
def network(golden: dict[str, Any]) -> FutureVla:
    content = _json(golden, "config")
    config = FutureVlaConfig(
        qwen=content["qwen"],
        dino=content["dino"],
        views=content["views"],
        compress=content["compress"],
        conv_width=content["conv_mid"],
    )
    network = FutureVla(config)
    _set_by_rule(network)
    return network


def _images(golden: dict[str, Any]) -> torch.Tensor:
    generator = Generator(PCG64(int(golden["pixels_seed"])))
    pixels = generator.integers(0, 256, (20, 256, 256, 3), np.uint8)
    assert np.array_equal(pixels[0, :4, :4], golden["first_pixels"])
    return torch.from_numpy(pixels).unflatten(0, (2, 10))


def test_keys_and_shapes_are_published(golden: dict[str, Any], network: FutureVla) -> None:
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == _json(golden, "shapes")


def test_published_numbers(golden: dict[str, Any], network: FutureVla) -> None:
    images = _images(golden)
    features = network.embed_images(images)
    for level, key in enumerate(("features", "deepstack0")):
        rows = features[:, level].flatten(0, 1)[::2].detach().numpy()
        np.testing.assert_allclose(rows, golden[key], rtol=1e-3, atol=1e-5)
    ids, labels = (torch.from_numpy(golden[key]).long() for key in ("input_ids", "labels"))
    positions = torch.from_numpy(golden["position_ids"]).long().transpose(0, 1)
    network.zero_grad()
    hidden = network(ids, positions, images=images)
    logits = network.head(hidden)
    tail = logits[:, -40:].detach().numpy()
    np.testing.assert_allclose(tail, golden["logits_tail"], atol=1e-4)
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-3)
    loss.backward()
    norms = {
        name: None if value.grad is None else value.grad.norm().item()
        for name, value in network.named_parameters()
    }
    expected = _json(golden, "gradient_norms")
    assert {k for k, v in norms.items() if v is None} == {
        k for k, v in expected.items() if v is None
    }
    trained = {name: norm for name, norm in expected.items() if norm is not None}
    assert {name: norms[name] for name in trained} == pytest.approx(trained, rel=1e-3)


def _small(**keys: Any) -> FutureVla:
    torch.manual_seed(3)
    network = FutureVla(tiny_future_vla(**keys))
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn_like(value) * 0.2)
    return network


def test_dino_is_that_of_transformers() -> None:
    network = _small()
    dino = network.visual.vis_tok
    stock = DINOv3ViTModel(DINOv3ViTConfig(**(network.config.dino or {}))).eval()
    weights = {
        name.replace("layer.", "model.layer.", 1) if name.startswith("layer.") else name: value
        for name, value in dino.state_dict().items()
    }
    stock.load_state_dict(weights)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = stock(pixels).last_hidden_state[:, -64:]
    torch.testing.assert_close(dino(images).flatten(2).transpose(1, 2), expected)


def test_blocks_of_images_are_those_of_transformers() -> None:
    network = _small(patch_order="block")
    vision: Any = Qwen3VLVisionConfig(**(network.config.qwen or {})["vision_config"])
    stock: Any = Qwen3VLVisionModel(vision)
    names = stock.state_dict().keys()
    stock.load_state_dict({k: v for k, v in network.visual.state_dict().items() if k in names})
    stock.patch_embed = nn.Identity()
    features = [torch.randn(count, 32, 8, 8) for count in (3, 0, 2)]
    maps = [grid(x) for grid, x in zip(network.visual.grids, features, strict=True)]
    patches = [
        x.permute(0, 2, 3, 1)
        .unflatten(1, (-1, 2))
        .unflatten(3, (-1, 2))
        .transpose(2, 3)
        .flatten(0, 4)
        for x in maps
    ]
    sizes = [[1, x.shape[-1], x.shape[-1]] for x in maps for _ in x]
    expected = stock(torch.cat(patches), grid_thw=torch.tensor(sizes))
    tokens = torch.cat(
        [x.transpose(1, 2).flatten(0, 1) for x in network.visual(features) if len(x)]
    )
    torch.testing.assert_close(tokens[:, 0], expected.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, 1], expected.deepstack_features[0], rtol=1e-4, atol=1e-5)


def test_rows_of_patches_differ_from_blocks_in_their_content_only() -> None:
    rows, blocks = _small(patch_order="raster"), _small(patch_order="block")
    features = [torch.randn(1, 32, 8, 8)[:count] for count in (0, 0, 1)]
    constant = [torch.ones_like(part) for part in features]
    torch.testing.assert_close(rows.visual(constant)[2], blocks.visual(constant)[2])
    assert not torch.allclose(rows.visual(features)[2], blocks.visual(features)[2], atol=1e-3)


def test_language_model_is_that_of_transformers() -> None:
    network = _small()
    config: Any = Qwen3VLConfig(**(network.config.qwen or {}))
    stock: Any = Qwen3VLForConditionalGeneration(config).eval()
    stock.load_state_dict(
        {k: v for k, v in network.state_dict().items() if ".vis_tok." not in k and ".cnn" not in k},
        strict=False,
    )
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, VOCABULARY - 1, (2, 40), generator=generator)
    ids[:, 4:25] = VOCABULARY - 1
    positions = torch.randint(0, 60, (2, 3, 40), generator=generator)
    features = torch.randn(2, 2, 21, 32, generator=generator)
    is_image = ids == VOCABULARY - 1
    embeddings = network.language_model.embed_tokens(ids)
    embeddings = embeddings.masked_scatter(is_image[..., None], features[:, 0].flatten(0, 1))
    expected = stock.model.language_model(
        inputs_embeds=embeddings,
        position_ids=positions.transpose(0, 1),
        visual_pos_masks=is_image,
        deepstack_visual_embeds=[features[:, 1].flatten(0, 1)],
    ).last_hidden_state
    hidden = network(ids, positions, features=features)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("views", "compress", "tokens"),
    [(2, (8, 6, 2), 512), (2, (0, 0, 16), 2048), (3, (8, 6, 2), 768)],
)
def test_tokens_of_published_grids(views: int, compress: tuple[int, int, int], tokens: int) -> None:
    network = _small(views=views, compress=compress, dino={**TINY_DINO, "patch_size": 16})
    images = torch.zeros(1, views * sum(compress), 256, 256, 3, dtype=torch.uint8)
    with torch.no_grad():
        assert network.embed_images(images).shape == (1, 2, tokens, 32)


@torch.no_grad()
def test_tokens_see_the_tokens_before_them_beside_padding() -> None:
    network = _small().eval()
    ids, positions = torch.tensor([[5, 6, 7, 8, 9, 9]]), torch.arange(6).expand(1, 3, 6)
    is_real = torch.arange(6)[None] < 4
    expected = network(ids[:, :4], positions[..., :4])
    result = network(ids, positions, attention_mask=is_real)[:, :4]
    torch.testing.assert_close(result, expected)


def test_unused_convolutions_are_frozen() -> None:
    network = _small(compress=(0, 1, 1))
    grids = network.visual.grids
    assert [{p.requires_grad for p in grid.parameters()} for grid in grids] == [
        {False},
        {True},
        {True},
    ]


def test_network_on_the_meta_device_lacks_its_weights_only() -> None:
    network = _small()
    images = torch.randint(0, 256, (1, 3, 64, 64, 3), dtype=torch.uint8)
    with torch.device("meta"):
        empty = FutureVla(network.config)
    empty.load_state_dict(network.state_dict(), assign=True)
    assert not list(network.buffers())
    torch.testing.assert_close(empty.embed_images(images), network.embed_images(images))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("dino", "num_attention_heads", 0),
        ("dino", "patch_size", [16, 16]),
        ("vision_config", "num_position_embeddings", 15),
        ("vision_config", "deepstack_visual_indexes", [7]),
        ("text_config", "rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("text_config", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("text_config", "hidden_size", "wide"),
    ],
)
def test_architecture_without_a_network_is_an_error(section: str, key: str, value: Any) -> None:
    config = tiny_future_vla()
    sections: dict[str, Any] = {"dino": config.dino, **(config.qwen or {})}
    changed = {section: {**sections[section], key: value}}
    qwen = {**(config.qwen or {}), **({} if section == "dino" else changed)}
    config = config.model_copy(update={"qwen": qwen, **(changed if section == "dino" else {})})
    with pytest.raises(DataError, match=r"model.qwen and model.dino describe no network"):
        build_network(config)


@pytest.mark.parametrize(
    "keys",
    [{"compress": [0, 0, 0]}, {"compress": [-1, 2, 2]}, {"views": 64, "compress": [99, 0, 0]}],
)
def test_impossible_grids(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny_future_vla(**keys)
