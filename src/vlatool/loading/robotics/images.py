"""Decoding, crop and color jitter of the images of a sample. Source: formats/lbm 5.1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlatool.artifacts.images import decode_rgb
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
class _Augmentation:
    """Crop and color factors of all images of a sample that have the same size; None: no change."""

    box: Box | None = None
    colors: Mapping[str, float] | None = None


class ImageDecoder:
    """Decodes the images that a section `data` configures.

    Args:
        config: Section `data`, derived.
        size: (width, height) of all images; None: preprocessing did not resize them.
    """

    def __init__(self, config: RoboticsDataConfig, size: _Size | None = None) -> None:
        # Time outer, camera inner; suffixes of members are read in lower case.
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
        self._jitter = ColorJitter(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        # Memory of one decoded image; the next image overwrites it.
        self._scratch: UInt8Array = np.empty(0, np.uint8)

    def __call__(
        self,
        key: str,
        members: Mapping[str, bytes],
        rng: np.random.Generator,
        buffer: UInt8Array | None = None,
    ) -> tuple[UInt8Array, Array]:
        """Decodes and augments the images of a sample.

        Args:
            key: Name of the sample.
            members: Map from suffix to content.
            rng: Generator for the augmentation.
            buffer: Memory uint8 [N, H', W', 3] for the images; used if its shape fits.

        Returns:
            Images uint8 [N, H, W, 3] and mask bool [N]. Missing images are black, and False in the
            mask.

        Raises:
            KeyError: An image is missing and padding is off, or all images are missing.
            ValueError: An image is broken, or its size is not that of all images.
            DataError: The images differ in size, or are smaller than the crop.
        """
        if not self._names:
            return np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, bool)
        mask = np.array([not self._pads or name in members for name in self._names], bool)
        images = buffer
        by_size: dict[_Size, _Augmentation] = {}
        for number, index in enumerate(np.flatnonzero(mask).tolist()):
            name = self._names[index]
            pixels = self._decode(name, members[name], None if images is None else images[index])
            size = pixels.shape[0], pixels.shape[1]
            augmentation = by_size[size] if size in by_size else self._sample(size, rng)
            by_size[size] = augmentation
            cropped = pixels if augmentation.box is None else augmentation.box.of(pixels)
            if images is None or (number == 0 and images.shape[1:] != cropped.shape):
                images = np.empty((len(self._names), *cropped.shape), np.uint8)
            if images.shape[1:] != cropped.shape:
                raise _sizes_differ(key, list(by_size))
            if not np.may_share_memory(images, cropped):
                images[index] = cropped
            if augmentation.colors:
                apply_color_jitter(images[index], augmentation.colors)
        if images is None or not mask.any():
            raise KeyError(next(iter(self._names), "image"))
        images[~mask] = 0
        return images, mask

    def _decode(self, name: str, data: bytes, target: UInt8Array | None) -> UInt8Array:
        """Returns pixels [H, W, 3], in `target` if they fit, else in memory of the decoder."""
        memory = self._scratch if target is None or self._section.crop.enabled else target
        pixels = decode_rgb(data, memory.reshape(-1))
        height, width = pixels.shape[:2]
        if self._size not in (None, (width, height)):
            raise ValueError(f"{name} has size {(width, height)}, expected {self._size}")
        if pixels.size > self._scratch.size:
            self._scratch = np.empty(pixels.size, np.uint8)
        return pixels

    def _sample(self, size: _Size, rng: np.random.Generator) -> _Augmentation:
        """Returns a random augmentation of images of a size (height, width)."""
        crop, jitter = self._section.crop, self._section.color_jitter
        box = None
        if crop.enabled and crop.mode == "random":
            box = random_box(size, crop.shape, rng)
        elif crop.enabled:
            box = central_box(size, crop.shape)
        return _Augmentation(box, self._jitter.draw(rng) if jitter.enabled else None)


def _sizes_differ(key: str, sizes: list[_Size]) -> DataError:
    """Error that ends the run: the sample is not dropped, because all samples have these sizes."""
    return DataError(
        f"sample {key} has images of different sizes (height, width): {sizes}",
        hint="select cameras with data.camera_names, crop with data.augmentation.image.crop, or "
        "preprocess with --resize-images-size",
        code="data.image_sizes_differ",
        details={"sample": key},
    )
