"""Batches of images, and images of batches, for visual tokenizers.

Legend of shapes: B samples, H height, W width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.models.base import Batch

PEAK = 255.0
# Value for equal images, whose ratio is infinite.
MAX_PSNR_DB = 100.0
# Number of images in a comparison.
_SHOWN = 4


@dataclass(frozen=True)
class ImageBatcher:
    """Stacks square images of one size; picklable."""

    size: int  # height and width that the model expects
    has_digests: bool = False  # add digests of the images to the batch

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Converts samples with attributes `key` and `image` uint8 [H, W, 3].

        Returns images: uint8 [B, 3, H, W]. keys: Names of the samples. digests: With `has_digests`,
        16 bytes per preprocessed image.
        """
        for sample in samples:
            check_image(sample.image, self.size, sample.key)
        stacked = np.stack([sample.image for sample in samples]).transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(stacked))
        batch = {"keys": [sample.key for sample in samples], "images": images}
        if self.has_digests:
            batch["digests"] = [
                hashlib.blake2b(sample.image.tobytes(), digest_size=16).digest()
                for sample in samples
            ]
        return batch


def check_image(image: UInt8Array, size: int, name: str) -> None:
    """Raises a DataError if an image is not uint8 [size, size, 3]."""
    if image.dtype != np.uint8 or image.shape != (size, size, 3):
        raise DataError(
            f"{name}: the image is {image.dtype} {list(image.shape)}, the model expects uint8 "
            f"[{size}, {size}, 3]",
            hint="set the image size of the data, or model.image_size",
            code="data.mismatch",
            details={"sample": name},
        )


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 [B, 3, H, W] to float32 in [0, 1], in channels-last memory format."""
    return images.to(memory_format=torch.channels_last).float() / PEAK


def to_uint8(pixels: Tensor) -> Tensor:
    """Converts pixels [B, 3, H, W] to uint8 of the same shape; values are clamped to [0, 1]."""
    return (pixels.float().clamp(0, 1) * PEAK).round().to(torch.uint8)


def comparison(original: Tensor, reconstruction: Tensor) -> UInt8Array:
    """Original, reconstruction and absolute difference side by side: uint8 [B, H, 3 W, 3];
    `original`: pixels [B, 3, H, W] in [0, 1]; the first 4 are used.
    """
    first = original[:_SHOWN].float()
    second = reconstruction[:_SHOWN].float().clamp(0, 1)
    sides = torch.cat([first, second, (first - second).abs()], dim=3)
    return to_uint8(sides).permute(0, 2, 3, 1).cpu().numpy()


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, after clamping: float32 [B]; `original`:
    pixels [B, 3, H, W] in [0, 1].
    """
    error = (original.float() - reconstruction.float().clamp(0, 1)).square().flatten(1).mean(1)
    return psnr_of_error(error, peak=1.0)


def psnr_of_error(error: Tensor, peak: float = PEAK) -> Tensor:
    """Peak signal-to-noise ratio of mean squared errors, in dB; at most `MAX_PSNR_DB`; `error`:
    errors of bytes, or of values up to `peak`.
    """
    return (10 * (peak**2 / error).log10()).clamp(max=MAX_PSNR_DB)


def example_images(size: int, number: int) -> Batch:
    """Returns a made-up batch: different images of smooth colors with a bright bar."""
    axis = torch.linspace(0, 1, size)
    rows = axis[None, :, None]
    columns = axis[None, None, :]
    phase = torch.arange(number)[:, None, None] / max(number, 1)
    waves = [rows + phase, columns - phase, rows * columns + phase]
    pixels = torch.stack([0.5 + 0.4 * torch.sin(6 * wave).expand(-1, size, size) for wave in waves])
    bar = ((columns - phase).abs() < 0.1).expand(-1, size, size)
    pixels = torch.where(bar, torch.ones(()), pixels).permute(1, 0, 2, 3)
    return {
        "keys": [f"example-{index}" for index in range(number)],
        "images": to_uint8(pixels).contiguous(),
    }
