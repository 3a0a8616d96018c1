"""Inception-v3, whose features the Frechet inception distance compares.

Weights have the released names. You provide the files; nothing is downloaded. Source:
reference/titok 5.4; arXiv 1512.00567, section 6.

Legend of shapes: B images, D channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.datasets import base_model
from vlatool.models.perceptual import load_released

FEATURES = 2048
_CLASSES = 1008
_SIDE = 299
_BATCH_NORM_EPSILON = 1e-3

# Output channels, kernel height, kernel width.
Layer = tuple[int, int, int]
# Layers of each parallel branch of a block, by its name in the file.
Branches = Mapping[str, Sequence[Layer]]
_POOL = "branch_pool"


def inception_network(weights: Path) -> "InceptionFeatures":
    """Loads the network of the Frechet inception distance, frozen."""
    with torch.device("meta"):
        network = InceptionFeatures()
    load_released(network, weights, base_model.INCEPTION)
    return network.requires_grad_(requires_grad=False).eval()


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
        # 35 x 35 features
        self.Mixed_5b = Mixed(192, _fives(32))
        self.Mixed_5c = Mixed(256, _fives(64))
        self.Mixed_5d = Mixed(288, _fives(64))
        triple = [(64, 1, 1), (96, 3, 3), (96, 3, 3)]
        first_halving = {"branch3x3": [(384, 3, 3)], "branch3x3dbl": triple}
        self.Mixed_6a = Mixed(288, first_halving, halves=True)
        # 17 x 17 features
        self.Mixed_6b = Mixed(768, _sevens(128))
        self.Mixed_6c = Mixed(768, _sevens(160))
        self.Mixed_6d = Mixed(768, _sevens(160))
        self.Mixed_6e = Mixed(768, _sevens(192))
        second_halving = {
            "branch3x3": [(192, 1, 1), (320, 3, 3)],
            "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
        }
        self.Mixed_7a = Mixed(768, second_halving, halves=True)
        # 8 x 8 features
        self.Mixed_7b = WideMixed(1280, is_last=False)
        self.Mixed_7c = WideMixed(FEATURES, is_last=True)
        self.fc = nn.Linear(FEATURES, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns features [B, 2048] in the dtype of the weights."""
        x = (enlarged(images.to(self.fc.weight.dtype), _SIDE) - 128) / 128
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


def _fives(pooled: int) -> Branches:
    """Kernels of size 1, size 5, and twice size 3."""
    return {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        _POOL: [(pooled, 1, 1)],
    }


def _sevens(inner: int) -> Branches:
    """Kernels of size 1, and of 1 x 7 and 7 x 1."""
    pair = [(inner, 7, 1), (inner, 1, 7)]
    return {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(inner, 1, 1), (inner, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(inner, 1, 1), *pair, (inner, 7, 1), (192, 1, 7)],
        _POOL: [(192, 1, 1)],
    }


class Mixed(nn.Module):
    """Parallel branches, whose outputs are concatenated.

    The branch `branch_pool` gets the mean of the pixels around each pixel. With `halves` the last
    layer of each branch has a stride of 2, and the maximum of the input is an output too.
    """

    def __init__(self, before: int, branches: Branches, *, halves: bool = False) -> None:
        super().__init__()
        self._halves = halves
        self._names: dict[str, list[str]] = {}  # names of the layers of each branch
        for branch, layers in branches.items():
            self._names[branch] = []
            width = before
            for number, layer in enumerate(layers, 1):
                name = branch if len(layers) == 1 else f"{branch}_{number}"
                shrinks = halves and number == len(layers)
                module = ConvNorm(width, layer, stride=2 if shrinks else 1, shrinks=shrinks)
                self.add_module(name, module)
                self._names[branch].append(name)
                width = layer[0]

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, D', H', W']."""
        outputs: list[Tensor] = []
        for branch, names in self._names.items():
            output = _mean(x) if branch == _POOL else x
            for name in names:
                output = self.get_submodule(name)(output)
            outputs.append(output)
        if self._halves:
            outputs.append(_halved(x))
        return torch.cat(outputs, 1)


class WideMixed(nn.Module):
    """Block of 8 x 8 features: branches that split into 1 x 3 and 3 x 1 kernels.

    The last block of the network has max pooling, the others average pooling.
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


def _mean(x_BDHW: Tensor) -> Tensor:
    return functional.avg_pool2d(x_BDHW, 3, 1, 1, count_include_pad=False)


def _halved(x_BDHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BDHW, 3, 2)


def enlarged(pixels: Tensor, side: int) -> Tensor:
    """Resizes pixels bilinearly to [B, 3, side, side], as in TensorFlow 1.

    The position of output pixel i in the input is i times the ratio of the sizes.
    """
    return _resized(_resized(pixels, side, 2), side, 3)


def _resized(pixels: Tensor, side: int, axis: int) -> Tensor:
    size = pixels.shape[axis]
    positions = torch.arange(side, device=pixels.device, dtype=pixels.dtype) * (size / side)
    low = positions.floor().long()
    shape = [1, 1, 1, 1]
    shape[axis] = side
    weight = (positions - low).view(shape)
    first = pixels.index_select(axis, low)
    second = pixels.index_select(axis, (low + 1).clamp(max=size - 1))
    return first + (second - first) * weight
