"""Perceptual distances by name (LPIPS, ConvNeXt-S), and Inception-v3 for the Frechet distance.

Names are those of the released weights, which the user provides; nothing is downloaded. Source:
reference/titok 4.4, 5.4; arXiv 1801.03924 (LPIPS), equation 1; arXiv 2201.03545 (ConvNeXt), section
2 and table 9; arXiv 1512.00567 (Inception), section 6.

Legend of shapes: B images, D channels, H height, W width.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import UsageError
from vlatool.formats import base_model
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
    """A weight per channel of each compared layer, with the names of the released file."""

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
        pairs = zip(targets, self._features(reconstruction), strict=True)
        terms = [self.heads(number, (a - b).square()) for number, (a, b) in enumerate(pairs)]
        return torch.stack(terms).sum(0)

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """Features of the compared layers, normalized to unit length over the channels."""
        shift, scale = (pixels.new_tensor(row).view(3, 1, 1) for row in (_SHIFT, _SCALE))
        layers = self.vgg((2 * pixels - 1 - shift) / scale)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + _LPIPS_EPSILON) for x in layers]


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
        self.features = nn.Sequential(*_stages())
        self.classifier = nn.Sequential(
            ChannelNorm(_WIDTHS[-1]), nn.Flatten(1), nn.Linear(_WIDTHS[-1], _CONVNEXT_CLASSES)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3), keepdim=True))


def _stages() -> Iterator[nn.Module]:
    before = _WIDTHS[0]
    stem = nn.Conv2d(3, before, 4, stride=4)
    yield nn.Sequential(stem, ChannelNorm(before))
    for width, depth in zip(_WIDTHS, _DEPTHS, strict=True):
        if width != before:
            downsample = nn.Conv2d(before, width, 2, stride=2)
            yield nn.Sequential(ChannelNorm(before), downsample)
        yield nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))
        before = width


FEATURES = 2048
_INCEPTION_CLASSES = 1008
_INCEPTION_EDGE = 299
_BATCH_NORM_EPSILON = 1e-3

# Output channels, kernel height, kernel width.
Layer = tuple[int, int, int]


class FrozenNorm(nn.Module):
    """Batch norm with fixed statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return functional.batch_norm(
            x_BDHW,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=_BATCH_NORM_EPSILON,
        )


class ConvNorm(nn.Module):
    """Convolution without bias, norm, ReLU; padded to keep the size, unless `shrinks` is set."""

    def __init__(
        self, before: int, layer: Layer, *, stride: int = 1, shrinks: bool = False
    ) -> None:
        super().__init__()
        width, rows, columns = layer
        padding = (0, 0) if shrinks else (rows // 2, columns // 2)
        self.conv = nn.Conv2d(before, width, (rows, columns), stride, padding, bias=False)
        self.bn = FrozenNorm(width)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Returns [B, D', H', W']."""
        return functional.relu(self.bn(self.conv(x_BDHW)))


class _Mixed(nn.Module):
    """Parallel branches, with the names of the file."""

    def chain(self, name: str, before: int, *layers: Layer, halves: bool = False) -> None:
        """Adds a branch of layers `name_1`, `name_2`, ...; a single layer is named `name`."""
        for number, layer in enumerate(layers, 1):
            shrinks = halves and number == len(layers)
            label = name if len(layers) == 1 else f"{name}_{number}"
            stride = 2 if shrinks else 1
            self.add_module(label, ConvNorm(before, layer, stride=stride, shrinks=shrinks))
            before = layer[0]

    def run(self, name: str, x: Tensor) -> Tensor:
        for label, layer in self.named_children():
            if name in (label, label.rpartition("_")[0]):
                x = layer(x)
        return x


class _Fives(_Mixed):
    """Block of 35 x 35 features: kernels of size 1, size 5, and twice size 3."""

    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.chain("branch1x1", before, (64, 1, 1))
        self.chain("branch5x5", before, (48, 1, 1), (64, 5, 5))
        self.chain("branch3x3dbl", before, (64, 1, 1), (96, 3, 3), (96, 3, 3))
        self.chain("branch_pool", before, (pooled, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        names = ("branch1x1", "branch5x5", "branch3x3dbl")
        return torch.cat([*(self.run(n, x) for n in names), self.run("branch_pool", _mean(x))], 1)


class _FirstHalving(_Mixed):
    """Block from 35 x 35 to 17 x 17 features."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.chain("branch3x3", before, (384, 3, 3), halves=True)
        self.chain("branch3x3dbl", before, (64, 1, 1), (96, 3, 3), (96, 3, 3), halves=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.run("branch3x3", x), self.run("branch3x3dbl", x), _halved(x)], 1)


class _Sevens(_Mixed):
    """Block of 17 x 17 features: kernels of size 1, and of 1 x 7 and 7 x 1."""

    def __init__(self, before: int, inner: int) -> None:
        super().__init__()
        c = inner
        self.chain("branch1x1", before, (192, 1, 1))
        self.chain("branch7x7", before, (c, 1, 1), (c, 1, 7), (192, 7, 1))
        twice = ((c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))
        self.chain("branch7x7dbl", before, *twice)
        self.chain("branch_pool", before, (192, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        names = ("branch1x1", "branch7x7", "branch7x7dbl")
        return torch.cat([*(self.run(n, x) for n in names), self.run("branch_pool", _mean(x))], 1)


class _SecondHalving(_Mixed):
    """Block from 17 x 17 to 8 x 8 features."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.chain("branch3x3", before, (192, 1, 1), (320, 3, 3), halves=True)
        sevens = ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3))
        self.chain("branch7x7x3", before, *sevens, halves=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.run("branch3x3", x), self.run("branch7x7x3", x), _halved(x)], 1)


class _Wide(nn.Module):
    """Block of 8 x 8 features: branches that split into 1 x 3 and 3 x 1 kernels. The last block of
    the network has max pooling, the others average pooling.
    """

    def __init__(self, before: int, *, is_last: bool) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(before, (320, 1, 1))
        self.branch3x3_1 = ConvNorm(before, (384, 1, 1))
        self.branch3x3_2a = ConvNorm(384, (384, 1, 3))
        self.branch3x3_2b = ConvNorm(384, (384, 3, 1))
        self.branch3x3dbl_1 = ConvNorm(before, (448, 1, 1))
        self.branch3x3dbl_2 = ConvNorm(448, (384, 3, 3))
        self.branch3x3dbl_3a = ConvNorm(384, (384, 1, 3))
        self.branch3x3dbl_3b = ConvNorm(384, (384, 3, 1))
        self.branch_pool = ConvNorm(before, (192, 1, 1))
        self._is_last = is_last

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, 2048, H, W]."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self._is_last else _mean(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)


