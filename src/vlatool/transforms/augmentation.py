"""Image augmentation: crops and color jitter.

Legend of shapes: H, W size of an image, P = H * W pixels. Source: formats/lbm 5.1; color arithmetic
follows torchvision.transforms.v2, rounding down to whole levels after each change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError

_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
_LEVELS = 255
# From [0, 1] to levels: 1 becomes 255, and every level gets an equal share.
_TO_LEVELS = (_LEVELS + 1 - 1e-3) / _LEVELS
_SEXTANTS = 6


@dataclass(frozen=True)
class Box:
    """Crop of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: UInt8Array) -> UInt8Array:
        """The crop of [H, W, 3], a view."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def central_box(size: tuple[int, int], shape: Sequence[float]) -> Box:
    """Center crop of an image of `size`; arguments as in `random_box`."""
    height, width = _box_size(size, shape)
    return Box(round((size[0] - height) / 2), round((size[1] - width) / 2), height, width)


def random_box(size: tuple[int, int], shape: Sequence[float], rng: np.random.Generator) -> Box:
    """Crop with a uniformly random corner.

    Args:
        size: (height, width) of the image.
        shape: (height, width) of the crop in pixels; if both are at most 1, shares of the image.
        rng: Generator of the corner.
    """
    height, width = _box_size(size, shape)
    top, left = rng.integers(0, [size[0] - height + 1, size[1] - width + 1]).tolist()
    return Box(top, left, height, width)


def _box_size(size: tuple[int, int], shape: Sequence[float]) -> tuple[int, int]:
    if max(shape) <= 1:
        return max(int(size[0] * shape[0]), 1), max(int(size[1] * shape[1]), 1)
    height = int(shape[0])
    width = int(shape[1])
    if height > size[0] or width > size[1]:
        raise DataError(
            f"an image of {size[0]} x {size[1]} (height x width) is smaller than the crop "
            f"of {height} x {width}",
            hint="lower data.augmentation.image.crop.shape, or preprocess with a larger "
            "--resize-images-size",
            code="data.mismatch",
        )
    return height, width


@dataclass(frozen=True)
class ColorJitter:
    """Ranges of color jitter: factors from `1 - x` to `1 + x`, and hue shifts in turns."""

    brightness: float
    contrast: float
    saturation: float
    hue: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Change to factor or shift, in random order.

        Empty ranges, which would not change the image, are omitted.
        """
        changes: dict[str, float] = {}
        if any(self.hue):
            changes["hue"] = float(rng.uniform(*self.hue))
        for name in ("brightness", "contrast", "saturation"):
            width: float = getattr(self, name)
            if width:
                changes[name] = float(rng.uniform(max(0.0, 1 - width), 1 + width))
        names = list(changes)
        return {names[index]: changes[names[index]] for index in rng.permutation(len(names))}


def apply_color_jitter(pixels: UInt8Array, changes: Mapping[str, float]) -> None:
    """Changes the colors of uint8 [H, W, 3] in place."""
    planes = np.moveaxis(pixels, -1, 0).reshape(3, -1).astype(np.float32)
    for name, amount in changes.items():
        if name == "hue":
            _shift_hue(planes, amount)
        elif name == "brightness":
            planes *= np.float32(amount)
        elif name == "contrast":
            mean = float(_gray(planes).mean(dtype=np.float64))
            planes *= np.float32(amount)
            planes += np.float32((1 - amount) * mean)
        else:
            gray = _gray(planes)
            gray *= np.float32(1 - amount)
            planes *= np.float32(amount)
            planes += gray
        np.clip(planes, 0, _LEVELS, out=planes)
        np.floor(planes, out=planes)
    pixels[...] = np.moveaxis(planes.reshape(3, *pixels.shape[:2]), 0, -1)


def _gray(planes: Array) -> Array:
    """Gray levels float32 [P], rounded down."""
    return np.floor(np.asarray(_GRAY_WEIGHTS, np.float32) @ planes)


def _shift_hue(planes: Array, turns: float) -> None:
    """Shifts the hue; the largest and the smallest of the three values of a pixel stay."""
    hue, low, chroma = _hue(planes)
    hue += np.float32(_SEXTANTS * turns)
    hue -= np.float32(_SEXTANTS) * np.floor(hue * np.float32(1 / _SEXTANTS))
    for plane, middle in zip(planes, (0, 2, 4), strict=True):
        # A value is highest within a sixth of its own hue, and lowest beyond two.
        away = np.abs(hue - np.float32(middle))
        np.minimum(away, np.float32(_SEXTANTS) - away, out=away)
        np.subtract(np.float32(2), away, out=away)
        np.clip(away, 0, 1, out=away)
        np.multiply(away, chroma, out=away)
        np.add(away, low, out=plane)
    planes *= np.float32(_TO_LEVELS)


def _hue(planes: Array) -> tuple[Array, Array, Array]:
    """Hue float32 [P] in sixths of a turn from 0, lowest value, highest minus lowest value.

    The highest value is found by two branch-free swaps: green with blue, and red with the higher
    of them.
    """
    red, green, blue = planes
    first = (green < blue).astype(np.float32)
    high = np.maximum(green, blue)
    rest = np.minimum(green, blue)
    second = (red < high).astype(np.float32)
    top = np.maximum(red, high)
    middle = np.minimum(red, high)
    low = np.minimum(middle, rest)
    top -= low
    # -6 after the first swap only; after the second -2 minus that.
    offset = first * np.float32(2 * _SEXTANTS)
    offset -= np.float32(2)
    offset *= second
    offset -= np.float32(_SEXTANTS) * first
    middle -= rest
    middle /= np.maximum(top, np.float32(1))  # values are integers: none is between 0 and 1
    middle += offset
    return np.abs(middle, out=middle), low, top
