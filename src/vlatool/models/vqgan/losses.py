"""Parts of pixel losses: perceptual distances, discriminator.

Legend of shapes: B images, H height, W width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.jobs.downloads import require_input
from vlatool.models.base import Part
from vlatool.models.vqgan.config import (
    FEATURES,
    GRADIENTS,
    NOTHING,
    PixelLossConfig,
    VqganNetworkConfig,
)
from vlatool.models.vqgan.discriminator import Discriminator, LecamEma
from vlatool.models.vqgan.model import Encoder
from vlatool.models.vqgan.weights import load_encoder

_SCALES = 4
# Name of the part of the mean image, and of its sums.
_BACKGROUND, _SUM, _COUNT = "background", "image_sum", "image_count"


class MeanImage(nn.Module):
    """Mean of the training images so far, as the background of their foreground."""

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


class ForegroundRule:
    """Weights of pixels by `losses.foreground_weight`; all 1 without a part for them."""

    def __init__(self, losses: PixelLossConfig, parts: Mapping[str, Part]) -> None:
        self._weight = losses.foreground_weight
        self._part = parts[_BACKGROUND].module if _BACKGROUND in parts else None

    def weights(self, pixels: Tensor) -> Tensor | None:
        """Weights of pixels [B, 3, S, S]: float32 [B, 1, S, S]; None: all are 1."""
        if not isinstance(self._part, MeanImage):
            return None
        return 1 + self._weight * self._part.difference(pixels)

    def sums(self, pixels: Tensor) -> dict[str, Tensor]:
        """Sums of a micro-batch that `update` needs."""
        if self._part is None:
            return {}
        return {_SUM: pixels.sum(0), _COUNT: pixels.new_tensor([float(len(pixels))])}

    def update(self, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        """Updates the mean image after a step."""
        if isinstance(self._part, MeanImage):
            self._part.update(sums[_SUM], sums[_COUNT][0], ok)


def background_part(losses: PixelLossConfig, size: int | None) -> dict[str, Part]:
    """Returns the part of the mean image; none if `losses.foreground_weight` is 0."""
    if not losses.foreground_weight:
        return {}
    assert size is not None, "image_size is derived from the data"
    return {_BACKGROUND: Part(MeanImage(size), trained=False, averaged=False)}


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
        self.encoder = Encoder(config)

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of pixels [B, 3, H, W]; scalar."""
        with torch.no_grad():
            targets = [functional.normalize(x.float()) for x in self.encoder.levels(original)]
        features = [functional.normalize(x.float()) for x in self.encoder.levels(reconstruction)]
        pairs = zip(targets, features, strict=True)
        terms = [(a - b).square().sum(1).mean() for a, b in pairs]
        return torch.stack(terms).mean()


def loss_parts(losses: PixelLossConfig, network: VqganNetworkConfig) -> dict[str, Part]:
    """Returns the parts that the losses use: discriminator, its running means, perceptual
    network.
    """
    parts: dict[str, Part] = {}
    if losses.adversarial:
        discriminator = Discriminator(losses.discriminator_channels)
        means = LecamEma(losses.lecam_ema_decay)
        parts["discriminator"] = Part(discriminator, averaged=False)
        parts["lecam"] = Part(means, trained=False, averaged=False)
    if losses.perceptual_loss not in (None, NOTHING) and losses.perceptual_weight:
        module = _perceptual(losses.perceptual_loss, network)
        parts["perceptual"] = Part(module, trained=False, averaged=False, saved=False)
    return parts


def _perceptual(name: str, network: VqganNetworkConfig) -> nn.Module:
    if name == GRADIENTS:
        return GradientDistance()
    if name == FEATURES:
        return FeatureDistance(network)
    from vlatool.models.perceptual.networks import perceptual_network

    return perceptual_network(name, None)


def load_perceptual(losses: PixelLossConfig, module: nn.Module, teacher: str | None) -> None:
    """Loads the weights of the perceptual part."""
    if isinstance(module, FeatureDistance):
        assert teacher is not None
        load_encoder(module.encoder, teacher)
    elif losses.perceptual_weights is not None and not isinstance(module, GradientDistance):
        from vlatool.models.perceptual.networks import perceptual_network

        assert losses.perceptual_loss is not None
        loaded = perceptual_network(
            losses.perceptual_loss, require_input(losses.perceptual_weights)
        )
        module.load_state_dict(loaded.state_dict())


def lecam_part(parts: Mapping[str, Part]) -> LecamEma | None:
    """Returns the running means of the discriminator; None without a discriminator."""
    means = parts["lecam"].module if "lecam" in parts else None
    assert means is None or isinstance(means, LecamEma)
    return means
