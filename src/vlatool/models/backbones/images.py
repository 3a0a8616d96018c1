"""Images as base models expect them: resized, and normalized with a mean and a std per color.

Legend of shapes: K images, H and W height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ImageNormalizer(nn.Module):
    """Resizes images and normalizes their colors.

    Mean and std are buffers on the device: a copy in the middle of a step would block the host.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        shift = 255 * torch.tensor(mean)[:, None, None]
        scale = 255 * torch.tensor(std)[:, None, None]
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images uint8 [K, 3, H, W] to float32 [K, 3, *size]: (image / 255 - mean) / std."""
        if images.shape[-2:] != size:
            # Only CPUs have a uint8 kernel; its results equal those of image libraries.
            source = images if images.device.type == "cpu" else images.float()
            images = functional.interpolate(source, size, mode="bicubic", antialias=True)
            if images.dtype != torch.uint8:
                images = images.clamp(0, 255).round()
        return (images.float() - self.shift).div_(self.scale)
