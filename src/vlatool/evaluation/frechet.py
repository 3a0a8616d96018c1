"""Frechet distance of two sets of images, from sums of features that are added over ranks.

Source: reference/titok 5.4; Heusel et al. 2017 (arXiv 1706.08500), equation 6.

Legend of shapes: B images, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlatool.errors import DataError


@dataclass
class FeatureMoments:
    """Count, sum and products of the features of a set, in float64.

    Attributes:
        count: Number of images, scalar.
        total: Sum of features [F].
        products: Sum of outer products [F, F].
    """

    count: Tensor
    total: Tensor
    products: Tensor

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

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "FeatureMoments":
        """Moments over all ranks; `reduce` sums a tensor over ranks."""
        return FeatureMoments(*map(reduce, (self.count, self.total, self.products)))

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean [F] and unbiased covariance [F, F].

        Raises:
            DataError: There are fewer than two images.
        """
        if float(self.count) < 2:
            raise DataError(
                f"{int(self.count)} images: a Frechet distance needs at least two",
                hint="compare more images; with fewer than some ten thousand the distance is too "
                "large",
                code="data.too_few_pictures",
            )
        mean = self.total / self.count
        centered = self.products - self.count * torch.outer(mean, mean)
        return mean, centered / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Frechet distance: squared distance of the means plus the distance of the covariances.

    The square root of the product of two covariances has the same trace as that of the symmetric
    `root(A) B root(A)`, which avoids complex numbers. Takes some seconds for 2048 features.
    """
    (mean_a, a), (mean_b, b) = first.mean_and_covariance(), second.mean_and_covariance()
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * shared
    return max(0.0, float(distance))
