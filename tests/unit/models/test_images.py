"""Images to batches and back."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vlatool.errors import DataError
from vlatool.models.images import (
    ImageBatcher,
    comparison,
    psnr,
    to_float,
    to_uint8,
)


@dataclass(frozen=True)
class Sample:
    key: str
    image: np.ndarray


def test_batch_has_channels_first() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    batch = ImageBatcher(4)([Sample("a", image)])

    assert batch["keys"] == ["a"]
    assert np.array_equal(batch["images"][0].permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_image_of_another_shape_raises_an_error(image: np.ndarray) -> None:
    with pytest.raises(DataError) as error:
        ImageBatcher(4)([Sample("a", image)])

    assert (error.value.code, error.value.details["sample"]) == ("data.mismatch", "a")


def test_uint8_is_restored_from_float_which_is_clamped_and_rounded() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    assert torch.equal(to_uint8(to_float(images)), images)
    pixels = torch.tensor([-0.2, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.3])
    assert to_uint8(pixels).tolist() == [0, 0, 0, 1, 255, 255]


def test_comparison_is_original_reconstruction_difference() -> None:
    first, second = torch.full((1, 3, 2, 2), 1.0), torch.full((1, 3, 2, 2), 0.2)

    assert comparison(first, second)[0, 0, :, 0].tolist() == [255, 255, 51, 51, 204, 204]


def test_psnr_of_a_known_error() -> None:
    assert float(psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1))) == pytest.approx(20)
