"""TiTok: sizes and formulas of the published models."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

from tests.builders.errors import fails
from tests.builders.tokenizers import (
    PIXELS,
    QUANTIZER,
    SIDE,
    PlainTitok,
    open_titok,
    tiny_titok,
)
from vlatool.models.base import Objective, Part, StepContext
from vlatool.models.rng import PerSampleRng
from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.model import Titok, latent_columns, posterior, unpatched
from vlatool.models.titok.objective import TeacherCodeCache, make_objective
from vlatool.models.titok.spec import TitokType
from vlatool.models.vqgan.model import Vqgan
from vlatool.models.vqgan.objective import published_groups

VARIANTS = {"l32": ("large", 32), "b64": ("base", 64), "s128": ("small", 128)}
CONTINUOUS = {"quantizer": {"type": "kl", "token_size": 4}}
RELEASED_VQ = {"type": "vq", "codebook_size": 8192, "token_size": 64, "use_l2_norm": False}
RELEASED_KL = {"type": "kl", "token_size": 16}
# Codes of two images of the reference, with the released L-32 weights.
GOLDEN = {
    "ILSVRC2012_val_00010240": "887 3979 349 720 2809 2743 2101 603 2205 1508 1891 4015 1317 2956 "
    "3774 2296 484 2612 3472 2330 3140 3113 1056 3779 654 2360 1901 2908 2169 953 1326 2598",
    "ILSVRC2012_val_00008636": "1255 2603 982 2222 643 1426 866 4094 296 1422 398 764 3670 1265 "
    "3986 759 1039 3962 2373 2337 1372 4050 4012 3644 2624 3735 1539 1289 2817 2985 2550 2972",
}


def released(size: str, **keys: Any) -> Titok:
    """A network of a published size, on the meta device."""
    with torch.device("meta"):
        tree = {"image_size": 256, "encoder": size, "decoder": size, **keys}
        return Titok(TitokConfig.model_validate(tree))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_images(number: int = 3) -> torch.Tensor:
    return torch.rand(number, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("variant", "stage", "tensors", "count", "trained"),
    [
        ("l32", 1, 603, 610_314_252, 610_314_252),
        ("l32", 2, 692, 641_054_735, 337_562_627),
        ("b64", 1, 315, 174_073_612, 174_073_612),
        ("b64", 2, 404, 204_814_095, 118_811_139),
        ("s128", 1, 219, 52_934_156, 52_934_156),
        ("s128", 2, 308, 83_674_639, 57_741_315),
    ],
)
def test_two_stage_models_have_the_published_tensors(
    variant: str, stage: int, tensors: int, count: int, trained: int
) -> None:
    size, latents = VARIANTS[variant]
    model = released(size, num_latent_tokens=latents, stage=stage)
    model.freeze_tokens(frozen=stage == 2)

    assert (len(model.state_dict()), parameters(model)) == (tensors, count)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize(
    ("encoder", "latents", "quantizer", "tensors", "count"),
    [
        ("base", 64, RELEASED_VQ, 459, 390_016_148),
        ("base", 128, RELEASED_VQ, 459, 390_179_988),
        ("small", 256, RELEASED_VQ, 411, 330_260_884),
        ("large", 32, RELEASED_KL, 602, 606_879_604),
        ("base", 64, RELEASED_KL, 458, 389_418_100),
        ("base", 128, RELEASED_KL, 458, 389_581_940),
    ],
)
def test_single_stage_models_have_the_published_tensors(
    encoder: str, latents: int, quantizer: dict[str, Any], tensors: int, count: int
) -> None:
    model = released(
        "large",
        encoder=encoder,
        num_latent_tokens=latents,
        quantizer=quantizer,
        decoder_head="pixel",
        latent_layout="aligned",
    )

    assert (len(model.state_dict()), parameters(model)) == (tensors, count)


@pytest.mark.parametrize(("number", "width"), [(32, 1024), (64, 768), (128, 512)])
def test_legacy_layout_takes_a_slice_of_every_latent_token(number: int, width: int) -> None:
    tokens = torch.randn(2, number, width)
    columns = latent_columns(tokens, legacy=True)[:, :, 0]

    per_token = width // number
    for w, k in ((0, 0), (1, 5), (per_token, 7), (width - 1, number - 1)):
        token, channel = w // per_token, (w % per_token) * number + k
        assert torch.equal(columns[:, w, k], tokens[:, token, channel])
    aligned = latent_columns(tokens, legacy=False)[:, :, 0]  # takes one token
    assert torch.equal(aligned, tokens.transpose(1, 2))


def test_pixel_head_has_colors_last() -> None:
    side, grid = 4, 3
    values = torch.randn(2, side * side * 3, grid, grid)
    images = unpatched(values, side)

    for p1, p2, c, row, column in ((0, 0, 0, 0, 0), (1, 2, 1, 2, 0), (3, 3, 2, 1, 2)):
        expected = values[:, (p1 * side + p2) * 3 + c, row, column]
        assert torch.equal(images[:, c, row * side + p1, column * side + p2], expected)


@pytest.mark.parametrize("layout", ["legacy", "aligned"])
def test_model_computes_the_plain_formulas(layout: str) -> None:
    torch.manual_seed(0)
    model = Titok(tiny_titok(latent_layout=layout))
    plain, images = PlainTitok(model), make_images()

    assert torch.equal(model.codes(images), plain.codes(images))
    torch.testing.assert_close(model(images).logits, plain.logits(images), atol=2e-6, rtol=1e-5)


def test_gradients_are_those_of_the_plain_formulas() -> None:
    """The last blocks compute only the outputs that are used."""
    torch.manual_seed(0)
    model, images = Titok(tiny_titok()), make_images()
    plain = PlainTitok(model)
    parameters = model.encoder.patch_embed.weight, model.decoder.mask_token

    gradients = torch.autograd.grad(model(images).logits.square().sum(), parameters)
    expected = torch.autograd.grad(plain.logits(images).square().sum(), parameters)

    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)


def test_pixels_are_decoded_from_the_expected_code_of_the_teacher() -> None:
    torch.manual_seed(0)
    model, images = Titok(tiny_titok(stage=2)), make_images()
    vectors = model.encode(images).vectors
    shares = model.decoder(vectors).softmax(1)
    table = model.pixel_quantize.embedding.weight
    features = torch.einsum("bnhw,nd->bdhw", shares, table)

    torch.testing.assert_close(model.decode(vectors), model.pixel_decoder(features))
    decoded = model.decode_codes(model.codes(images)[:, None])
    torch.testing.assert_close(decoded, model(images).pixels, atol=1e-4, rtol=0)


def test_continuous_tokens_have_their_mean_noise_and_divergence() -> None:
    torch.manual_seed(0)
    model, images = Titok(tiny_titok(**(PIXELS | CONTINUOUS))), make_images()
    mean = model.encoder(images, model.latent_tokens)[..., :4]
    assert torch.equal(model.encode(images).vectors, mean)

    features = torch.tensor([[[1.0, -2.0, 0.0, 2 * np.log(3.0)]]])
    noisy = posterior(features, torch.ones(1, 1, 2)).vectors
    assert torch.allclose(noisy, torch.tensor([[[2.0, 1.0]]]))
    # The divergence is summed over tokens and averaged over images.
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert float(posterior(features, None).penalty) == pytest.approx((0.5 + 2.0) / 2)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        (torch.full((1, 8), 64), "data.mismatch"),
        (torch.full((1, 8), -1), "data.mismatch"),
        (torch.zeros(1, 8), "data.mismatch"),
        (torch.zeros(1, 7, dtype=torch.int64), "data.mismatch"),
    ],
)
def test_invalid_codes_raise_an_error(codes: torch.Tensor, code: str) -> None:
    with fails(code):
        Titok(tiny_titok()).decode_codes(codes)


@pytest.mark.parametrize(
    "keys",
    [
        {"decoder_head": "pixel", "stage": 2},
        {"quantizer": {"type": "kl"}},
        {"encoder": "huge"},
        {"num_latent_tokens": 0},
        {"image_size": 15},
    ],
)
def test_invalid_combinations_raise_an_error(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny_titok(**keys)


@pytest.mark.parametrize(
    ("stage", "decayed", "undecayed"),
    [(1, (195, 608_186_368), (408, 2_127_884)), (2, (130, 336_645_504), (261, 917_123))],
)
def test_weights_that_decay_are_the_published_ones(
    stage: int, decayed: tuple[int, int], undecayed: tuple[int, int]
) -> None:
    model = released("large", stage=stage)
    model.freeze_tokens(frozen=stage == 2)
    groups = published_groups({"model": model})
    trained = [[p for p in group.params if p.requires_grad] for group in groups]

    assert [group.decays for group in groups] == [True, False]
    sizes = [(len(group_params), sum(p.numel() for p in group_params)) for group_params in trained]
    assert sizes == [decayed, undecayed]


@pytest.mark.skipif("VLATOOL_TITOK_L32" not in os.environ, reason="needs the released weights")
@pytest.mark.parametrize("name", GOLDEN)
def test_released_weights_give_the_published_codes(name: str) -> None:
    """VLATOOL_TITOK_L32: the file or folder; VLATOOL_TITOK_PICTURES: the folder of the PNGs."""
    _, model = open_titok(os.environ["VLATOOL_TITOK_L32"])
    (path,) = Path(os.environ["VLATOOL_TITOK_PICTURES"]).glob(f"{name}*")
    pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    with torch.no_grad():
        codes = model.codes(pixels[None].float() / 255)

    assert codes[0].tolist() == [int(code) for code in GOLDEN[name].split()]


def test_teacher_is_called_for_batches_with_a_new_image() -> None:
    cache, pixels = TeacherCodeCache(1024), torch.arange(3.0).view(3, 1, 1, 1)
    calls: list[float] = []

    def teacher(batch: torch.Tensor) -> torch.Tensor:
        calls.extend(batch.flatten().tolist())
        return batch.flatten(1).long() + 1000

    cache.codes([b"0", b"1"], pixels[:2], teacher)
    cache.codes([b"2", b"1"], pixels[1:].flip(0), teacher)
    result = cache.codes([b"2", b"1", b"0"], pixels.flip(0), teacher)

    assert calls == [0, 1, 2, 1]
    assert result.tolist() == [[1002], [1001], [1000]]


def test_codes_of_a_teacher_in_bfloat16_are_compared_with_those_in_float32() -> None:
    torch.manual_seed(0)
    config = tiny_titok(teacher_precision="bfloat16")
    parts = {"model": Part(Titok(config)), "teacher": Part(Vqgan(config.vqgan), trained=False)}
    modules = {name: part.module for name, part in parts.items()}
    objective = make_objective(config, parts)
    ctx = StepContext(0, PerSampleRng(lambda _: torch.Generator(), range(3), 3), modules)
    batch = objective.prepare({"images": (make_images() * 255).to(torch.uint8)}, ctx)
    agreement = float(objective.loss("main", batch, ctx).sums["teacher_agreement"]) / 3

    exact = modules["teacher"].codes(batch["pixels"][:1])  # pyright: ignore[reportCallIssue]
    assert agreement == pytest.approx(float((exact == batch["targets"][:1]).float().mean()))
    assert not objective.check_metrics({"teacher_agreement": 0.99})
    (finding,) = objective.check_metrics({"teacher_agreement": 0.5})
    assert (finding.code, finding.severity) == ("model.teacher_precision", "warning")


@pytest.mark.parametrize("stage", [1, 2])
def test_what_differs_from_the_mean_image_counts_more(stage: int) -> None:
    torch.manual_seed(0)
    losses = {"perceptual_loss": "none", "discriminator_weight": 0}
    plain = tiny_titok(stage=stage, losses=losses)
    config = tiny_titok(stage=stage, losses={**losses, "foreground_weight": 4.0})
    parts = TitokType().build(config)
    modules = {name: part.module for name, part in parts.items()}
    weighted, unweighted = make_objective(config, parts), make_objective(plain, parts)
    ctx = StepContext(0, PerSampleRng(lambda _: torch.Generator(), range(4), 4), modules)
    images = torch.full((4, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    images[0, :, :4, :4] = 200  # one patch of one image
    batch = weighted.prepare({"images": images}, ctx)

    def error(objective: Objective) -> float:
        return float(objective.loss("main", batch, ctx).sums["reconstruction_loss"])

    assert error(weighted) == pytest.approx(error(unweighted))
    weighted.update_buffers("main", weighted.loss("main", batch, ctx).sums, torch.tensor(True))
    output = modules["model"](batch["pixels"])
    patch = 100 / 255 * torch.tensor([3 / 4, 1 / 4, 1 / 4, 1 / 4])  # difference from the mean
    if stage == 1:
        terms = cross_entropy(output.logits.flatten(2), batch["targets"], reduction="none")
        expected = terms.mean() * 4 + (4 * patch * terms[:, 0]).sum() / terms.shape[1]
    else:
        terms = (output.pixels - batch["pixels"]).square()
        corner = terms[..., :4, :4].mean((1, 2, 3)) / (SIDE / 4) ** 2
        expected = terms.mean() * 4 + (4 * patch * corner).sum()
    assert error(weighted) == pytest.approx(expected.item(), rel=1e-5)
    assert "background" not in TitokType().build(plain)


@pytest.mark.parametrize("stage", [1, 2])
def test_penalty_of_the_quantizer_counts_by_its_weight(stage: int) -> None:
    losses = {"perceptual_loss": "none", "discriminator_weight": 0}
    totals: list[float] = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        config = tiny_titok(stage=stage, losses={**losses, "quantizer_weight": weight})
        parts = TitokType().build(config)
        modules = {name: part.module for name, part in parts.items()}
        objective = make_objective(config, parts)
        ctx = StepContext(0, PerSampleRng(lambda _: torch.Generator(), range(3), 3), modules)
        batch = objective.prepare({"images": (make_images() * 255).to(torch.uint8)}, ctx)
        loss = objective.loss("main", batch, ctx)
        totals.append(float(loss.total.detach() / loss.count))
        penalty = float(modules["model"](batch["pixels"]).penalty.detach())
    assert totals[1] - totals[0] == pytest.approx(3 * penalty, rel=1e-4)


def test_codebook_of_stage_2_is_not_revived() -> None:
    quantizer = {**QUANTIZER, "revive_after": 5}
    names = [
        set(TitokType().build(tiny_titok(stage=stage, quantizer=quantizer))) for stage in (1, 2)
    ]
    assert "revival" in names[0]
    assert "revival" not in names[1]
