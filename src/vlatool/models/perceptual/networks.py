"""Perceptual distances by name, and the network that compares sets of pictures.

Their weights are files that the user has: nothing is fetched. Source: reference/titok 4.4, 5.4.

Legend of shapes: B pictures, H and W their size.
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
# In released files, but of no use here.
_UNUSED = re.compile(r"classifier\.\d+\.(weight|bias)|.*\.num_batches_tracked")


class LogitDistance(nn.Module):
    """How far apart the class logits of two pictures are, not their features."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ConvNextSmall()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Of each pair of pictures [B, 3, H, W] in [0, 1]: [B]."""
        with torch.no_grad():
            wanted = self._logits(original)
        return (wanted - self._logits(reconstruction)).square().mean(1)

    def _logits(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(one).view(3, 1, 1) for one in (_MEAN, _STD))
        scaled = functional.interpolate(pixels, (_EDGE, _EDGE), mode="bilinear", antialias=True)
        return self.network((scaled - mean) / std)


class PerceptualDistance(nn.Module):
    """A weighted mean of distances between pictures; frozen, always computed in float32.

    Attributes:
        digests: SHA-256 of each file whose weights it has, by name; empty where it has none.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        weights: Sequence[float],
        digests: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.digests = dict(digests)
        self._weights = [weight / sum(weights) for weight in weights]
        self.requires_grad_(requires_grad=False).eval()

    def train(self, mode: bool = True) -> "PerceptualDistance":  # noqa: FBT001, FBT002 - torch's
        """Stays in eval mode."""
        del mode
        return super().train(False)  # noqa: FBT003

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean over pairs of pictures [B, 3, H, W] in [0, 1]: a scalar.

        The gradient goes to `made` alone.
        """
        return self.distances(original, reconstruction).mean()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Of each pair: float32 [B]."""
        first, second = original.float(), reconstruction.float()
        with torch.autocast(reconstruction.device.type, enabled=False):
            pairs = zip(self.networks.values(), self._weights, strict=True)
            each = [weight * network.distances(first, second) for network, weight in pairs]  # pyright: ignore[reportCallIssue] - a ModuleDict forgets types
        return torch.stack(each).sum(0)


def perceptual_network(name: str, weights: Path | None) -> PerceptualDistance:
    """The distance that a name stands for.

    Args:
        name: `convnext_s`, `lpips`, or both and the share of each, such as
            `lpips-convnext_s-1.0-0.1`.
        weights: A folder with the released files; a file where the name needs only one. None: not
            trained, for a dry run or to be loaded later; opens nothing.

    Raises:
        UsageError: The name means nothing.
        DataError: A file is missing, is not what was published, or does not fit.
    """
    names, shares = _parsed(name)
    with nullcontext() if weights is None else torch.device("meta"):
        networks: dict[str, nn.Module] = {
            one: LogitDistance() if one == _CONVNEXT else Lpips() for one in names
        }
    digests: dict[str, str] = {}
    if weights is not None:
        for network in networks.values():
            digests |= _load(network, weights)
    return PerceptualDistance(networks, shares, digests)


def inception_network(weights: Path) -> InceptionFeatures:
    """The network of the Frechet distance, frozen, from its file or a folder that holds it.

    Raises:
        DataError: The file is missing, is not what was published, or does not fit.
    """
    with torch.device("meta"):
        network = InceptionFeatures()
    _load_file(network, weights, INCEPTION)
    return network.requires_grad_(requires_grad=False).eval()


def _parsed(name: str) -> tuple[list[str], list[float]]:
    """Networks and the weight of each; of two the last fields are the weights."""
    fields = name.split("-")
    names = [one for one in fields if one in NAMES]
    rest = [one for one in fields if one not in NAMES]
    is_known = len(set(names)) == len(names) > 0 and all(map(_NUMBER.match, rest))
    shares = [float(one) for one in rest] if is_known and rest else [1.0] * len(names)
    if not is_known or len(shares) != len(names) or sum(shares) <= 0:
        raise UsageError(
            f"{name!r} is no perceptual network",
            hint="choose convnext_s, lpips, or both with weights, as lpips-convnext_s-1.0-0.1",
            code="usage.unknown_perceptual_network",
            details={"known": list(NAMES)},
        )
    return names, shares


def _load(network: nn.Module, weights: Path) -> dict[str, str]:
    """Fills a network; returns the digests of its files."""
    if isinstance(network, Lpips):
        found = _load_file(network.vgg, weights, VGG16)
        return found | _load_file(network.heads, weights, LPIPS_HEADS)
    assert isinstance(network, LogitDistance)
    return _load_file(network.network, weights, CONVNEXT_S)


def _load_file(module: nn.Module, weights: Path, wanted: PublishedFile) -> dict[str, str]:
    """Takes a file's tensors as a module's; all must fit, but for what is of no use here."""
    file = find_network(weights, wanted)
    expected = module.state_dict()
    tensors = {
        name: value
        for name, value in read_external_weights(file.path).items()
        if name in expected or not _UNUSED.fullmatch(name)
    }
    module.load_state_dict(matching_state_dict(module, tensors, file.path), assign=True)
    return {file.path.name: file.sha256}
