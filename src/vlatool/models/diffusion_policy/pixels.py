"""Image normalization of base models.

Legend of shapes: K images, H and W height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ImageNormalizer(nn.Module):
    """Resizes images and normalizes their colors with mean and std.

    Mean and std are buffers on the device: a copy in the middle of a step would block the host.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, levels in (("shift", mean), ("scale", std)):
            color = 255 * torch.tensor(levels)[:, None, None]
            self.register_buffer(name, color, persistent=False)

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images uint8 [K, 3, H, W] to float32 [K, 3, *size]: (image / 255 - mean) / std."""
        return (_resized(images, size).float() - self.shift).div_(self.scale)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, rounded to integers as image libraries do."""
    if images.shape[-2:] == size:
        return images
    # Only CPUs have a uint8 kernel; its results equal those of image libraries.
    source = images if images.device.type == "cpu" else images.float()
    resized = functional.interpolate(source, size, mode="bicubic", antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.clamp(0, 255).round()
