"""A picture to the square that a model sees, by the rule that is kept beside its weights."""

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.transforms.resampling import resampled


def prepare_image(
    image: UInt8Array, rule: ImagePreprocessing, rng: np.random.Generator | None = None
) -> UInt8Array:
    """The picture uint8 [S, S, 3] of `crop_size` S from uint8 [H, W, 3].

    Args:
        image: As decoded.
        rule: How; by chance only where `rng` is given.
        rng: Always asked for three numbers, so that a sample's later draws do not depend on sizes.
    """
    drawn = None if rng is None else rng.random(3)
    size = rule.crop_size
    scaled = _scaled(image.shape[0], image.shape[1], rule)
    room = scaled[0] - size, scaled[1] - size
    if rule.random_crop and drawn is not None:
        offset = int(drawn[0] * (room[0] + 1)), int(drawn[1] * (room[1] + 1))
    else:
        offset = round(room[0] / 2), round(room[1] / 2)
    if scaled == image.shape[:2]:
        top, left = offset
        window = image[top : top + size, left : left + size]
    else:
        window = resampled(image, scaled, offset, (size, size), rule.resize_filter)
    if rule.random_flip and drawn is not None and drawn[2] < 0.5:
        window = window[:, ::-1]
    return np.ascontiguousarray(window)


def checked_image(image: Array, name: str) -> UInt8Array:
    """The picture itself, if it is uint8 [H, W, 3]; cheap.

    Raises:
        DataError: It is of another type, number of channels or shape; names it.
    """
    told = f"{image.dtype} {list(image.shape)}"
    hints = {
        2: "a grey picture has no channels: repeat it three times",
        3: "grey or with alpha: convert it to RGB first",
    }
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        reason, hint = "is no RGB picture [H, W, 3]", hints.get(image.ndim, "give one at a time")
    elif image.dtype != np.uint8:
        reason = "is not of bytes"
        hint = "give uint8 values of 0 to 255: round(255 * x) of numbers in [0, 1]"
    else:
        return image
    raise DataError(
        f"{name}: {told} {reason}", hint=hint, code="data.not_an_image", details={"sample": name}
    )


def _scaled(height: int, width: int, rule: ImagePreprocessing) -> tuple[int, int]:
    """Size after the resize; the longer edge is cut to whole pixels, as the published one is."""
    if rule.resize == "squash":
        return rule.crop_size, rule.crop_size
    edge = rule.shorter_edge
    if height <= width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge
