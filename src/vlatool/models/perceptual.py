"""Perceptual distances of images by name: LPIPS, ConvNeXt-S, or both.

`perceptual_network` makes a distance of one or two networks. Weights have the released names. You
provide the files; nothing is downloaded. Source: reference/titok 4.4; arXiv 1801.03924 (LPIPS),
equation 1; arXiv 2201.03545 (ConvNeXt), section 2 and table 9.

Legend of shapes: B images, D channels, H height, W width.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.datasets import base_model
from vlatool.errors import UsageError
from vlatool.models.weights import matching_state_dict, read_external_weights

# Output channels of the convolutions; None: max pooling.
_LAYERS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)
# Indices of the layers whose outputs are compared: relu1_2, 2_2, 3_3, 4_3, 5_3.
_TAPS = (3, 8, 15, 22, 29)
_VGG_WIDTHS = (64, 128, 256, 512, 512)
# Mean and standard deviation of pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_LPIPS_EPSILON = 1e-10


class Vgg16(nn.Module):
    """The convolutions of VGG-16, without `classifier` of the released file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _LAYERS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Returns the features of the five compared layers, for normalized pixels [B, 3, H, W]."""
        features: list[Tensor] = []
        for number, layer in enumerate(self.features):
            pixels = layer(pixels)
            if number in _TAPS:
                features.append(pixels)
        return features


class LpipsHeads(nn.Module):
    """A weight per channel of each compared layer; names as in the released file."""

    def __init__(self) -> None:
        super().__init__()
        for number, width in enumerate(_VGG_WIDTHS):
            head = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{number}", nn.ModuleDict({"model": head}))

    def forward(self, number: int, squares: Tensor) -> Tensor:
        """Weighted sum over the channels of [B, D, H, W], averaged over pixels: [B]."""
        head = self.get_submodule(f"lin{number}.model.1")
        return head(squares).mean((1, 2, 3))


class Lpips(nn.Module):
    """LPIPS distance of images in [0, 1]; lower is more similar."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Vgg16()
        self.heads = LpipsHeads()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair of images [B, 3, H, W]: [B]."""
        with torch.no_grad():
            targets = self._features(original)
        features = self._features(reconstruction)
        terms: list[Tensor] = []
        for number, target in enumerate(targets):
            terms.append(self.heads(number, (target - features[number]).square()))
        return torch.stack(terms).sum(0)

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """Features of the compared layers, normalized to unit length over the channels."""
        shift = pixels.new_tensor(_SHIFT).view(3, 1, 1)
        scale = pixels.new_tensor(_SCALE).view(3, 1, 1)
        features: list[Tensor] = []
        for layer in self.vgg((2 * pixels - 1 - shift) / scale):
            length = layer.square().sum(1, keepdim=True).sqrt()
            features.append(layer / (length + _LPIPS_EPSILON))
        return features


_WIDTHS = (96, 192, 384, 768)
_DEPTHS = (3, 3, 27, 3)
_CONVNEXT_CLASSES = 1000
_NORM_EPSILON = 1e-6


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, D, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        rows = functional.layer_norm(
            x_BDHW.movedim(1, -1), self.weight.shape, self.weight, self.bias, _NORM_EPSILON
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
            nn.LayerNorm(width, eps=_NORM_EPSILON),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            _ToFirst(),
        )

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW + self.layer_scale * self.block(x_BDHW)


class ConvNextSmall(nn.Module):
    """Classifier: normalized pixels [B, 3, H, W] to logits [B, 1000] of the ImageNet classes."""

    def __init__(self) -> None:
        super().__init__()
        width = _WIDTHS[0]
        stages: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, width, 4, stride=4), ChannelNorm(width))
        ]
        for after, depth in zip(_WIDTHS, _DEPTHS, strict=True):
            if after != width:
                downsample = nn.Conv2d(width, after, 2, stride=2)
                stages.append(nn.Sequential(ChannelNorm(width), downsample))
            width = after
            stages.append(nn.Sequential(*(ConvNextBlock(width) for _ in range(depth))))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(
            ChannelNorm(width), nn.Flatten(1), nn.Linear(width, _CONVNEXT_CLASSES)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3), keepdim=True))


_CONVNEXT = "convnext_s"
_LPIPS = "lpips"
NAMES = (_CONVNEXT, _LPIPS)

_CONVNEXT_EDGE = 224
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
        mean = pixels.new_tensor(_MEAN).view(3, 1, 1)
        std = pixels.new_tensor(_STD).view(3, 1, 1)
        scaled = functional.interpolate(
            pixels, (_CONVNEXT_EDGE, _CONVNEXT_EDGE), mode="bilinear", antialias=True
        )
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
        """Keeps eval mode, whatever `mode` is."""
        return super().train(False)  # noqa: FBT003

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean distance over pairs of images [B, 3, H, W] in [0, 1]; scalar. Only `reconstruction`
        gets a gradient.
        """
        return self.distances(original, reconstruction).mean()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair: float32 [B]."""
        first = original.float()
        second = reconstruction.float()
        networks: list[Any] = list(self.networks.values())
        terms: list[Tensor] = []
        with torch.autocast(reconstruction.device.type, enabled=False):
            for network, weight in zip(networks, self._weights, strict=True):
                terms.append(weight * network.distances(first, second))
        return torch.stack(terms).sum(0)


def perceptual_network(name: str, weights: Path | None) -> PerceptualDistance:
    """Creates the perceptual distance of a name.

    Args:
        name: `convnext_s`, `lpips`, or both with their weights in the mean, such as
            `lpips-convnext_s-1.0-0.1`.
        weights: Folder with the released files, or a file if only one is needed. None: random
            weights, for a dry run or if they are loaded later; no file is opened.

    Raises:
        UsageError: The name is unknown.
        DataError: A file is missing or broken, or is not the released one.
    """
    names, shares = _parsed(name)
    networks: dict[str, nn.Module] = {}
    digests: dict[str, str] = {}
    for network in names:
        with nullcontext() if weights is None else torch.device("meta"):
            networks[network] = LogitDistance() if network == _CONVNEXT else Lpips()
    if weights is not None:
        for network in networks.values():
            if isinstance(network, Lpips):
                digests |= load_released(network.vgg, weights, base_model.VGG16)
                digests |= load_released(network.heads, weights, base_model.LPIPS_HEADS)
            elif isinstance(network, LogitDistance):
                digests |= load_released(network.network, weights, base_model.CONVNEXT_S)
    return PerceptualDistance(networks, shares, digests)


def _parsed(name: str) -> tuple[list[str], list[float]]:
    """Splits a name into networks and their weights; a weight that is not given is 1."""
    names: list[str] = []
    shares: list[float] = []
    is_known = True
    for field in name.split("-"):
        if field in NAMES:
            is_known = is_known and field not in names
            names.append(field)
        elif _NUMBER.match(field):
            shares.append(float(field))
        else:
            is_known = False
    if not shares:
        shares = [1.0] * len(names)
    if not is_known or len(shares) != len(names) or sum(shares) <= 0:
        raise UsageError(
            f"there is no perceptual network {name!r}",
            hint="use convnext_s, lpips, or both with weights, such as lpips-convnext_s-1.0-0.1",
            code="usage.unknown_name",
            details={"known": list(NAMES)},
        )
    return names, shares


def load_released(
    module: nn.Module, weights: Path, published: base_model.PublishedFile
) -> dict[str, str]:
    """Loads a released file into a module; all tensors must match, except unused ones.

    Returns:
        SHA-256 of the file, by its name.
    """
    file = base_model.find_network(weights, published)
    expected = module.state_dict()
    tensors = read_external_weights(file.path)
    for name in [*tensors]:
        if name not in expected and _UNUSED.fullmatch(name):
            del tensors[name]
    module.load_state_dict(matching_state_dict(module, tensors, file.path), assign=True)
    return {file.path.name: file.sha256}
