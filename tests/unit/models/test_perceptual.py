"""Perceptual networks: shapes, files of weights, and distances."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.builders.errors import fails
from vlatool.models.inception import InceptionFeatures, enlarged, inception_network
from vlatool.models.perceptual import (
    ConvNextBlock,
    ConvNextSmall,
    Lpips,
    LpipsHeads,
    Vgg16,
    perceptual_network,
)


@cache
def on_meta(network: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return network()


# Source: reference/titok 4.4; the others by counting the published descriptions.
@pytest.mark.parametrize(
    ("network", "parameters", "tensors"),
    [
        (ConvNextSmall, 50_223_688, 344),
        (Vgg16, 14_714_688, 26),
        (LpipsHeads, 1_472, 5),
        (InceptionFeatures, 23_850_960, 472),
    ],
)
def test_network_has_the_released_size(network: type, parameters: int, tensors: int) -> None:
    module = on_meta(network)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert len(module.state_dict()) == tensors


@pytest.mark.parametrize(
    ("network", "name", "shape"),
    [
        (ConvNextSmall, "features.0.1.weight", [96]),
        (ConvNextSmall, "features.1.2.layer_scale", [96, 1, 1]),
        (ConvNextSmall, "features.2.1.weight", [192, 96, 2, 2]),
        (ConvNextSmall, "features.5.26.block.3.weight", [1536, 384]),
        (ConvNextSmall, "features.7.0.block.0.weight", [768, 1, 7, 7]),
        (ConvNextSmall, "classifier.2.weight", [1000, 768]),
        (Vgg16, "features.28.weight", [512, 512, 3, 3]),
        (LpipsHeads, "lin4.model.1.weight", [1, 512, 1, 1]),
        (InceptionFeatures, "Conv2d_4a_3x3.bn.running_var", [192]),
        (InceptionFeatures, "Mixed_5c.branch_pool.conv.weight", [64, 256, 1, 1]),
        (InceptionFeatures, "Mixed_6b.branch7x7dbl_5.conv.weight", [192, 128, 1, 7]),
        (InceptionFeatures, "Mixed_7a.branch7x7x3_4.conv.weight", [192, 192, 3, 3]),
        (InceptionFeatures, "Mixed_7c.branch3x3dbl_3b.conv.weight", [384, 384, 3, 1]),
        (InceptionFeatures, "fc.weight", [1008, 2048]),
    ],
)
def test_tensor_has_the_released_name_and_shape(network: type, name: str, shape: list[int]) -> None:
    assert list(on_meta(network).state_dict()[name].shape) == shape


def write_weights(network: type[nn.Module], path: Path, **changes: Tensor | None) -> Path:
    """Writes zeros for all names of a network, stored as one number each."""
    tensors: Mapping[str, Tensor | None] = {
        **{
            n: torch.zeros(()).expand(value.shape)
            for n, value in on_meta(network).state_dict().items()
        },
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    chosen = {name: value for name, value in tensors.items() if value is not None}
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in chosen.items()}, path)
    else:
        torch.save(chosen, path)
    return path


def test_classifier_of_a_released_vgg_is_ignored(tmp_path: Path) -> None:
    more = {"classifier__0__weight": torch.zeros(2, 2)}
    write_weights(Vgg16, tmp_path / "vgg16-397923af.safetensors", **more)
    write_weights(LpipsHeads, tmp_path / "vgg.safetensors")
    distance = perceptual_network("lpips", tmp_path)
    assert list(distance.digests) == ["vgg16-397923af.safetensors", "vgg.safetensors"]
    assert {len(digest) for digest in distance.digests.values()} == {64}


def test_distance_uses_the_configured_file(tmp_path: Path) -> None:
    path = write_weights(ConvNextSmall, tmp_path / "small.pth")
    distance = perceptual_network("convnext_s", path)
    assert list(distance.digests) == ["small.pth"]
    assert float(distance(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))) == 0


def test_counters_of_batches_in_a_released_file_are_ignored(tmp_path: Path) -> None:
    counter = {"Conv2d_1a_3x3__bn__num_batches_tracked": torch.zeros(())}
    path = write_weights(InceptionFeatures, tmp_path / "inception.pth", **counter)
    assert not any(parameter.requires_grad for parameter in inception_network(path).parameters())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fc__bias": None}, "data.checkpoint_mismatch"),
        ({"fc__bias": torch.zeros(1000)}, "data.checkpoint_mismatch"),
        ({"more": torch.zeros(1)}, "data.checkpoint_mismatch"),
        ({"fc__bias": torch.full((1008,), torch.nan)}, "data.not_finite"),
    ],
)
def test_weights_that_do_not_match_raise_an_error(
    tmp_path: Path, changes: dict[str, Tensor | None], code: str
) -> None:
    path = write_weights(InceptionFeatures, tmp_path / "own.pth", **changes)
    with fails(code):
        inception_network(path)


def test_other_bytes_with_a_released_name_raise_an_error(tmp_path: Path) -> None:
    write_weights(ConvNextSmall, tmp_path / "convnext_small-0c510722.pth")
    with fails("data.mismatch"):
        perceptual_network("convnext_s", tmp_path)


@pytest.mark.parametrize("name", ["", "nothing.pth"])
def test_missing_weights_raise_an_error(tmp_path: Path, name: str) -> None:
    with fails("data.missing"):
        perceptual_network("lpips", tmp_path / name)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("convnext_s", [1]),
        ("lpips", [1]),
        ("lpips-convnext_s-1.0-0.1", [1 / 1.1, 0.1 / 1.1]),
        ("lpips-convnext_s", [0.5, 0.5]),
    ],
)
def test_name_contains_networks_and_weights(name: str, shares: list[float]) -> None:
    with torch.device("meta"):
        assert perceptual_network(name, None)._weights == pytest.approx(shares)


@pytest.mark.parametrize("name", ["", "vgg", "lpips-1.0-2.0", "lpips-lpips", "convnext_s-x"])
def test_unknown_name_raises_an_error(name: str) -> None:
    with fails("usage.unknown_name"):
        perceptual_network(name, None)


def test_block_of_convnext_computes_its_formula() -> None:
    torch.manual_seed(0)
    block = ConvNextBlock(4)
    nn.init.normal_(block.layer_scale)
    x = torch.randn(2, 4, 5, 6)
    w = dict(block.named_parameters())
    h = functional.conv2d(x, w["block.0.weight"], w["block.0.bias"], padding=3, groups=4)
    centered = h - h.mean(1, keepdim=True)
    h = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    h = torch.einsum("bdhw,ed->behw", h, w["block.3.weight"]) + w["block.3.bias"][:, None, None]
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    h = torch.einsum("bdhw,ed->behw", h, w["block.5.weight"]) + w["block.5.bias"][:, None, None]
    torch.testing.assert_close(block(x), x + w["layer_scale"] * h, rtol=1e-4, atol=1e-5)


def test_compared_layers_of_vgg_are_relu_1_2_to_5_3() -> None:
    network = Vgg16()
    x = torch.rand(1, 3, 16, 16)
    relus = [i for i, layer in enumerate(network.features) if isinstance(layer, nn.ReLU)]
    last = [relus[number] for number in (1, 3, 6, 9, 12)]  # of 2, 2, 3, 3, 3 convolutions
    expected = [network.features[: number + 1](x) for number in last]
    torch.testing.assert_close(network(x), expected)


def test_lpips_is_the_weighted_distance_of_features() -> None:
    torch.manual_seed(0)
    network = Lpips().eval()
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    expected = []
    for a, b in zip(x, y, strict=True):
        total = 0.0
        taps = [network.vgg(shifted(image)[None]) for image in (a, b)]
        for number, (first, second) in enumerate(zip(*taps, strict=True)):
            first, second = (x[0] / (x[0].norm(dim=0) + 1e-10) for x in (first, second))
            head = network.heads.state_dict()[f"lin{number}.model.1.weight"][0, :, 0, 0]
            total += float(torch.einsum("dhw,d->hw", (first - second) ** 2, head).mean().detach())
        expected.append(total)
    torch.testing.assert_close(network.distances(x, y), torch.tensor(expected))


def shifted(pixels: Tensor) -> Tensor:
    """Normalized pixels. Source: reference/titok 4.4."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    return (2 * pixels - 1 - shift[:, None, None]) / scale[:, None, None]


def test_only_the_reconstruction_gets_a_gradient() -> None:
    torch.manual_seed(0)
    distance = perceptual_network("lpips", None)
    original = torch.rand(1, 3, 16, 16, requires_grad=True)
    reconstruction = torch.rand(1, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance(original, reconstruction)
    value.backward()
    assert value.dtype == torch.float32
    assert original.grad is None
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert not distance.train().training


def test_images_are_resized_as_in_tensorflow_1() -> None:
    image = torch.rand(1, 1, 3, 2)
    result = enlarged(image, 5)
    for row in range(5):
        for column in range(5):
            y, x = row * 3 / 5, column * 2 / 5
            top, left = int(y), int(x)
            low, right = min(top + 1, 2), min(left + 1, 1)
            first = image[0, 0, top, left].lerp(image[0, 0, low, left], y - top)
            second = image[0, 0, top, right].lerp(image[0, 0, low, right], y - top)
            assert float(result[0, 0, row, column]) == pytest.approx(
                float(first.lerp(second, x - left))
            )


def test_features_of_images_are_pooled() -> None:
    torch.manual_seed(0)
    network = InceptionFeatures().eval()
    images = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    with torch.no_grad():
        features = network(images)
        assert features.shape == (2, 2048)
        assert network.logits(features).shape == (2, 1008)
    assert not torch.equal(features[0], features[1])
