"""The pictures of a sample: decoded, cut, varied. Source: formats/lbm 5.1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlatool.artifacts.image import decode_rgb
from vlatool.artifacts.sample import image_suffix
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.robotics.augmentation import ImageAugmentationConfig
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.transforms.augmentation import (
    Box,
    ColorJitter,
    apply_color_jitter,
    central_box,
    random_box,
)

_Size = tuple[int, int]


@dataclass(frozen=True)
class _Variation:
    """What happens to all pictures of a sample that have one size; None: nothing."""

    box: Box | None = None
    colors: Mapping[str, float] | None = None


class ImageDecoder:
    """Decodes the pictures that a data section asks for; one picture at a time is held twice.

    Args:
        config: Data section, derived.
        size: (width, height) that every picture was given in preprocessing; None where it was given
            none.
    """

    def __init__(self, config: RoboticsDataConfig, size: _Size | None = None) -> None:
        # Time outer, camera inner; loaders see the names of members in lower case.
        self._names = [
            image_suffix(camera, index).lower()
            for index in config.image_indices
            for camera in config.camera_names
        ]
        self._size = size
        self._pads = config.pad_missing_images
        section = config.augmentation
        self._section = section.image if section.enabled else ImageAugmentationConfig()
        jitter = self._section.color_jitter
        self._ranges = ColorJitter(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        self._scratch: UInt8Array = np.empty(0, np.uint8)

    def __call__(
        self,
        key: str,
        members: Mapping[str, bytes],
        rng: np.random.Generator,
        buffer: UInt8Array | None = None,
    ) -> tuple[UInt8Array, Array]:
        """Pictures uint8 [N, H, W, 3], black where there is none, and bool [N]: there is one.

        Args:
            key: The sample.
            members: Suffix to content.
            rng: Draws what varies.
            room: uint8 [N, H', W', 3], which is used for them where it fits.

        Raises:
            KeyError: A picture is missing and not padded, or all are.
            ValueError: One is broken, or not of the size that all have.
            DataError: They differ in size, or are too small to be cut.
        """
        real = np.array([not self._pads or name in members for name in self._names], bool)
        images = buffer
        drawn: dict[_Size, _Variation] = {}
        for number, place in enumerate(np.flatnonzero(real).tolist()):
            name = self._names[place]
            pixels = self._decoded(name, members[name], None if images is None else images[place])
            size = pixels.shape[0], pixels.shape[1]
            variation = drawn[size] if size in drawn else self._drawn(size, rng)
            drawn[size] = variation
            kept = pixels if variation.box is None else variation.box.of(pixels)
            if images is None or (number == 0 and images.shape[1:] != kept.shape):
                images = np.empty((len(self._names), *kept.shape), np.uint8)
            if images.shape[1:] != kept.shape:
                raise _sizes_differ(key, list(drawn))
            if not np.may_share_memory(images, kept):
                images[place] = kept
            if variation.colors:
                apply_color_jitter(images[place], variation.colors)
        if images is None or not real.any():
            raise KeyError(next(iter(self._names), "picture"))
        images[~real] = 0
        return images, real

    def _decoded(self, name: str, data: bytes, place: UInt8Array | None) -> UInt8Array:
        """Pixels [H, W, 3], which the next call may overwrite; in their place where they fit."""
        buffer = self._scratch if place is None or self._section.crop.enabled else place
        pixels = decode_rgb(data, buffer.reshape(-1))
        height, width = pixels.shape[:2]
        if self._size not in (None, (width, height)):
            raise ValueError(f"{name} is {width} x {height} pixels, the data are of {self._size}")
        if pixels.size > self._scratch.size:
            self._scratch = np.empty(pixels.size, np.uint8)
        return pixels

    def _drawn(self, size: _Size, rng: np.random.Generator) -> _Variation:
        crop, jitter = self._section.crop, self._section.color_jitter
        box = None
        if crop.enabled and crop.mode == "random":
            box = random_box(size, crop.shape, rng)
        elif crop.enabled:
            box = central_box(size, crop.shape)
        return _Variation(box, self._ranges.draw(rng) if jitter.enabled else None)


def _sizes_differ(key: str, sizes: list[_Size]) -> DataError:
    """Other sizes are no damage: all samples have them."""
    return DataError(
        f"sample {key} has pictures of different (height, width): {sizes}",
        hint="choose with data.camera_names, cut them with data.augmentation.image.crop, or "
        "preprocess with one --resize-images-size",
        code="data.image_sizes_differ",
        details={"sample": key},
    )
