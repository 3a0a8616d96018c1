"""The parts that losses of pictures need: a perceptual distance, a discriminator.

Legend of shapes: B pictures, H and W their size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.base import Part
from vlatool.models.vqgan.discriminator import Discriminator, LecamEma
from vlatool.models.vqgan.model import Encoder
from vlatool.models.vqgan.spec import (
    FEATURES,
    GRADIENTS,
    NOTHING,
    PixelLossConfig,
    VqganNetworkConfig,
)
from vlatool.models.vqgan.weights import load_encoder
from vlatool.storage.uri import require_existing

_SCALES = 4


class GradientDistance(nn.Module):
    """Absolute difference of edges at several scales; needs no weights."""

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Of pixels [B, 3, H, W]: a scalar."""
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
    """Squared difference of what the levels of a vqgan's encoder see, each of unit length."""

    def __init__(self, config: VqganNetworkConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Of pixels [B, 3, H, W]: a scalar."""
        with torch.no_grad():
            wanted = [functional.normalize(x.float()) for x in self.encoder.levels(original)]
        found = [functional.normalize(x.float()) for x in self.encoder.levels(reconstruction)]
        pairs = zip(wanted, found, strict=True)
        each = [(a - b).square().sum(1).mean() for a, b in pairs]
        return torch.stack(each).mean()


def loss_parts(losses: PixelLossConfig, network: VqganNetworkConfig) -> dict[str, Part]:
    """Discriminator, its running means and the perceptual network, as far as they are used."""
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
    """The weights of the perceptual part, of a teacher where its features are compared.

    Raises:
        DataError: They are missing or do not fit.
    """
    if isinstance(module, FeatureDistance):
        assert teacher is not None
        load_encoder(module.encoder, teacher)
    elif losses.perceptual_weights is not None and not isinstance(module, GradientDistance):
        from vlatool.models.perceptual.networks import perceptual_network

        assert losses.perceptual_loss is not None
        loaded = perceptual_network(
            losses.perceptual_loss, require_existing(losses.perceptual_weights)
        )
        module.load_state_dict(loaded.state_dict())


def lecam_part(parts: Mapping[str, Part]) -> LecamEma | None:
    """The running means of a discriminator, where there is one."""
    means = parts["lecam"].module if "lecam" in parts else None
    assert means is None or isinstance(means, LecamEma)
    return means
