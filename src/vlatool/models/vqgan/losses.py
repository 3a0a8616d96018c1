"""Terms that judge reconstructed images: discriminator, perceptual distances, the foreground.

`loss_parts` and `buffer_parts` give the parts that a model type adds to its network; `objective.py`
has the loss that they enter. Source: reference/titok 4.2, 4.3.

Legend of shapes: B images, H height, W width, S side of an image, C channels.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.jobs.ownership import require_input
from vlatool.models.base import Part
from vlatool.models.codebook import CodeRevival
from vlatool.models.vqgan.config import (
    FEATURES,
    GRADIENTS,
    NOTHING,
    PixelLossConfig,
    VqganNetworkConfig,
)
from vlatool.models.vqgan.model import VqganEncoder, load_encoder

_STAGES = 3
_GRID = 16
_SLOPE = 0.1
_GROUPS = 32
# Scales of the distance of gradients.
_SCALES = 4


def loss_parts(losses: PixelLossConfig, network: VqganNetworkConfig) -> dict[str, Part]:
    """The parts of a loss of pixels: discriminator, its running means, perceptual network.

    Args:
        losses: Section `losses`, derived.
        network: Sizes of the teacher whose features are compared, if they are.
    """
    parts: dict[str, Part] = {}
    if losses.adversarial:
        discriminator = Discriminator(losses.discriminator_channels)
        means = LecamEma(losses.lecam_ema_decay)
        parts["discriminator"] = Part(discriminator, averaged=False)
        parts["lecam"] = Part(means, trained=False, averaged=False)
    if losses.perceptual_loss not in (None, NOTHING) and losses.perceptual_weight:
        if losses.perceptual_loss == GRADIENTS:
            distance = GradientDistance()
        elif losses.perceptual_loss == FEATURES:
            distance = FeatureDistance(network)
        else:
            from vlatool.models.perceptual import perceptual_network

            distance = perceptual_network(losses.perceptual_loss, None)
        parts["perceptual"] = Part(distance, trained=False, averaged=False, saved=False)
    return parts


def load_perceptual(losses: PixelLossConfig, distance: Any, teacher: str | None) -> None:
    """Loads the weights of the part `perceptual`; `teacher`: location of the VQGAN."""
    if losses.perceptual_loss == GRADIENTS:
        return
    if losses.perceptual_loss == FEATURES:
        assert teacher is not None
        load_encoder(distance.encoder, teacher)
    elif losses.perceptual_weights is not None:
        from vlatool.models.perceptual import perceptual_network

        assert losses.perceptual_loss is not None
        loaded = perceptual_network(
            losses.perceptual_loss, require_input(losses.perceptual_weights)
        )
        distance.load_state_dict(loaded.state_dict())


def buffer_parts(
    losses: PixelLossConfig, image_size: int | None, codebook_size: int, revive_after: int
) -> dict[str, Part]:
    """The parts that count over the steps: use of the codes, and the mean image, if needed."""
    parts: dict[str, Part] = {}
    if revive_after:
        revival = CodeRevival(codebook_size, revive_after)
        parts["revival"] = Part(revival, trained=False, averaged=False)
    if losses.foreground_weight:
        assert image_size is not None, "image_size is derived from the data"
        parts["background"] = Part(MeanImage(image_size), trained=False, averaged=False)
    return parts


class Discriminator(nn.Module):
    """Maps images to one logit per cell of a 16 x 16 grid, in float32.

    Names of modules are the published ones.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = [channels * 2 ** max(index - 1, 0) for index in range(_STAGES + 1)]
        last = widths[-1]
        self.block_in = nn.Sequential(nn.Conv2d(3, channels, 5, padding=2), nn.LeakyReLU(_SLOPE))
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            block = nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                BlurDown(),
                nn.GroupNorm(_GROUPS, after),
                nn.LeakyReLU(_SLOPE),
            )
            self.blocks.append(block)
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


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the logits of real and reconstructed images; scalar."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


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
        """Regularization term of the mean logits of a micro-batch, relative to the running means.

        The mean over the micro-batches of a step has the value and the gradient of the term of the
        whole step: it is linear in the means of a micro-batch.

        Args:
            real: Mean logit of real images.
            fake: Mean logit of reconstructed images.
            of_step: Both means over all micro-batches and ranks of the step, without gradient.
        """
        all_real, all_fake = of_step
        above = functional.relu(all_real - self.fake)
        below = functional.relu(self.real - all_fake)
        linear = above * (real - all_real) + below * (all_fake - fake)
        return (above.square() + below.square() + 2 * linear).sum()

    def update(self, real: Tensor, fake: Tensor, ok: Tensor) -> None:
        """Updates the running means with the means of a step over all ranks, if `ok` is True."""
        for old, value in ((self.real, real), (self.fake, fake)):
            new = old.lerp(value.to(old.dtype).reshape(1), 1 - self.decay)
            old.copy_(torch.where(ok, new, old))


class MeanImage(nn.Module):
    """Mean of the training images so far; what differs from it counts as foreground."""

    total: Tensor  # float64 [3, S, S]
    count: Tensor  # float64 scalar

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3, size, size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def difference(self, pixels: Tensor) -> Tensor:
        """Mean absolute difference of pixels [B, 3, S, S] over the channels, float32 [B, 1, S, S].

        It is 0 before the first update.
        """
        mean = (self.total / self.count.clamp(min=1)).float()
        return (pixels.float() - mean).abs().mean(1, keepdim=True) * (self.count > 0)

    def update(self, total: Tensor, count: Tensor, ok: Tensor) -> None:
        """Adds the images of a step over all ranks, if `ok` is True."""
        for buffer, value in ((self.total, total), (self.count, count)):
            buffer.copy_(torch.where(ok, buffer + value, buffer))


class GradientDistance(nn.Module):
    """Mean absolute difference of image gradients at several scales; needs no weights."""

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of pixels [B, 3, H, W]; scalar."""
        difference = reconstruction.float() - original.float()
        total = difference.new_zeros(())
        for _ in range(_SCALES):
            if min(difference.shape[2:]) < 2:
                break
            rows = difference[:, :, 1:] - difference[:, :, :-1]
            columns = difference[..., 1:] - difference[..., :-1]
            total = total + rows.abs().mean() + columns.abs().mean()
            difference = functional.avg_pool2d(difference, 2, ceil_mode=True)
        return total


class FeatureDistance(nn.Module):
    """Squared distance of the features of the encoder of a VQGAN, at all its levels.

    Features are normalized to unit length over the channels.
    """

    def __init__(self, config: VqganNetworkConfig) -> None:
        super().__init__()
        self.encoder = VqganEncoder(config)

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of pixels [B, 3, H, W]; scalar."""
        with torch.no_grad():
            targets = self._features(original)
        terms: list[Tensor] = []
        for target, features in zip(targets, self._features(reconstruction), strict=True):
            terms.append((target - features).square().sum(1).mean())
        return torch.stack(terms).mean()

    def _features(self, pixels: Tensor) -> list[Tensor]:
        return [functional.normalize(level.float()) for level in self.encoder.levels(pixels)]
