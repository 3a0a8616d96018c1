"""Metrics of images and of codes, computed from sums that ranks add up.

Images are compared as bytes, the way they are stored: the output of a network is clamped and
rounded first. Source: reference/titok 5.4.

Legend of shapes: B images, H and W their size, K codes of an image, N codebook size, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vlatool.errors import DataError
from vlatool.models.codebook import check_codes
from vlatool.models.images import PEAK, psnr_of_error

# Sums of a tensor over all ranks.
Reduce = Callable[[Tensor], Tensor]

# Source: Wang et al. 2004, section III.C.
_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2
_EPSILON = 1e-8
# Difference of two frames in a channel, of 255, above which a pixel moves; the noise of cameras is
# less.
MOVED = 25


def squared_error(original: Tensor, other: Tensor) -> Tensor:
    """Mean squared error of images uint8 [B, 3, H, W]: float32 [B]."""
    return (original.float() - other.float()).square().flatten(1).mean(1)


def ssim(original: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of images uint8 [B, 3, H, W], mean of the channels: float32 [B].

    Uses the Gaussian windows of 11 x 11 with sigma 1.5 that are inside the image. Source: Wang et
    al. 2004, equation 13.
    """
    if min(original.shape[2:]) < _WINDOW:
        raise DataError(
            f"images of {list(original.shape[2:])} pixels; SSIM needs {_WINDOW} x {_WINDOW}",
            hint="compare larger images",
            code="data.mismatch",
        )
    x = original.float()
    y = other.float()
    mean_x, mean_y, xx, yy, xy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    variance = (xx - mean_x.square()) + (yy - mean_y.square()) + _C2
    covariance = 2 * (xy - mean_x * mean_y) + _C2
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * covariance / variance).flatten(1).mean(1)


def _window_means(values: Tensor) -> Tensor:
    """Weighted means of the windows of [5, B, 3, H, W]: [5, B, 3, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, device=values.device, dtype=values.dtype) - _WINDOW // 2
    weights = (-offsets.square() / (2 * _SIGMA**2)).exp()
    weights = weights / weights.sum()
    single = values.flatten(0, 2).unsqueeze(1)
    rows = functional.conv2d(single, weights.view(1, 1, -1, 1))
    both = functional.conv2d(rows, weights.view(1, 1, 1, -1))
    return both.view(*values.shape[:3], *both.shape[2:])


def block_means(images: Tensor, edge: int) -> Tensor:
    """Images uint8 [B, 3, H, W] with each block of `edge` x `edge` pixels set to its mean color."""
    height, width = images.shape[2:]
    small = functional.avg_pool2d(images.float(), edge, ceil_mode=True, count_include_pad=False)
    large = small.repeat_interleave(edge, 2).repeat_interleave(edge, 3)
    return large[..., :height, :width].round().to(torch.uint8)


@dataclass(frozen=True)
class ImageScore:
    """Metrics of one image, with its key."""

    key: str
    metrics: Mapping[str, float]


@dataclass
class ImageScores:
    """Metrics of images; ranks add up their sums."""

    names: Sequence[str]  # names of the metrics, the same on all ranks
    device: torch.device | None = None  # device of the sums over ranks; None: the CPU
    rows: list[ImageScore] = field(default_factory=list[ImageScore])  # images of this rank

    def add(self, keys: Sequence[str], metrics: Mapping[str, Tensor]) -> None:
        """Adds the metrics [B] of images."""
        columns = [metrics[name].tolist() for name in self.names]
        for key, *values in zip(keys, *columns, strict=True):
            self.rows.append(ImageScore(key, dict(zip(self.names, values, strict=True))))

    def sums(self) -> Tensor:
        """Sum of each metric, then the number of images: float64 [names + 1]."""
        values = [[row.metrics[name] for name in self.names] for row in self.rows]
        table = torch.tensor(values, dtype=torch.float64).view(len(self.rows), len(self.names))
        count = torch.tensor([len(self.rows)], dtype=torch.float64)
        return torch.cat([table.sum(0), count]).to(device=self.device)

    def means(self, reduce: Reduce = lambda tensor: tensor) -> dict[str, float]:
        """Mean of each metric over the images of all ranks; empty if there are none."""
        *totals, count = reduce(self.sums()).tolist()
        if not count:
            return {}
        return {name: total / count for name, total in zip(self.names, totals, strict=True)}


@dataclass(frozen=True)
class BestMedianWorst:
    """Images to show, ranked by one metric; each image is in one of the lists only."""

    best: Sequence[ImageScore]
    median: Sequence[ImageScore]
    worst: Sequence[ImageScore]

    @property
    def keys(self) -> set[str]:
        return {row.key for row in (*self.best, *self.median, *self.worst)}


def extremes(rows: Sequence[ImageScore], metric: str, count: int) -> BestMedianWorst:
    """The best, median and worst `count` images by `metric`; fewer of each if images run short.

    Best first; ties are ordered by name, so the choice does not depend on the order of ranks.
    """
    ranked = sorted(rows, key=lambda row: (-row.metrics[metric], row.key))
    count = min(count, max(1, len(ranked) // 3))
    best = ranked[:count]
    rest = ranked[count:]
    end = max(0, len(rest) - count)
    worst = rest[end:]
    between = rest[:end]
    start = max(0, (len(between) - count) // 2)
    return BestMedianWorst(best, between[start : start + count], worst)


@dataclass
class MeanImageBaseline:
    """Baseline that reconstructs every image as the mean image, computed from sums."""

    total: Tensor  # sum of the images, float64 [3, H, W]
    squares: Tensor  # sum of all squares, float64 scalar
    count: Tensor  # number of images, float64 scalar

    @classmethod
    def of_size(cls, height: int, width: int, device: torch.device) -> "MeanImageBaseline":
        """Sums of no image, all 0."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        total = torch.zeros((3, height, width), dtype=torch.float64, device=device)
        return cls(total, zero, zero)

    def add(self, images: Tensor) -> None:
        """Adds images uint8 [B, 3, H, W]."""
        values = images.double()
        self.total = self.total + values.sum(0)
        self.squares = self.squares + values.square().sum()
        self.count = self.count + len(images)

    def psnr(self, reduce: Reduce = lambda tensor: tensor) -> float:
        """PSNR in dB of the mean squared error over all images of all ranks."""
        total, squares, count = map(reduce, (self.total, self.squares, self.count))
        count = count.clamp(min=1)
        error = squares / count - (total / count).square().sum()
        return float(psnr_of_error((error / total.numel()).clamp(min=0)))


