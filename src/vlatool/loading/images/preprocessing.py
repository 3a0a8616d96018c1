"""Preprocessing of an image to the square that a model expects."""

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.transforms.resampling import resampled


def prepare_image(
    image: UInt8Array, rule: ImagePreprocessing, rng: np.random.Generator | None = None
) -> UInt8Array:
    """Resizes and crops an image uint8 [H, W, 3] to [S, S, 3], where S is `crop_size`.

    Args:
        image: Decoded image.
        rule: Preprocessing options.
        rng: Generator for the random crop and flip; None: center crop, no flip. It always yields
            three numbers, so that later random choices for a sample do not depend on image sizes.
    """
    random = None if rng is None else rng.random(3)
    size = rule.crop_size
    scaled = _scaled_size(image.shape[0], image.shape[1], rule)
    margin = scaled[0] - size, scaled[1] - size
    if rule.random_crop and random is not None:
        offset = int(random[0] * (margin[0] + 1)), int(random[1] * (margin[1] + 1))
    else:
        offset = round(margin[0] / 2), round(margin[1] / 2)
    if scaled == image.shape[:2]:
        top, left = offset
        cropped = image[top : top + size, left : left + size]
    else:
        cropped = resampled(image, scaled, offset, (size, size), rule.resize_filter)
    if rule.random_flip and random is not None and random[2] < 0.5:
        cropped = cropped[:, ::-1]
    return np.ascontiguousarray(cropped)


def checked_image(image: Array, name: str) -> UInt8Array:
    """Returns the image unchanged if it is uint8 [H, W, 3]; does not read its pixels.

    Raises:
        DataError: The dtype, number of channels or shape is wrong; the message has `name`.
    """
    hints = {
        2: "repeat a grayscale image three times along a new last axis",
        3: "convert grayscale or RGBA images to RGB first",
    }
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        reason = "expected an RGB image [H, W, 3]"
        hint = hints.get(image.ndim, "pass one image at a time")
    elif image.dtype != np.uint8:
        reason = "expected dtype uint8"
        hint = "convert values in [0, 1] to uint8: round(255 * x)"
    else:
        return image
    raise DataError(
        f"{name}: image is {image.dtype} {list(image.shape)}, {reason}",
        hint=hint,
        code="data.not_an_image",
        details={"sample": name},
    )


def _scaled_size(height: int, width: int, rule: ImagePreprocessing) -> tuple[int, int]:
    """(height, width) after the resize; the longer edge is rounded down, as in published code."""
    if rule.resize == "squash":
        return rule.crop_size, rule.crop_size
    edge = rule.shorter_edge
    if height <= width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge
