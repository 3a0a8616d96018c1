"""Inception-v3 for the Frechet inception distance, with the names of its released file.

It differs from the usual network: average pooling excludes the padding, the last pooling is max
pooling, and images are resized as in TensorFlow 1.
Source: reference/titok 5.4; Inception paper (arXiv 1512.00567), section 6.

Legend of shapes: B images, D channels, H height, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 2048
_CLASSES = 1008
_EDGE = 299
_EPSILON = 1e-3

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
        """Returns a tensor of the same shape."""
        return functional.batch_norm(
            x_BDHW, self.running_mean, self.running_var, self.weight, self.bias, eps=_EPSILON
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
        """Applies the layers of one branch."""
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
        self.fc = nn.Linear(FEATURES, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns features [B, 2048] in the dtype of the weights."""
        x = (enlarged(images.to(self.fc.weight.dtype), _EDGE) - 128) / 128
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
    """Resizes pixels bilinearly to [B, 3, edge, edge], as in TensorFlow 1.

    The position of output pixel i in the input is i times the ratio of the sizes.
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
