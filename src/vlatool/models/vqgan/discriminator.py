"""Discriminator of real and reconstructed images. Source: reference/titok 4.2, 4.3.

Legend of shapes: B images, H height, W width.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_STAGES = 3
_GRID = 16
_SLOPE = 0.1
_GROUPS = 32


class BlurDown(nn.Module):
    """Fixed blur with stride 2."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        square = torch.outer(line, line)
        self.register_buffer("kernel", (square / square.sum())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C, H / 2, W / 2]."""
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return functional.conv2d(x, kernel, stride=2, padding=1, groups=channels)


class Discriminator(nn.Module):
    """Maps images to one logit per cell of a 16 x 16 grid, in float32.

    Names of modules are the published ones.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = [channels * 2 ** max(index - 1, 0) for index in range(_STAGES + 1)]
        self.block_in = nn.Sequential(nn.Conv2d(3, channels, 5, padding=2), nn.LeakyReLU(_SLOPE))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                BlurDown(),
                nn.GroupNorm(_GROUPS, after),
                nn.LeakyReLU(_SLOPE),
            )
            for before, after in pairwise(widths)
        )
        last = widths[-1]
        self.to_logits = nn.Sequential(
            nn.Conv2d(last, last, 1), nn.LeakyReLU(_SLOPE), nn.Conv2d(last, 1, 5, padding=2)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels [B, 3, H, W] in [0, 1] to logits float32 [B, 1, 16, 16].

        For images smaller than 128 pixels the grid is H / 8 x W / 8.
        """
        with torch.autocast(pixels.device.type, enabled=False):
            x = self.block_in(pixels.float().contiguous(memory_format=torch.channels_last))
            for block in self.blocks:
                x = block(x)
            grid = [min(_GRID, side) for side in x.shape[2:]]
            return self.to_logits(functional.adaptive_max_pool2d(x, grid))


class LecamEma(nn.Module):
    """LeCam regularization: running means of the logits of real and reconstructed images."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(1))
        self.register_buffer("fake", torch.zeros(1))

    def distance(self, real: Tensor, fake: Tensor, of_step: tuple[Tensor, Tensor]) -> Tensor:
        """Regularization term of the mean logits of a step, relative to the running means.

        `of_step`: both means over all micro-batches and ranks of the step, without gradient.

        The mean over the micro-batches of a step has the value and the gradient of the term of the
        whole step: it is linear in the means of a micro-batch.
        """
        all_real, all_fake = of_step
        above = functional.relu(all_real - self.fake)
        below = functional.relu(self.real - all_fake)
        linear = above * (real - all_real) + below * (all_fake - fake)
        return (above.square() + below.square() + 2 * linear).sum()

    def update(self, real: Tensor, fake: Tensor, ok: Tensor) -> None:
        """Updates the running means with those of a step over all ranks, if `ok` is True."""
        for name, value in (("real", real), ("fake", fake)):
            old: Tensor = getattr(self, name)
            new = old.lerp(value.to(old.dtype).reshape(1), 1 - self.decay)
            old.copy_(torch.where(ok, new, old))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the logits of real and reconstructed images; scalar."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
