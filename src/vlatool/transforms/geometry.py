"""Resizing and cropping of a picture together with its intrinsics.

Sizes are (height, width). Source: lbm-data 3.5; pixels with Pillow's Lanczos filter, intrinsics
from the transform that the pixels really undergo.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from vlatool.episode import Array, UInt8Array

ResizeMethod = Literal["center_crop", "resize_no_crop", "resize_fit"]


@dataclass(frozen=True)
class ImageGeometry:
    """How pictures of one size become pictures of another.

    Attributes:
        original: Size of the source.
        scaled: Size the whole source would have after resizing.
        offset: (top, left) of the target inside the scaled picture; negative where the target
            is larger and gets black bars.
        target: Size of the result.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    target: tuple[int, int]

    def apply(self, image: UInt8Array) -> Image.Image:
        """A picture of the target size from uint8 [H, W, 3] of the original size."""
        picture = Image.fromarray(image)
        if self.target == self.original:
            return picture
        top, left = self.offset
        if self.scaled[0] < self.target[0] or self.scaled[1] < self.target[1]:
            canvas = Image.new("RGB", _wide_first(self.target))
            canvas.paste(_resize(picture, self.scaled), (-left, -top))
            return canvas
        return self._resize_surviving_box(picture)

    def _resize_surviving_box(self, picture: Image.Image) -> Image.Image:
        """Resizes only the part of the source that the crop keeps; pixels outside cost nothing."""
        scale_y = self.scaled[0] / self.original[0]
        scale_x = self.scaled[1] / self.original[1]
        top, left = self.offset
        box = (
            left / scale_x,
            top / scale_y,
            (left + self.target[1]) / scale_x,
            (top + self.target[0]) / scale_y,
        )
        return picture.resize(_wide_first(self.target), Image.Resampling.LANCZOS, box=box)

    def intrinsics(self, matrix: Array) -> Array:
        """Pinhole matrices float64 [..., 3, 3] of the result, skew kept.

        A resize scales by the ratio of whole pixel counts and a crop shifts by whole pixels, so
        the result is exact, unlike the published rule, which uses the untruncated size.
        """
        top, left = self.offset
        scale_y = self.scaled[0] / self.original[0]
        scale_x = self.scaled[1] / self.original[1]
        transform = np.array([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1]])
        return transform @ matrix.astype(np.float64)


def make_geometry(
    original: tuple[int, int], target: tuple[int, int] | None, method: ResizeMethod
) -> ImageGeometry:
    """The geometry from `original` to `target`; without a target pictures keep their size."""
    if target is None:
        return ImageGeometry(original, original, (0, 0), original)
    if method == "resize_no_crop":
        return ImageGeometry(original, target, (0, 0), target)
    ratios = (target[0] / original[0], target[1] / original[1])
    if method == "center_crop":
        scale = max(ratios)
        # Truncation may lose the last pixel and would add a black line: cover the target.
        scaled = (
            max(int(original[0] * scale), target[0]),
            max(int(original[1] * scale), target[1]),
        )
        offset = ((scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2)
    else:
        scale = min(ratios)
        scaled = (max(int(original[0] * scale), 1), max(int(original[1] * scale), 1))
        offset = (-((target[0] - scaled[0]) // 2), -((target[1] - scaled[1]) // 2))
    return ImageGeometry(original, scaled, offset, target)


def published_intrinsics(matrix: Array, geometry: ImageGeometry, method: ResizeMethod) -> Array:
    """Intrinsics float64 [..., 3, 3] by the published rule, for `--compat`.

    It uses the untruncated size and a fractional crop and drops skew: up to half a pixel beside
    the pixels. Source: lbm-data 3.5.
    """
    (height0, width0), (height, width) = geometry.original, geometry.target
    ratio_x, ratio_y = width / width0, height / height0
    if method != "resize_no_crop":
        ratio_x = ratio_y = (max if method == "center_crop" else min)(ratio_x, ratio_y)
    centred = method != "resize_no_crop"
    shift_x = (width0 * ratio_x - width) / 2 if centred else 0.0
    shift_y = (height0 * ratio_y - height) / 2 if centred else 0.0
    result = np.zeros(matrix.shape, np.float64)
    result[..., 0, 0] = matrix[..., 0, 0] * ratio_x
    result[..., 1, 1] = matrix[..., 1, 1] * ratio_y
    result[..., 0, 2] = matrix[..., 0, 2] * ratio_x - shift_x
    result[..., 1, 2] = matrix[..., 1, 2] * ratio_y - shift_y
    result[..., 2, 2] = 1.0
    return result


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(_wide_first(size), Image.Resampling.LANCZOS)


def _wide_first(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height), as Pillow has it."""
    return size[1], size[0]
