"""Configuration of image shards, and the preprocessing of an image that it describes."""

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from vlatool.config.base import ConfigModel, option, required_field
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.base import LoadingConfig
from vlatool.transforms.geometry import ResizeFilter, resampled


class ImagePreprocessing(ConfigModel):
    """Resize and crop to the square image that a model expects; saved with the weights.

    The defaults are the published values, except for the flip. Source: reference/titok 6.1.
    """

    resize: Literal["shorter_edge", "squash"] = option(
        "shorter_edge",
        "shorter_edge keeps the aspect ratio, then crops; squash resizes both edges to crop_size.",
    )
    resize_shorter_edge: int | None = option(
        None, "Shorter edge in pixels before the crop; null means crop_size.", ge=1
    )
    crop_size: int = option(256, "Edge of the square crop in pixels.", ge=1)
    random_crop: bool = option(
        True, "Crop at a random place during training; false crops the center."
    )
    random_flip: bool = option(
        False,
        "Flip images horizontally with probability 0.5 during training; images of "
        "robots are not symmetric.",
    )
    resize_filter: ResizeFilter = option("bicubic", "Filter of the resize; published: bicubic.")

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.shorter_edge < self.crop_size:
            raise ValueError(
                f"resize_shorter_edge {self.shorter_edge} is less than crop_size {self.crop_size}"
            )
        return self

    @property
    def shorter_edge(self) -> int:
        """Shorter edge in pixels before the crop."""
        return self.resize_shorter_edge or self.crop_size

    def without_randomness(self) -> "ImagePreprocessing":
        """Returns the preprocessing of evaluation and encoding: center crop, no flip."""
        return self.model_copy(update={"random_crop": False, "random_flip": False})


class ImageDataConfig(LoadingConfig):
    """Options of image shards (tar files)."""

    weighted_key: ClassVar[str] = "shards"

    type: Literal["images"] = option(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        "images", "Kind of the training data."
    )
    shards: list[str] = required_field(
        [],
        "Shards of each data set: a folder, a list of shards (.txt), a pattern such as "
        "a-{000..252}.tar or *.tar, or one .tar file, of any scheme.",
        affects_output=False,
    )
    val_shards: list[str] = option(
        [],
        "Shards of each validation data set, written like shards; of a folder, its validation "
        "shards are used.",
        affects_output=False,
    )
    split: Literal["train", "val"] = option("train", "Shard list to read in a folder that has two.")
    preprocessing: ImagePreprocessing = option(ImagePreprocessing(), "Resize, crop and flip.")
    convert_colors: bool = option(
        False,
        "Convert grayscale, palette and RGBA images to RGB, as the published reader does; false "
        "drops and counts them.",
    )


def prepare_image(
    image: UInt8Array, rule: ImagePreprocessing, rng: np.random.Generator | None = None
) -> UInt8Array:
    """Resizes and crops an image uint8 [H, W, 3] to [S, S, 3], where S is `crop_size`.

    Args:
        image: The image.
        rule: Sizes, and what is random.
        rng: Generator for the random crop and flip; None: center crop, no flip. It always yields
            three numbers, so that later random choices for a sample do not depend on image sizes.
    """
    size = rule.crop_size
    height, width = image.shape[:2]
    scaled_height, scaled_width = _scaled_size(height, width, rule)
    top = round((scaled_height - size) / 2)
    left = round((scaled_width - size) / 2)
    is_flipped = False
    if rng is not None:
        down, right, flip = rng.random(3)
        if rule.random_crop:
            top = int(down * (scaled_height - size + 1))
            left = int(right * (scaled_width - size + 1))
        is_flipped = rule.random_flip and flip < 0.5
    if (scaled_height, scaled_width) == (height, width):
        cropped = image[top : top + size, left : left + size]
    else:
        cropped = resampled(
            image, (scaled_height, scaled_width), (top, left), (size, size), rule.resize_filter
        )
    if is_flipped:
        cropped = cropped[:, ::-1]
    return np.ascontiguousarray(cropped)


def checked_image(image: Array, name: str) -> UInt8Array:
    """Returns the image unchanged if it is uint8 [H, W, 3]; does not read its pixels."""
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
        code="data.mismatch",
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
