import pytest
import torch

from vlatool.models.diffusion_policy.config import TransformerConfig
from vlatool.models.diffusion_policy.model import (
    NativeTransformer,
    RotaryPositions,
    SwiGLU,
)


def denoiser(**keys: object) -> NativeTransformer:
    torch.manual_seed(0)
    return NativeTransformer(
        TransformerConfig(**{"hidden_dim": 32, "n_layers": 2, "n_heads": 2, **keys})
    )


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("causal", [True, False])
def test_later_token_reaches_earlier_ones_only_without_mask(causal: bool) -> None:
    model = denoiser(is_causal=causal)
    tokens = torch.randn(1, 6, 32)
    changed = tokens.clone()
    changed[:, 4] += 1.0
    difference = (model(changed) - model(tokens)).abs().amax(dim=2)[0]
    assert bool((difference[:4] == 0).all()) is causal
    assert bool((difference[4:] > 0).all())


def test_rotary_products_depend_on_the_distance_only() -> None:
    rotary = RotaryPositions(8)
    query, key = torch.randn(8), torch.randn(8)
    cos_sin = rotary.cos_sin(9)
    queries, keys = (rotary(vector.expand(1, 1, 9, 8), cos_sin)[0, 0] for vector in (query, key))
    products = queries @ keys.T
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert not torch.allclose(products[0, 0], products[0, 1])


def test_rotary_rotates_half_split_channels_with_base_10000() -> None:
    rotary = RotaryPositions(4)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 2, 4)
    rotated = rotary(x, rotary.cos_sin(2))[0, 0]
    slow, fast = torch.tensor(0.01), torch.tensor(1.0)
    expected = torch.stack(
        [
            fast.cos() - 3 * fast.sin(),
            2 * slow.cos() - 4 * slow.sin(),
            3 * fast.cos() + fast.sin(),
            4 * slow.cos() + 2 * slow.sin(),
        ]
    )
    torch.testing.assert_close(rotated[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(rotated[1], expected)


def test_swiglu_gates_with_the_first_half() -> None:
    layer = SwiGLU(2)
    with torch.no_grad():
        layer.w12.weight.zero_()
        layer.w12.weight[0, 0] = 1.0
        layer.w12.weight[256, 1] = 1.0
        layer.w3.weight.fill_(1.0)
    out = layer(torch.tensor([[[2.0, 3.0]]]))
    expected = 3 * torch.nn.functional.silu(torch.tensor(2.0))
    torch.testing.assert_close(out, expected.expand(1, 1, 2))


# Source: reference/policy 1.5, parameters of the blocks
@pytest.mark.parametrize(
    ("width", "layers", "heads", "expected"),
    [
        (64, 2, 2, 131_584),
        (96, 8, 4, 887_808),
        (512, 12, 8, 40_919_040),
        (1024, 24, 16, 308_379_648),
        (2048, 24, 16, 1_233_321_984),
    ],
)
def test_number_of_block_parameters(width: int, layers: int, heads: int, expected: int) -> None:
    config = TransformerConfig(hidden_dim=width, n_layers=layers, n_heads=heads)
    with torch.device("meta"):
        assert num_parameters(NativeTransformer(config)) == expected


def test_residual_matrices_of_deep_blocks_start_smaller() -> None:
    model = denoiser(hidden_dim=256, n_layers=8, n_heads=2)
    deep = model.layers[7]
    assert deep.attention.in_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    for matrix in (deep.attention.out_proj.weight, deep.feed_forward.w3.weight):
        assert matrix.std().item() == pytest.approx(256**-0.5 / 4, rel=0.05)