class FrameIndex(NamedTuple):
    """Position of an image in a sequence of frames."""

    sequence: str  # name of episode and camera; frames of different sequences are not neighbors
    number: int  # frame in the sequence


@dataclass
class MovingPixels:
    """Sums over pixels that differ by more than `MOVED` from the previous frame of this rank."""

    # Sum of the squared errors of these pixels, means of their channels; float64 scalar.
    error: Tensor
    count: Tensor  # number of these pixels, float64 scalar

    def __post_init__(self) -> None:
        self._last: tuple[FrameIndex, Tensor] | None = None

    @classmethod
    def of(cls, device: torch.device | None = None) -> "MovingPixels":
        """Sums of no image, all 0."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero, zero)

    def add(self, original: Tensor, other: Tensor, frames: Sequence[FrameIndex]) -> None:
        """Adds images uint8 [B, 3, H, W], their reconstructions, and the frame of each."""
        if not len(original):
            return
        rows, indices = _after(self._last, original, frames)
        self._last = indices[-1], original[-1:].clone()
        is_next = _follow(indices, original.device)[:, None, None]
        change = (rows[1:].short() - rows[:-1].short()).abs().amax(1)
        moves = (change > MOVED) & is_next
        error = (original.float() - other.float()).square().mean(1)[len(original) - len(moves) :]
        self.error = self.error + error[moves].double().sum()
        self.count = self.count + moves.sum()

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """`psnr_of_moving_pixels` over all ranks, in dB; empty if no pixel moves."""
        error = reduce(self.error)
        count = reduce(self.count)
        if not count:
            return {}
        return {"psnr_of_moving_pixels": float(psnr_of_error(error / count))}


def _after(
    last: tuple[FrameIndex, Tensor] | None, rows: Tensor, frames: Sequence[FrameIndex]
) -> tuple[Tensor, list[FrameIndex]]:
    """Rows [B, ...] and their frames after the last row of the batch before, if there is one."""
    if last is None:
        return rows, list(frames)
    return torch.cat([last[1], rows]), [last[0], *frames]


def _follow(frames: Sequence[FrameIndex], device: torch.device) -> Tensor:
    """Bool [B - 1]: True for a frame that follows the one before it in its sequence."""
    is_next: list[bool] = []
    for frame, other in pairwise(frames):
        is_next.append(other == FrameIndex(frame.sequence, frame.number + 1))
    return torch.tensor(is_next, dtype=torch.bool, device=device)


@dataclass
class CodebookUsage:
    """How often each code occurs, summed over ranks, and how codes change between neighboring
    frames.
    """

    by_position: Tensor  # occurrences of each code at each position of an image [K, N]
    changes: Tensor  # changes of each of the K codes from one frame to the next [K]
    pairs: Tensor  # number of pairs of neighboring frames, scalar

    def __post_init__(self) -> None:
        self._last: tuple[FrameIndex, Tensor] | None = None

    @classmethod
    def of(
        cls, codebook_size: int, codes_per_image: int, device: torch.device | None = None
    ) -> "CodebookUsage":
        """Counts of no image, all 0."""
        shape = (codes_per_image, codebook_size)
        return cls(
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(codes_per_image, dtype=torch.int64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def add(self, codes: Tensor, frames: Sequence[FrameIndex] | None = None) -> None:
        """Adds codes int [B, K] of images, and the frame of each if it is known."""
        number, size = self.by_position.shape
        check_codes(codes, size)
        flat = codes.long() + size * torch.arange(number, device=codes.device)
        counts = torch.bincount(flat.reshape(-1), minlength=number * size)
        self.by_position = self.by_position + counts.view(number, size)
        if frames is None or not len(codes):
            return
        rows, indices = _after(self._last, codes, frames)
        self._last = indices[-1], rows[-1:]
        is_next = _follow(indices, codes.device)
        self.changes = self.changes + (rows[1:] != rows[:-1])[is_next].sum(0)
        self.pairs = self.pairs + is_next.sum()

    def reduced(self, reduce: Reduce) -> "CodebookUsage":
        """Counts over all ranks; `reduce` sums a tensor over ranks."""
        return CodebookUsage(*map(reduce, (self.by_position, self.changes, self.pairs)))

    def metrics(self) -> dict[str, float]:
        """Metrics of the codes; metrics of neighboring frames only if there are any.

        Returns codebook_usage, the share of codes that occurred; codebook_entropy in bits, at most
        log2 N; changed_codes, the mean number of the K codes that differ from one frame to the
        next; constant_places, the number of the K codes that never changed; frequent_codes, the
        share of codes that are the most frequent code at their position, 1 if all images have the
        same codes.
        """
        counts = self.by_position.sum(0)
        total = float(counts.sum())
        shares = counts.double() / max(total, 1.0)
        metrics = {
            "codebook_usage": float((counts > 0).double().mean()),
            "codebook_entropy": float(-(shares * (shares + _EPSILON).log2()).sum()),
            "frequent_codes": float(self.by_position.amax(1).sum()) / max(total, 1.0),
        }
        if int(self.pairs):
            metrics["changed_codes"] = float(self.changes.sum()) / float(self.pairs)
            metrics["constant_places"] = float((self.changes == 0).sum())
        return metrics


@dataclass
class FeatureMoments:
    """Count, sum and products of the features of a set, in float64."""

    count: Tensor  # number of images, scalar
    total: Tensor  # sum of features [F]
    products: Tensor  # sum of outer products [F, F]

    @classmethod
    def of_width(cls, width: int, device: torch.device | None = None) -> "FeatureMoments":
        """Moments of no image, all 0."""
        options = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros((), **options),
            torch.zeros(width, **options),
            torch.zeros((width, width), **options),
        )

    def add(self, features: Tensor) -> None:
        """Adds features [B, F]."""
        rows = features.double()
        self.count = self.count + len(rows)
        self.total = self.total + rows.sum(0)
        self.products = torch.addmm(self.products, rows.T, rows)

    def reduced(self, reduce: Reduce) -> "FeatureMoments":
        """Moments over all ranks; `reduce` sums a tensor over ranks."""
        return FeatureMoments(*map(reduce, (self.count, self.total, self.products)))

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean [F] and unbiased covariance [F, F]."""
        if float(self.count) < 2:
            raise DataError(
                f"{int(self.count)} images: a Frechet distance needs at least 2",
                hint="compare more images; below about ten thousand the distance comes out "
                "too large",
                code="data.no_samples",
            )
        mean = self.total / self.count
        centered = self.products - self.count * torch.outer(mean, mean)
        return mean, centered / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Frechet distance: squared distance of the means plus the distance of the covariances.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.

    The square root of the product of two covariances has the same trace as the square root of the
    symmetric `root(A) B root(A)`, which avoids complex numbers. Takes some seconds for 2048
    features.
    """
    (mean_a, a), (mean_b, b) = first.mean_and_covariance(), second.mean_and_covariance()
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * shared
    return max(0.0, float(distance))
