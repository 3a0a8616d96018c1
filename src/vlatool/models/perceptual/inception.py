"""Inception-v3 as the Frechet distance of pictures takes it, under the names of its file.

It differs from the usual network: average pools do not count the border, the last pool is a
maximum, and pictures are enlarged as TensorFlow 1 did. Source: reference/titok 5.4; Inception paper (arXiv
1512.00567), section 6.

Legend of shapes: B pictures, D channels, H and W their size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 2048
_CLASSES = 1008
_EDGE = 299
_EPSILON = 1e-3

# Output channels, height and width of the kernel.
Layer = tuple[int, int, int]


class FrozenNorm(nn.Module):
    """Batch norm by stored statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """The same shape."""
        return functional.batch_norm(
            x_BDHW, self.running_mean, self.running_var, self.weight, self.bias, eps=_EPSILON
        )


class ConvNorm(nn.Module):
    """Convolution without bias, norm, ReLU; padded to keep the size unless it shrinks it."""

    def __init__(
        self, before: int, layer: Layer, *, stride: int = 1, shrinks: bool = False
    ) -> None:
        super().__init__()
        width, rows, columns = layer
        padding = (0, 0) if shrinks else (rows // 2, columns // 2)
        self.conv = nn.Conv2d(before, width, (rows, columns), stride, padding, bias=False)
        self.bn = FrozenNorm(width)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """[B, D', H', W']."""
        return functional.relu(self.bn(self.conv(x_BDHW)))


class _Mixed(nn.Module):
    """Branches side by side, each named as in the file."""

    def chain(self, name: str, before: int, *layers: Layer, halves: bool = False) -> None:
        """Adds the layers `name_1`, `name_2`, ...; `name` alone where there is one."""
        for number, layer in enumerate(layers, 1):
            shrinks = halves and number == len(layers)
            label = name if len(layers) == 1 else f"{name}_{number}"
            stride = 2 if shrinks else 1
            self.add_module(label, ConvNorm(before, layer, stride=stride, shrinks=shrinks))
            before = layer[0]

    def run(self, name: str, x: Tensor) -> Tensor:
        """Through the layers of one branch."""
        for label, layer in self.named_children():
            if name in (label, label.rpartition("_")[0]):
                x = layer(x)
        return x


class _Fives(_Mixed):
    """35 x 35: kernels of 1, 5 and twice 3."""

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
    """35 x 35 to 17 x 17."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.chain("branch3x3", before, (384, 3, 3), halves=True)
        self.chain("branch3x3dbl", before, (64, 1, 1), (96, 3, 3), (96, 3, 3), halves=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.run("branch3x3", x), self.run("branch3x3dbl", x), _halved(x)], 1)


class _Sevens(_Mixed):
    """17 x 17: kernels of 1, and of 7 in one direction at a time."""

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
    """17 x 17 to 8 x 8."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.chain("branch3x3", before, (192, 1, 1), (320, 3, 3), halves=True)
        sevens = ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3))
        self.chain("branch7x7x3", before, *sevens, halves=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.run("branch3x3", x), self.run("branch7x7x3", x), _halved(x)], 1)


class _Wide(nn.Module):
    """8 x 8: branches that part into rows and columns; the pool of the last one is a maximum."""

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
        """[B, 2048, H, W]."""
        one = self.branch3x3_1(x)
        two = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self._is_last else _mean(x)
        found = [
            self.branch1x1(x),
            self.branch3x3_2a(one),
            self.branch3x3_2b(one),
            self.branch3x3dbl_3a(two),
            self.branch3x3dbl_3b(two),
            self.branch_pool(pooled),
        ]
        return torch.cat(found, 1)


class InceptionFeatures(nn.Module):
    """Pictures uint8 [B, 3, H, W] to pooled features; `logits` makes classes of those.

    Attributes:
        width: Features of a picture.
    """

    width: int = FEATURES

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
        """Features [B, 2048] in the precision of the weights."""
        x = (enlarged(images.to(self.fc.weight.dtype), _EDGE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = _halved(x)
        for name, layer in self.named_children():
            if name.startswith("Mixed"):
                x = layer(x)
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """[B, 1008] of features, without the bias, as the inception score has it."""
        return functional.linear(features, self.fc.weight)


def enlarged(pixels: Tensor, edge: int) -> Tensor:
    """Pixels [B, 3, edge, edge]: bilinear, pixel i at i times the ratio, as in TensorFlow 1."""
    return _stretched(_stretched(pixels, edge, 2), edge, 3)


def _stretched(pixels: Tensor, edge: int, axis: int) -> Tensor:
    size = pixels.shape[axis]
    at = torch.arange(edge, device=pixels.device, dtype=pixels.dtype) * (size / edge)
    low = at.floor().long()
    share = (at - low).view([edge if dim == axis else 1 for dim in range(4)])
    first = pixels.index_select(axis, low)
    second = pixels.index_select(axis, (low + 1).clamp(max=size - 1))
    return first + (second - first) * share


def _mean(x_BDHW: Tensor) -> Tensor:
    return functional.avg_pool2d(x_BDHW, 3, 1, 1, count_include_pad=False)


def _halved(x_BDHW: Tensor) -> Tensor:
    return functional.max_pool2d(x_BDHW, 3, 2)
