"""ConvNeXt-S, with the names of the released ImageNet weights.

Source: reference/titok 4.4; ConvNeXt paper (arXiv 2201.03545), section 2 and table 9.

Legend of shapes: B images, D channels, H height, W width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTHS, _DEPTHS = (96, 192, 384, 768), (3, 3, 27, 3)
_CLASSES = 1000
_EPSILON = 1e-6


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, D, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Returns a tensor of the same shape."""
        rows = functional.layer_norm(
            x_BDHW.movedim(1, -1), self.weight.shape, self.weight, self.bias, _EPSILON
        )
        return rows.movedim(-1, 1)


class _ToLast(nn.Module):
    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW.movedim(1, -1)


class _ToFirst(nn.Module):
    def forward(self, x_BHWD: Tensor) -> Tensor:
        return x_BHWD.movedim(-1, 1)


class ConvNextBlock(nn.Module):
    """Residual block: depthwise 7x7 convolution, then two linear layers per pixel, scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            _ToLast(),
            nn.LayerNorm(width, eps=_EPSILON),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            _ToFirst(),
        )

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Returns a tensor of the same shape."""
        return x_BDHW + self.layer_scale * self.block(x_BDHW)


class ConvNextSmall(nn.Module):
    """Classifier: normalized pixels [B, 3, H, W] to logits [B, 1000] of the ImageNet classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_stages())
        self.classifier = nn.Sequential(
            ChannelNorm(_WIDTHS[-1]), nn.Flatten(1), nn.Linear(_WIDTHS[-1], _CLASSES)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        return self.classifier(self.features(pixels).mean((2, 3), keepdim=True))


def _stages() -> Iterator[nn.Module]:
    """Yields the stem, then the stages, each but the first after a downsampling layer."""
    before = _WIDTHS[0]
    stem = nn.Conv2d(3, before, 4, stride=4)
    yield nn.Sequential(stem, ChannelNorm(before))
    for width, depth in zip(_WIDTHS, _DEPTHS, strict=True):
        if width != before:
            downsample = nn.Conv2d(before, width, 2, stride=2)
            yield nn.Sequential(ChannelNorm(before), downsample)
        yield nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))
        before = width
