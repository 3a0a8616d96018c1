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
from torch import nn
from torch.nn import functional

from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.model import FutureVla

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
