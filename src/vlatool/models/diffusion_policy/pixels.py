"""Bytes of pictures to what a base model was trained on.

Legend of shapes: K pictures, H and W their size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def prepared(
    images: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """uint8 [K, 3, H, W] to float32 [K, 3, *size]: resized, in [0, 1], less mean, over std."""
    resized = _resized(images, size).float() / 255
    shift, scale = (torch.tensor(one, device=images.device)[:, None, None] for one in (mean, std))
    return (resized - shift) / scale


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, as image libraries do it: rounded to whole levels."""
    if images.shape[-2:] == size:
        return images
    # Of bytes only processors have a kernel, whose levels are those of image libraries.
    given = images if images.device.type == "cpu" else images.float()
    resized = functional.interpolate(given, size, mode="bicubic", antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.clamp(0, 255).round()
