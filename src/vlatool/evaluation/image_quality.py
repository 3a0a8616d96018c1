"""How like their originals pictures are: one figure per picture, means over all of them.

Pictures are compared as bytes, the way they are stored: what a network makes is clamped and rounded
first. Source: reference/titok 5.4.

Legend of shapes: B pictures, H and W their size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from vlatool.errors import DataError

# Sums of a tensor over all ranks.
Reduce = Callable[[Tensor], Tensor]

_PEAK = 255.0
# Of pictures without any difference, whose ratio is infinite.
MAX_PSNR_DB = 100.0
# Source: Wang et al. 2004, section III.C.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in [0, 1], or beyond, as uint8."""
    return (pixels.float().clamp(0, 1) * _PEAK).round().to(torch.uint8)


def squared_error(original: Tensor, made: Tensor) -> Tensor:
    """Mean squared error of pictures uint8 [B, 3, H, W]: float32 [B]."""
    return (original.float() - made.float()).square().flatten(1).mean(1)


def psnr(original: Tensor, made: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures uint8 [B, 3, H, W] in dB: float32 [B].

    Its mean over pictures is above the ratio of the mean error, by which sets are compared.
    """
    return psnr_of_error(squared_error(original, made))


def psnr_of_error(error: Tensor) -> Tensor:
    """The same from mean squared errors of bytes; at most `MOST_DB`."""
    return (10 * (_PEAK**2 / error).log10()).clamp(max=MAX_PSNR_DB)


def ssim(original: Tensor, made: Tensor) -> Tensor:
    """Structural similarity of pictures uint8 [B, 3, H, W], mean of the channels: float32 [B].

    Gaussian windows of 11 x 11 with a sigma of 1.5 that lie inside the picture. Source: Wang et al.
    2004, equation 13.

    Raises:
        DataError: The pictures are smaller than a window.
    """
    if min(original.shape[2:]) < _WINDOW:
        raise DataError(
            f"pictures of {list(original.shape[2:])} pixels; SSIM needs {_WINDOW} x {_WINDOW}",
            hint="compare larger pictures",
            code="data.picture_too_small",
        )
    x, y = original.float(), made.float()
    mean_x, mean_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    spread = (xx - mean_x.square()) + (yy - mean_y.square()) + _C2
    shared = 2 * (xy - mean_x * mean_y) + _C2
    light = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (light * shared / spread).flatten(1).mean(1)


def _blurred(values: Tensor) -> Tensor:
    """Weighted means of the windows of [5, B, 3, H, W]: [5, B, 3, H - 10, W - 10]."""
    at = torch.arange(_WINDOW, device=values.device, dtype=values.dtype) - _WINDOW // 2
    weights = (-at.square() / (2 * _SIGMA**2)).exp()
    weights = weights / weights.sum()
    single = values.flatten(0, 2).unsqueeze(1)
    rows = functional.conv2d(single, weights.view(1, 1, -1, 1))
    both = functional.conv2d(rows, weights.view(1, 1, 1, -1))
    return both.view(*values.shape[:3], *both.shape[2:])


def block_means(images: Tensor, edge: int) -> Tensor:
    """Pictures uint8 [B, 3, H, W] of which every block of `edge` pixels has its mean colour."""
    height, width = images.shape[2:]
    small = functional.avg_pool2d(images.float(), edge, ceil_mode=True, count_include_pad=False)
    large = small.repeat_interleave(edge, 2).repeat_interleave(edge, 3)
    return large[..., :height, :width].round().to(torch.uint8)


@dataclass(frozen=True)
class ImageScore:
    """A picture by its name, with its figures."""

    key: str
    metrics: Mapping[str, float]


@dataclass
class ImageScores:
    """Figures of pictures, and their sums, which add up over ranks.

    Attributes:
        names: The figures, the same on every rank.
        device: Where sums over ranks are made; None: the CPU.
        rows: The pictures of this rank.
    """

    names: Sequence[str]
    device: torch.device | None = None
    rows: list[ImageScore] = field(default_factory=list[ImageScore])

    def add(self, keys: Sequence[str], figures: Mapping[str, Tensor]) -> None:
        """Takes in the figures [B] of some pictures."""
        columns = [figures[name].tolist() for name in self.names]
        for key, *values in zip(keys, *columns, strict=True):
            self.rows.append(ImageScore(key, dict(zip(self.names, values, strict=True))))

    def sums(self) -> Tensor:
        """Sum of each figure, then the number of pictures: float64 [names + 1]."""
        values = [[row.metrics[name] for name in self.names] for row in self.rows]
        table = torch.tensor(values, dtype=torch.float64).view(len(self.rows), len(self.names))
        return torch.cat([table.sum(0), torch.tensor([float(len(self.rows))])]).to(
            device=self.device
        )

    def means(self, reduce: Reduce = lambda one: one) -> dict[str, float]:
        """Mean of each figure over all pictures of all ranks; empty without any."""
        *totals, count = reduce(self.sums()).tolist()
        return {n: one / count for n, one in zip(self.names, totals, strict=True)} if count else {}


@dataclass(frozen=True)
class BestMedianWorst:
    """Pictures to look at, by one figure; a picture stands in one of them only."""

    best: Sequence[ImageScore]
    median: Sequence[ImageScore]
    worst: Sequence[ImageScore]


def extremes(rows: Sequence[ImageScore], figure: str, count: int) -> BestMedianWorst:
    """The best, median and worst `count` pictures, fewer of each where there are not so many.

    Best first; equal ones by name, so that the choice does not depend on the order of ranks.
    """
    ranked = sorted(rows, key=lambda row: (-row.metrics[figure], row.key))
    count = min(count, max(1, len(ranked) // 3)) if ranked else 0
    best, rest = ranked[:count], ranked[count:]
    worst = rest[max(0, len(rest) - count) :]
    between = rest[: len(rest) - len(worst)]
    start = (len(between) - count) // 2 if len(between) > count else 0
    return BestMedianWorst(best, between[start : start + count], worst)


@dataclass
class MeanImageBaseline:
    """The error that is made by always showing the mean of all pictures, from sums.

    Attributes:
        total: Sum of the pictures, float64 [3, H, W].
        squares: Sum of all squares, float64 scalar.
        count: Pictures, float64 scalar.
    """

    total: Tensor
    squares: Tensor
    count: Tensor

    @classmethod
    def of_size(cls, height: int, width: int, device: torch.device) -> "MeanImageBaseline":
        """No picture yet."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        total = torch.zeros((3, height, width), dtype=torch.float64, device=device)
        return cls(total, zero, zero)

    def add(self, images: Tensor) -> None:
        """Takes in pictures uint8 [B, 3, H, W]."""
        values = images.double()
        self.total = self.total + values.sum(0)
        self.squares = self.squares + values.square().sum()
        self.count = self.count + len(images)

    def psnr(self, reduce: Reduce = lambda one: one) -> float:
        """Of the mean picture, from the mean squared error over all pictures of all ranks."""
        total, squares, count = map(reduce, (self.total, self.squares, self.count))
        count = count.clamp(min=1)
        error = squares / count - (total / count).square().sum()
        return float(psnr_of_error((error / total.numel()).clamp(min=0)))
