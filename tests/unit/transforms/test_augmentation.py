"""Crops, and color changes against slow formulas. Source: formats/lbm 5.1."""

import colorsys
import math

import numpy as np
import pytest

from vlatool.errors import DataError
from vlatool.transforms import augmentation


def image(seed: int = 0) -> np.ndarray:
    """Random levels, with gray, black, white and pure colors among them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    pixels[0] = pixels[0, :, :1]
    pixels[1, :5] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    pixels[2, :4] = [[9, 9, 3], [9, 3, 9], [3, 9, 9], [3, 3, 9]]
    return pixels


def gray(pixel: np.ndarray) -> int:
    red, green, blue = map(float, pixel)
    return math.floor(0.2989 * red + 0.587 * green + 0.114 * blue)


def levels(values: list[float]) -> list[int]:
    return [math.floor(min(max(value, 0.0), 255.0)) for value in values]


def slow(pixels: np.ndarray, name: str, amount: float) -> np.ndarray:
    """Image after one change, computed pixel by pixel."""
    mean = np.mean([gray(pixel) for row in pixels for pixel in row])
    result = np.empty_like(pixels)
    for y, row in enumerate(pixels):
        for x, pixel in enumerate(row):
            if name == "hue":
                hue, saturation, brightness = colorsys.rgb_to_hsv(*(pixel / 255))
                rgb = colorsys.hsv_to_rgb((hue + amount) % 1, saturation, brightness)
                result[y, x] = levels([255.999 * level for level in rgb])
            else:
                other = {"brightness": 0.0, "contrast": mean, "saturation": gray(pixel)}[name]
                mixed = [amount * float(level) + (1 - amount) * other for level in pixel]
                result[y, x] = levels(mixed)
    return result


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("brightness", 0.8),
        ("brightness", 1.37),
        ("contrast", 0.61),
        ("contrast", 1.4),
        ("saturation", 0.0),
        ("saturation", 1.19),
        ("hue", 0.05),
        ("hue", -0.05),
        ("hue", 0.5),
        ("hue", -0.31),
    ],
)
def test_color_changes_equal_the_formula(name: str, amount: float) -> None:
    pixels = image()
    expected = slow(pixels, name, amount)

    augmentation.apply_color_jitter(pixels, {name: amount})

    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 1  # single precision may round the other way
    assert (difference > 0).mean() < 0.02


def test_changes_are_made_in_the_order_they_are_given() -> None:
    changes = {"contrast": 1.4, "hue": 0.05, "brightness": 0.8}
    expected, pixels = image(), image()
    for name, amount in changes.items():
        expected = slow(expected, name, amount)

    augmentation.apply_color_jitter(pixels, changes)

    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_random_changes_are_in_their_ranges_in_any_order() -> None:
    ranges = augmentation.ColorJitter(0.2, 0.4, 1.5, (-0.05, 0.02))
    rng = np.random.default_rng(1)

    drawn = [ranges.draw(rng) for _ in range(300)]

    for name, low, high in (
        ("brightness", 0.8, 1.2),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.0, 2.5),
        ("hue", -0.05, 0.02),
    ):
        values = [changes[name] for changes in drawn]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    assert len({tuple(changes) for changes in drawn}) == 24
    assert augmentation.ColorJitter(0, 0, 0, (0, 0)).draw(rng) == {}


@pytest.mark.parametrize(
    ("size", "shape", "box"),
    [
        ((384, 384), (224, 224), augmentation.Box(80, 80, 224, 224)),
        ((5, 8), (2, 3), augmentation.Box(2, 2, 2, 3)),  # halves are rounded to even
        ((7, 9), (7, 9), augmentation.Box(0, 0, 7, 9)),
        ((10, 11), (0.5, 1.0), augmentation.Box(2, 0, 5, 11)),
    ],
)
def test_central_box(
    size: tuple[int, int], shape: tuple[float, float], box: augmentation.Box
) -> None:
    assert augmentation.central_box(size, shape) == box


def test_random_boxes_reach_every_valid_corner_and_shares_are_rounded_down() -> None:
    rng = np.random.default_rng(0)

    boxes = {augmentation.random_box((5, 6), (3, 5), rng) for _ in range(200)}

    assert boxes == {augmentation.Box(top, left, 3, 5) for top in range(3) for left in range(2)}

    box = augmentation.random_box((9, 7), (0.5, 0.99), np.random.default_rng(0))

    assert (box.height, box.width) == (4, 6)


def test_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        augmentation.central_box((224, 200), (224, 224))

    assert caught.value.code == "data.mismatch"
