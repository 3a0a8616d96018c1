"""Perceptual distances by name, and the network of the Frechet inception distance.

The user provides their weights as files; nothing is downloaded. Source: reference/titok 4.4, 5.4.

Legend of shapes: B images, H height, W width.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.artifacts.published_networks import (
    CONVNEXT_S,
    INCEPTION,
    LPIPS_HEADS,
    VGG16,
    PublishedFile,
    find_network,
)
from vlatool.errors import UsageError
from vlatool.models.perceptual.convnext import ConvNextSmall
from vlatool.models.perceptual.inception import InceptionFeatures
from vlatool.models.perceptual.lpips import Lpips
from vlatool.models.weights import matching_state_dict, read_external_weights

_CONVNEXT, _LPIPS = "convnext_s", "lpips"
NAMES = (_CONVNEXT, _LPIPS)

_EDGE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_NUMBER = re.compile(r"\d+(\.\d+)?\Z")
# Tensors of released files that are not used.
_UNUSED = re.compile(r"classifier\.\d+\.(weight|bias)|.*\.num_batches_tracked")


class LogitDistance(nn.Module):
    """Mean squared difference of the class logits of two images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ConvNextSmall()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair of images [B, 3, H, W] in [0, 1]: [B]."""
        with torch.no_grad():
            target = self._logits(original)
        return (target - self._logits(reconstruction)).square().mean(1)

    def _logits(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(row).view(3, 1, 1) for row in (_MEAN, _STD))
        scaled = functional.interpolate(pixels, (_EDGE, _EDGE), mode="bilinear", antialias=True)
        return self.network((scaled - mean) / std)


class PerceptualDistance(nn.Module):
    """Weighted mean of distances between images; frozen, always computed in float32."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        weights: Sequence[float],
        digests: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        # file name to SHA-256 of each file of weights; empty if no weights are loaded
        self.digests = dict(digests)
        self._weights = [weight / sum(weights) for weight in weights]
        self.requires_grad_(requires_grad=False).eval()

    def train(self, mode: bool = True) -> "PerceptualDistance":  # noqa: FBT001, FBT002 - torch's
        """Stays in eval mode."""
        del mode
        return super().train(False)  # noqa: FBT003

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean distance over pairs of images [B, 3, H, W] in [0, 1]; scalar.

        Only `reconstruction` gets a gradient.
        """
        return self.distances(original, reconstruction).mean()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair: float32 [B]."""
        first, second = original.float(), reconstruction.float()
        with torch.autocast(reconstruction.device.type, enabled=False):
            pairs = zip(self.networks.values(), self._weights, strict=True)
            terms = [weight * network.distances(first, second) for network, weight in pairs]  # pyright: ignore[reportCallIssue] - a ModuleDict forgets types
        return torch.stack(terms).sum(0)


def perceptual_network(name: str, weights: Path | None) -> PerceptualDistance:
    """Creates the perceptual distance of a name.

    `name`: `convnext_s`, `lpips`, or both with their weights in the mean, such as
    `lpips-convnext_s-1.0-0.1`; `weights`: folder with the released files, or a file if only one is
    needed. None: random weights, for a dry run or if they are loaded later; no file is opened.
    """
    names, shares = _parsed(name)
    with nullcontext() if weights is None else torch.device("meta"):
        networks: dict[str, nn.Module] = {
            label: LogitDistance() if label == _CONVNEXT else Lpips() for label in names
        }
    digests: dict[str, str] = {}
    if weights is not None:
        for network in networks.values():
            digests |= _load(network, weights)
    return PerceptualDistance(networks, shares, digests)


def inception_network(weights: Path) -> InceptionFeatures:
    """Loads the network of the Frechet inception distance, frozen."""
    with torch.device("meta"):
        network = InceptionFeatures()
    _load_file(network, weights, INCEPTION)
    return network.requires_grad_(requires_grad=False).eval()


def _parsed(name: str) -> tuple[list[str], list[float]]:
    """Splits a name into networks and the weight of each, which is 1 if the name has none."""
    fields = name.split("-")
    names = [field for field in fields if field in NAMES]
    rest = [field for field in fields if field not in NAMES]
    is_known = len(set(names)) == len(names) > 0 and all(map(_NUMBER.match, rest))
    shares = [float(field) for field in rest] if is_known and rest else [1.0] * len(names)
    if not is_known or len(shares) != len(names) or sum(shares) <= 0:
        raise UsageError(
            f"unknown perceptual network {name!r}",
            hint="use convnext_s, lpips, or both with weights, such as lpips-convnext_s-1.0-0.1",
            code="usage.unknown_perceptual_network",
            details={"known": list(NAMES)},
        )
    return names, shares


def _load(network: nn.Module, weights: Path) -> dict[str, str]:
    """Loads the weights of a network; returns the digests of the files."""
    if isinstance(network, Lpips):
        digests = _load_file(network.vgg, weights, VGG16)
        return digests | _load_file(network.heads, weights, LPIPS_HEADS)
    assert isinstance(network, LogitDistance)
    return _load_file(network.network, weights, CONVNEXT_S)


def _load_file(module: nn.Module, weights: Path, published: PublishedFile) -> dict[str, str]:
    """Loads a file into a module; all tensors must match, except the unused ones of the file."""
    file = find_network(weights, published)
    expected = module.state_dict()
    tensors = {
        name: value
        for name, value in read_external_weights(file.path).items()
        if name in expected or not _UNUSED.fullmatch(name)
    }
    module.load_state_dict(matching_state_dict(module, tensors, file.path), assign=True)
    return {file.path.name: file.sha256}