class InceptionFeatures(nn.Module):
    """Feature extractor: images uint8 [B, 3, H, W] to pooled features."""

    width: int = FEATURES  # number of features per image

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, (32, 3, 3), stride=2, shrinks=True)
        self.Conv2d_2a_3x3 = ConvNorm(32, (32, 3, 3), shrinks=True)
        self.Conv2d_2b_3x3 = ConvNorm(32, (64, 3, 3))
        self.Conv2d_3b_1x1 = ConvNorm(64, (80, 1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, (192, 3, 3), shrinks=True)
        self.Mixed_5b = _Fives(192, 32)
        self.Mixed_5c = _Fives(256, 64)
        self.Mixed_5d = _Fives(288, 64)
        self.Mixed_6a = _FirstHalving(288)
        self.Mixed_6b = _Sevens(768, 128)
        self.Mixed_6c = _Sevens(768, 160)
        self.Mixed_6d = _Sevens(768, 160)
        self.Mixed_6e = _Sevens(768, 192)
        self.Mixed_7a = _SecondHalving(768)
        self.Mixed_7b = _Wide(1280, is_last=False)
        self.Mixed_7c = _Wide(FEATURES, is_last=True)
        self.fc = nn.Linear(FEATURES, _INCEPTION_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns features [B, 2048] in the dtype of the weights."""
        x = (enlarged(images.to(self.fc.weight.dtype), _INCEPTION_EDGE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = _halved(x)
        for name, layer in self.named_children():
            if name.startswith("Mixed"):
                x = layer(x)
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Returns logits [B, 1008] of features, without the bias, as for the inception score."""
        return functional.linear(features, self.fc.weight)


def enlarged(pixels: Tensor, edge: int) -> Tensor:
    """Resizes pixels bilinearly to [B, 3, edge, edge], as in TensorFlow 1. The position of output
    pixel i in the input is i times the ratio of the sizes.
    """
    return _resized(_resized(pixels, edge, 2), edge, 3)


def _resized(pixels: Tensor, edge: int, axis: int) -> Tensor:
    size = pixels.shape[axis]
    positions = torch.arange(edge, device=pixels.device, dtype=pixels.dtype) * (size / edge)
    low = positions.floor().long()
    weight = (positions - low).view([edge if dim == axis else 1 for dim in range(4)])
    first = pixels.index_select(axis, low)
    second = pixels.index_select(axis, (low + 1).clamp(max=size - 1))
    return first + (second - first) * weight


def _mean(x_BDHW: Tensor) -> Tensor:
    return functional.avg_pool2d(x_BDHW, 3, 1, 1, count_include_pad=False)


def _halved(x_BDHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BDHW, 3, 2)


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
        mean, std = (pixels.new_tensor(row).view(3, 1, 1) for row in (_MEAN, _STD))
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
        """Stays in eval mode."""
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
    _load_file(network, weights, base_model.INCEPTION)
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
            code="usage.unknown_name",
            details={"known": list(NAMES)},
        )
    return names, shares


def _load(network: nn.Module, weights: Path) -> dict[str, str]:
    """Loads the weights of a network; returns the digests of the files."""
    if isinstance(network, Lpips):
        digests = _load_file(network.vgg, weights, base_model.VGG16)
        return digests | _load_file(network.heads, weights, base_model.LPIPS_HEADS)
    assert isinstance(network, LogitDistance)
    return _load_file(network.network, weights, base_model.CONVNEXT_S)


def _load_file(
    module: nn.Module, weights: Path, published: base_model.PublishedFile
) -> dict[str, str]:
    """Loads a file into a module; all tensors must match, except the unused ones of the file."""
    file = base_model.find_network(weights, published)
    expected = module.state_dict()
    tensors = {
        name: value
        for name, value in read_external_weights(file.path).items()
        if name in expected or not _UNUSED.fullmatch(name)
    }
    module.load_state_dict(matching_state_dict(module, tensors, file.path), assign=True)
    return {file.path.name: file.sha256}
