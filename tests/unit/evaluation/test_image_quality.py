"""Metrics of reconstructed images, against slow formulas."""

import math

import numpy as np
import pytest
import torch

from tests.builders.errors import fails
from vlatool.evaluation.image_metrics import (
    ImageScore,
    ImageScores,
    MeanImageBaseline,
    block_means,
    extremes,
    squared_error,
    ssim,
)
from vlatool.models.images import MAX_PSNR_DB, psnr_of_error


def make_images(seed: int, count: int = 3, height: int = 14, width: int = 13) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8)
    return torch.from_numpy(pixels)


def noisy(images: torch.Tensor) -> torch.Tensor:
    noise = make_images(99, *images.shape[:1], *images.shape[2:]).int() // 8 - 16
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_is_that_of_its_formula() -> None:
    x = make_images(0)
    y = noisy(x)
    for a, b, value in zip(x.double(), y.double(), psnr_of_error(squared_error(x, y)), strict=True):
        error = float(((a - b) ** 2).mean())
        assert float(value) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)
    assert psnr_of_error(squared_error(x, x)).tolist() == [MAX_PSNR_DB] * 3


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel [H, W]. Source: Wang et al. 2004, equation 13."""
    offsets = np.arange(11) - 5.0
    row = np.exp(-(offsets**2) / (2 * 1.5**2))
    w = np.outer(row, row) / row.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
            cov = (w * (a - ma) * (b - mb)).sum()
            luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
            values.append(luminance * (2 * cov + c2) / (va + vb + c2))
    return float(np.mean(values))


def test_ssim_is_that_of_its_formula() -> None:
    x = make_images(1, 2)
    y = noisy(x)
    for a, b, value in zip(x.double().numpy(), y.double().numpy(), ssim(x, y), strict=True):
        expected = np.mean([slow_ssim(a[c], b[c]) for c in range(3)])
        assert float(value) == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    small = make_images(0, 1, 10, 40)
    with fails("data.mismatch"):
        ssim(small, small)


def test_blocks_have_their_mean_color_at_the_border_too() -> None:
    image = torch.arange(3, dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 3, 3) * 10
    assert block_means(image, 2)[0, 0].tolist() == [[5, 5, 20]] * 3


def test_mean_image_has_the_error_of_its_formula() -> None:
    x = make_images(3, 6)
    sums = MeanImageBaseline.of_size(14, 13, torch.device("cpu"))
    sums.add(x[:2])
    sums.add(x[2:])
    error = float((x.double() - x.double().mean(0)).square().mean())
    assert sums.psnr() == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)


def test_means_over_ranks_are_those_of_all_images() -> None:
    ranks = [ImageScores(["psnr", "ssim"]) for _ in range(3)]
    ranks[0].add(["a", "b"], {"psnr": torch.tensor([1.0, 2.0]), "ssim": torch.tensor([0.1, 0.2])})
    ranks[2].add(["c"], {"psnr": torch.tensor([6.0]), "ssim": torch.tensor([0.6])})
    means = ranks[1].means(lambda _: sum(scores.sums() for scores in ranks))  # pyright: ignore[reportArgumentType]
    assert means == pytest.approx({"psnr": 3.0, "ssim": 0.3})
    assert ranks[1].means() == {}


@pytest.mark.parametrize(
    ("images", "chosen"),
    [
        (9, (["8", "7"], ["5", "4"], ["1", "0"])),
        (3, (["2"], ["1"], ["0"])),
        (2, (["1"], [], ["0"])),
        (1, (["0"], [], [])),
        (0, ([], [], [])),
    ],
)
def test_extremes_are_different_images(images: int, chosen: tuple[list[str], ...]) -> None:
    rows = [ImageScore(str(number), {"psnr": float(number)}) for number in range(images)]
    ranked = extremes(rows, "psnr", 2)
    keys = tuple([row.key for row in rows] for rows in (ranked.best, ranked.median, ranked.worst))
    assert keys == chosen
