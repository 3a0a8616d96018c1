"""Bytes of pictures to what a base model was trained on.

Legend of shapes: K pictures, H and W their size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ImageNormalizer(nn.Module):
    """Resizes, and takes the mean colour off.

    Its colours are on the device already: a copy in the middle of a step would wait for all of it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, levels in (("shift", mean), ("scale", std)):
            color = 255 * torch.tensor(levels)[:, None, None]
            self.register_buffer(name, color, persistent=False)

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 [K, 3, H, W] to float32 [K, 3, *size]: levels in [0, 1], less mean, over std."""
        return (_resized(images, size).float() - self.shift).div_(self.scale)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, as image libraries do it: rounded to whole levels."""
    if images.shape[-2:] == size:
        return images
    # Of bytes only processors have a kernel, whose levels are those of image libraries.
    given = images if images.device.type == "cpu" else images.float()
    resized = functional.interpolate(given, size, mode="bicubic", antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.clamp(0, 255).round()
