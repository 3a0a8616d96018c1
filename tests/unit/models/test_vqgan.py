"""MaskGIT-VQGAN and its losses."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from tests.builders.tokenizers import NETWORK, SIDE
from vlatool.models.base import Part, StepContext
from vlatool.models.rng import PerSampleRng
from vlatool.models.vqgan.config import (
    CodebookAlarmConfig,
    PixelLossConfig,
    VqganConfig,
    VqganNetworkConfig,
)
from vlatool.models.vqgan.losses import (
    BlurDown,
    Discriminator,
    FeatureDistance,
    GradientDistance,
    LecamEma,
    hinge,
    loss_parts,
)
from vlatool.models.vqgan.model import ResidualBlock, Vqgan, VqganDecoder, VqganEncoder
from vlatool.models.vqgan.objective import (
    CodebookMonitor,
    PixelObjective,
    mean_metrics,
    published_groups,
)

YES, NO = torch.tensor(True), torch.tensor(False)
TINY = VqganNetworkConfig.model_validate(NETWORK)


def sizes(module: nn.Module) -> tuple[int, int]:
    return len(module.state_dict()), sum(p.numel() for p in module.parameters())


def make_images(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("part", "tensors", "parameters"),
    [(VqganEncoder, 79, 23_775_104), (VqganDecoder, 88, 30_478_339), (Vqgan, 168, 54_515_587)],
)
def test_network_has_the_published_tensors(
    part: type[nn.Module], tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        assert sizes(part(VqganNetworkConfig())) == (tensors, parameters)


def test_decoder_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            k: tuple(v.shape) for k, v in VqganDecoder(VqganNetworkConfig()).state_dict().items()
        }

    assert shapes["conv_in.weight"] == (512, 256, 3, 3)
    assert shapes["mid.1.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["up.1.block.0.conv1.weight"] == (128, 256, 3, 3)
    assert shapes["up.1.block.0.nin_shortcut.weight"] == (128, 128, 1, 1)
    assert shapes["up.3.upsample_conv.bias"] == (256,)
    assert shapes["up.4.block.1.norm2.bias"] == (512,)
    assert shapes["conv_out.weight"] == (3, 128, 3, 3)
    assert "up.0.upsample_conv.weight" not in shapes
    assert "up.4.block.0.nin_shortcut.weight" not in shapes


def test_code_kernel_is_that_of_the_resolution_of_the_codes_alone() -> None:
    config = TINY.model_copy(update={"code_kernel": 1})
    sides = {k: v.shape[-1] for k, v in VqganEncoder(config).state_dict().items() if ".conv" in k}
    coarsest = f"down.{len(TINY.channel_mult) - 1}."

    assert {name for name in sides if sides[name] == 1} == {
        name for name in sides if name.startswith((coarsest, "mid."))
    }
    assert Vqgan(config)(make_images()).pixels.shape == make_images().shape


def test_discriminator_has_the_published_tensors() -> None:
    module = Discriminator()
    decayed = published_groups({"discriminator": module})[0].params

    assert sizes(module)[1] == 1_909_889
    assert (len(decayed), sum(p.numel() for p in decayed)) == (6, 1_906_560)
    assert {"block_in.0.weight", "blocks.2.1.kernel", "to_logits.2.bias"} <= {*module.state_dict()}


def test_input_of_the_shortcut_is_the_residual_if_the_width_changes() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(8, 16, 4), torch.randn(1, 8, 5, 5)
    residual = functional.silu(functional.group_norm(x, 4, eps=1e-6))
    residual = functional.conv2d(residual, block.conv1.weight, padding=1)
    residual = functional.silu(functional.group_norm(residual, 4, eps=1e-6))
    residual = functional.conv2d(residual, block.conv2.weight, padding=1)
    expected = residual + functional.conv2d(residual, block.nin_shortcut.weight)

    torch.testing.assert_close(block(x), expected)


def test_norms_have_the_published_epsilons() -> None:
    # Source: reference/titok 1.8, 4.3
    for network, epsilon in ((Vqgan(TINY), 1e-6), (Discriminator(32), 1e-5)):
        norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert {norm.eps for norm in norms} == {epsilon}


def test_block_of_one_width_adds_its_input() -> None:
    block, x = ResidualBlock(8, 8, 4), torch.randn(1, 8, 5, 5)
    nn.init.zeros_(block.conv2.weight)

    assert torch.equal(block(x), x)


def test_codes_are_row_major_and_decode_to_the_reconstruction() -> None:
    torch.manual_seed(0)
    model, images = Vqgan(TINY), make_images()
    codes = model.codes(images)
    nearest = torch.cdist(
        model.encoder(images).permute(0, 2, 3, 1).flatten(1, 2), model.quantize.embedding.weight
    ).argmin(-1)

    assert torch.equal(codes, nearest)
    decoded = model.decode_codes(codes)
    torch.testing.assert_close(decoded, model(images).pixels.clamp(0, 1), atol=1e-4, rtol=0)
    assert torch.equal(decoded, model.decode_codes(codes.unflatten(1, (4, 4))))


def test_blur_halves_with_a_kernel_that_sums_to_one() -> None:
    blur = BlurDown()
    blurred = blur(torch.ones(1, 2, 8, 8))

    assert blurred.shape == (1, 2, 4, 4)
    assert torch.equal(blurred[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert float(blur.kernel[0, 0, 1, 2]) == 9 / 64


def test_hinge_loss_of_right_logits_is_zero() -> None:
    assert float(hinge(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0]))) == 0
    assert float(hinge(torch.zeros(2), torch.zeros(2))) == 1
    assert Discriminator(32)(torch.rand(1, 3, 256, 256)).shape == (1, 1, 16, 16)  # logits


def test_lecam_compares_with_the_opposite_running_means() -> None:
    means = LecamEma(0.9)
    means.update(torch.tensor(10.0), torch.tensor(-20.0), NO)  # after a failed step
    assert (float(means.real), float(means.fake)) == (0, 0)
    means.update(torch.tensor(10.0), torch.tensor(-20.0), YES)

    assert (float(means.real), float(means.fake)) == (pytest.approx(1.0), pytest.approx(-2.0))
    logits = torch.tensor(0.5), torch.tensor(-1.0)
    assert float(means.distance(*logits, logits)) == pytest.approx((0.5 + 2) ** 2 + (1 + 1) ** 2)
    logits = torch.tensor(-3.0), torch.tensor(2.0)
    assert float(means.distance(*logits, logits)) == 0


def test_lecam_has_the_gradient_of_the_published_term() -> None:
    means = LecamEma(0.9)
    real, fake = torch.tensor(0.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    means.distance(real, fake, (real.detach(), fake.detach())).backward()
    # relu(m_r - E_f)^2 + relu(E_r - m_f)^2 with both running means at 0; reference/titok 4.2
    assert real.grad is not None
    assert fake.grad is not None
    assert (float(real.grad), float(fake.grad)) == (2 * 0.5, -2 * 1.0)


def test_gradient_of_the_discriminator_does_not_depend_on_micro_batches() -> None:
    losses = PixelLossConfig(
        discriminator_start=0, discriminator_channels=32, lecam_regularization_weight=10.0,
        perceptual_loss="none",
    )  # fmt: skip
    images = (make_images(4) * 255).to(torch.uint8)
    gradients: list[list[torch.Tensor]] = []
    for size in (4, 3):
        torch.manual_seed(0)
        parts = {"model": Part(Vqgan(TINY)), **loss_parts(losses, TINY)}
        objective = PixelObjective(
            losses, parts, codebook_size=TINY.codebook_size, alarm=CodebookAlarmConfig()
        )
        rng = PerSampleRng(lambda _: torch.Generator(), range(4), 4)
        ctx = StepContext(0, rng, {name: part.module for name, part in parts.items()})
        batches = [objective.prepare({"images": rows}, ctx) for rows in images.split(size)]
        for name in ("main", "discriminator"):
            results = [objective.loss(name, batch, ctx) for batch in batches]
            sums = {
                key: torch.stack([loss.sums[key] for loss in results]).sum(0)
                for key in results[0].sums
            }
            with torch.no_grad():
                objective.update_buffers(name, sums, YES)
        total = torch.stack([loss.total for loss in results]).sum()
        parameters = list(parts["discriminator"].module.parameters())
        gradients.append(list(torch.autograd.grad(total, parameters)))

    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("distance", [GradientDistance(), FeatureDistance(TINY)])
def test_distance_of_an_image_to_itself_is_zero_and_distance_has_a_gradient(
    distance: nn.Module,
) -> None:
    images = make_images()
    changed = (images + 0.1 * make_images().flip(0)).requires_grad_()

    assert float(distance(images, images).detach()) == 0
    distance(images, changed).backward()
    assert changed.grad is not None
    assert float(changed.grad.abs().sum()) > 0


def test_distance_of_gradients_is_the_sum_over_scales() -> None:
    squares = torch.arange(4.0) ** 2  # 0, 1, 4, 9; halved: 0.5, 6.5
    image = squares[:, None] + 10 * squares
    expected = (3 + 30) + (6 + 60)  # at 4 x 4 and 2 x 2 pixels; one pixel has no gradient
    images = image.expand(1, 3, 4, 4)
    assert float(GradientDistance()(torch.zeros_like(images), images)) == expected


def test_metrics_are_means_over_images() -> None:
    metrics = mean_metrics({"loss": torch.tensor(6.0)}, 3)
    assert metrics["loss"] == 2


def test_collapse_is_reported_after_several_low_logs_or_if_all_images_have_the_same_codes() -> None:
    monitor = CodebookMonitor(CodebookAlarmConfig(below=0.5, windows=2, stops=True))
    low = {"codebook_evenness": 0.1, "codebook_perplexity": 2.0, "dead_codes": 60.0}
    even = {"codebook_evenness": 0.9, "codebook_perplexity": 16.0, "dead_codes": 0.0}

    assert not monitor(low)
    assert not monitor(even)
    assert not monitor(low)
    (finding,) = monitor(low)
    assert (finding.code, finding.severity) == ("model.codebook_collapsed", "error")
    monitor = CodebookMonitor(CodebookAlarmConfig(below=0.02, windows=1))
    assert not monitor({**even, "codes_differ": 0.5})
    (finding,) = monitor({**even, "codes_differ": 0.0})
    assert (finding.code, finding.severity) == ("model.codebook_collapsed", "warning")


@pytest.mark.parametrize(
    "keys",
    [
        {"norm_groups": 7},
        {"image_size": 250},
        {"losses": {"perceptual_loss": "vqgan"}},
    ],
)
def test_invalid_configuration_raises_an_error(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VqganConfig.model_validate(keys)


def test_weights_of_loss_terms_may_be_zero() -> None:
    names = [name for name in PixelLossConfig.model_fields if name.endswith("_weight")]
    assert not PixelLossConfig.model_validate(dict.fromkeys(names, 0)).adversarial
    VqganConfig.model_validate({"commitment_cost": 0})
