"""Preprocessing of images."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.builders.errors import fails
from vlatool.loading.images.config import (
    ImageDataConfig,
    ImagePreprocessing,
    checked_image,
    prepare_image,
)


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (65, 50), (20, 31)])
def test_center_crop_is_that_of_the_published_resize_and_crop(height: int, width: int) -> None:
    """Bicubic resize of Pillow, then a center crop. Source: reference/titok 6.1."""
    image = pixels(height, width)
    edges = (32, int(32 * width / height)) if height < width else (int(32 * height / width), 32)
    whole = np.asarray(
        Image.fromarray(image).resize((edges[1], edges[0]), Image.Resampling.BICUBIC)
    )
    top, left = (round((edge - 32) / 2) for edge in edges)
    expected = whole[top : top + 32, left : left + 32].astype(int)
    result = prepare_image(image, ImagePreprocessing(crop_size=32)).astype(int)
    assert np.abs(result - expected).max() <= 1


def test_random_crops_reach_both_ends_and_nothing_else() -> None:
    image = np.zeros((4, 7, 3), np.uint8) + np.arange(7, dtype=np.uint8)[:, None]
    rule = ImagePreprocessing(crop_size=4)
    starts = {int(prepare_image(image, rule, np.random.default_rng(i))[0, 0, 0]) for i in range(60)}
    assert starts == {0, 1, 2, 3}


def test_half_of_the_images_are_flipped_with_random_flip() -> None:
    image = pixels(8, 8)
    rule = ImagePreprocessing(crop_size=8, random_flip=True)
    results = [prepare_image(image, rule, np.random.default_rng(i)) for i in range(200)]
    flips = sum(np.array_equal(result, image[:, ::-1]) for result in results)
    assert 70 < flips < 130


def test_preprocessing_without_randomness_is_deterministic() -> None:
    image, rule = pixels(8, 12), ImagePreprocessing(crop_size=8, random_flip=True)
    rng = np.random.default_rng(3)
    result = prepare_image(image, rule.without_randomness(), rng)
    np.testing.assert_array_equal(result, image[:, 2:10])
    assert ImageDataConfig().preprocessing.random_flip is False
    square = pixels(16, 16)
    rule = ImagePreprocessing(crop_size=16)
    np.testing.assert_array_equal(prepare_image(square, rule, rng), square)


def test_squashing_keeps_every_edge() -> None:
    rule = ImagePreprocessing(resize="squash", crop_size=16, resize_filter="lanczos")
    expected = Image.fromarray(pixels(48, 20)).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(prepare_image(pixels(48, 20), rule), np.asarray(expected))


def test_crop_larger_than_the_image_raises_an_error() -> None:
    with pytest.raises(ValidationError):
        ImagePreprocessing(crop_size=256, resize_shorter_edge=224)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_array_that_is_not_an_rgb_image_raises_an_error(image: np.ndarray) -> None:
    with fails("data.mismatch"):
        checked_image(image, "frame 3")
