"""The MaskGIT-VQGAN and what its losses are made of."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from tests.builders.tokenizers import NETWORK, SIDE
from vlatool.models.vqgan.discriminator import BlurDown, Discriminator, LecamEma, hinge
from vlatool.models.vqgan.losses import FeatureDistance, GradientDistance
from vlatool.models.vqgan.model import Decoder, Encoder, ResidualBlock, Vqgan
from vlatool.models.vqgan.objective import CodebookMonitor, published_groups
from vlatool.models.vqgan.spec import (
    CodebookAlarmConfig,
    PixelLossConfig,
    VqganConfig,
    VqganNetworkConfig,
)

YES, NO = torch.tensor(True), torch.tensor(False)
TINY = VqganNetworkConfig.model_validate(NETWORK)


def sizes(module: nn.Module) -> tuple[int, int]:
    return len(module.state_dict()), sum(p.numel() for p in module.parameters())


def make_images(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("part", "tensors", "parameters"),
    [(Encoder, 79, 23_775_104), (Decoder, 88, 30_478_339), (Vqgan, 168, 54_515_587)],
)
def test_network_has_the_published_tensors(
    part: type[nn.Module], tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        assert sizes(part(VqganNetworkConfig())) == (tensors, parameters)


def test_decoder_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in Decoder(VqganNetworkConfig()).state_dict().items()}

    assert found["conv_in.weight"] == (512, 256, 3, 3)
    assert found["mid.1.conv2.weight"] == (512, 512, 3, 3)
    assert found["up.1.block.0.conv1.weight"] == (128, 256, 3, 3)
    assert found["up.1.block.0.nin_shortcut.weight"] == (128, 128, 1, 1)
    assert found["up.3.upsample_conv.bias"] == (256,)
    assert found["up.4.block.1.norm2.bias"] == (512,)
    assert found["conv_out.weight"] == (3, 128, 3, 3)
    assert "up.0.upsample_conv.weight" not in found
    assert "up.4.block.0.nin_shortcut.weight" not in found


def test_discriminator_has_the_published_tensors() -> None:
    module = Discriminator()
    decayed = published_groups({"discriminator": module})[0].params

    assert sizes(module)[1] == 1_909_889
    assert (len(decayed), sum(p.numel() for p in decayed)) == (6, 1_906_560)
    assert {"block_in.0.weight", "blocks.2.1.kernel", "to_logits.2.bias"} <= {*module.state_dict()}


def test_shortcut_of_a_block_that_changes_its_width_is_fed_its_own_result() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(8, 16, 4), torch.randn(1, 8, 5, 5)
    made = functional.silu(functional.group_norm(x, 4, eps=1e-6))
    made = functional.conv2d(made, block.conv1.weight, padding=1)
    made = functional.silu(functional.group_norm(made, 4, eps=1e-6))
    made = functional.conv2d(made, block.conv2.weight, padding=1)
    expected = made + functional.conv2d(made, block.nin_shortcut.weight)

    torch.testing.assert_close(block(x), expected)


def test_block_of_one_width_adds_its_input() -> None:
    block, x = ResidualBlock(8, 8, 4), torch.randn(1, 8, 5, 5)
    nn.init.zeros_(block.conv2.weight)

    assert torch.equal(block(x), x)


def test_ids_are_row_major_and_draw_what_their_images_draw() -> None:
    torch.manual_seed(0)
    model, images = Vqgan(TINY), make_images()
    ids = model.codes(images)
    nearest = torch.cdist(
        model.encoder(images).permute(0, 2, 3, 1).flatten(1, 2), model.quantize.embedding.weight
    ).argmin(-1)

    assert torch.equal(ids, nearest)
    drawn = model.decode_codes(ids)
    torch.testing.assert_close(drawn, model(images).pixels.clamp(0, 1), atol=1e-4, rtol=0)
    assert torch.equal(drawn, model.decode_codes(ids.unflatten(1, (4, 4))))


def test_blur_halves_with_a_kernel_that_sums_to_one() -> None:
    blur = BlurDown()
    made = blur(torch.ones(1, 2, 8, 8))

    assert made.shape == (1, 2, 4, 4)
    assert torch.equal(made[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert float(blur.kernel[0, 0, 1, 2]) == 9 / 64


def test_discriminator_says_sixteen_by_sixteen() -> None:
    assert Discriminator(32)(torch.rand(1, 3, 256, 256)).shape == (1, 1, 16, 16)


def test_hinge_of_answers_that_are_right_is_zero() -> None:
    assert float(hinge(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0]))) == 0
    assert float(hinge(torch.zeros(2), torch.zeros(2))) == 1


def test_lecam_compares_with_the_means_of_the_other_kind() -> None:
    means = LecamEma(0.9)
    means.update(torch.tensor(10.0), torch.tensor(-20.0), YES)

    assert (float(means.real), float(means.fake)) == (pytest.approx(1.0), pytest.approx(-2.0))
    distance = means.distance(torch.tensor(0.5), torch.tensor(-1.0))
    assert float(distance) == pytest.approx((0.5 + 2) ** 2 + (1 + 1) ** 2)
    assert float(means.distance(torch.tensor(-3.0), torch.tensor(2.0))) == 0


def test_lecam_means_stay_where_a_step_failed() -> None:
    means = LecamEma(0.9)
    means.update(torch.tensor(10.0), torch.tensor(-20.0), NO)

    assert (float(means.real), float(means.fake)) == (0, 0)


@pytest.mark.parametrize("distance", [GradientDistance(), FeatureDistance(TINY)])
def test_distance_is_zero_of_a_image_to_itself_and_has_a_gradient(distance: nn.Module) -> None:
    images = make_images()
    made = (images + 0.1 * make_images().flip(0)).requires_grad_()

    assert float(distance(images, images).detach()) == 0
    distance(images, made).backward()
    assert made.grad is not None
    assert float(made.grad.abs().sum()) > 0


def test_collapse_is_told_after_several_reports_in_a_row() -> None:
    watch = CodebookMonitor(CodebookAlarmConfig(below=0.5, windows=2, stops=True))
    low = {"codebook_evenness": 0.1, "codebook_perplexity": 2.0, "dead_codes": 60.0}

    assert not watch(low)
    assert not watch({**low, "codebook_evenness": 0.9})
    assert not watch(low)
    (finding,) = watch(low)
    assert (finding.code, finding.severity) == ("model.codebook_collapsed", "error")


def test_collapse_is_told_where_every_image_has_the_same_codes() -> None:
    watch = CodebookMonitor(CodebookAlarmConfig(below=0.02, windows=1))
    even = {"codebook_evenness": 0.9, "codebook_perplexity": 16.0, "dead_codes": 0.0}

    assert not watch({**even, "codes_differ": 0.5})
    (finding,) = watch({**even, "codes_differ": 0.0})
    assert (finding.code, finding.severity) == ("model.codebook_collapsed", "warning")


@pytest.mark.parametrize(
    "keys",
    [
        {"norm_groups": 7},
        {"image_size": 250},
        {"losses": {"perceptual_loss": "vqgan"}},
    ],
)
def test_configuration_without_a_meaning_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VqganConfig.model_validate(keys)


def test_no_discriminator_is_built_that_weighs_nothing() -> None:
    assert not PixelLossConfig(discriminator_weight=0).adversarial
