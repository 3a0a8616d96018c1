"""The Frechet distance of two sets of pictures, from sums of features that add up over ranks.

Source: reference/titok 5.4; Heusel et al. 2017 (arXiv 1706.08500), equation 6.

Legend of shapes: B pictures, F features.
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
        count: Pictures, scalar.
        total: Sum of features [F].
        products: Sum of outer products [F, F].
    """

    count: Tensor
    total: Tensor
    products: Tensor

    @classmethod
    def of_width(cls, width: int, device: torch.device | None = None) -> "FeatureMoments":
        """No picture yet."""
        options = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros((), **options),
            torch.zeros(width, **options),
            torch.zeros((width, width), **options),
        )

    def add(self, features: Tensor) -> None:
        """Takes in features [B, F]."""
        rows = features.double()
        self.count = self.count + len(rows)
        self.total = self.total + rows.sum(0)
        self.products = torch.addmm(self.products, rows.T, rows)

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "FeatureMoments":
        """The moments over all ranks; `reduce` sums a tensor over them."""
        return FeatureMoments(*map(reduce, (self.count, self.total, self.products)))

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean [F] and unbiased covariance [F, F].

        Raises:
            DataError: There are fewer than two pictures.
        """
        if float(self.count) < 2:
            raise DataError(
                f"{int(self.count)} pictures: a Frechet distance needs at least two",
                hint="compare more pictures; below some ten thousand the distance is too large",
                code="data.too_few_pictures",
            )
        mean = self.total / self.count
        centerd = self.products - self.count * torch.outer(mean, mean)
        return mean, centerd / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Squared distance of the means, and how far the covariances are apart.

    The root of the product of two covariances has the trace of the root of the symmetric
    `root(A) B root(A)`, so that no complex numbers appear; some seconds for 2048 features.
    """
    (mean_a, a), (mean_b, b) = first.mean_and_covariance(), second.mean_and_covariance()
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * shared
    return max(0.0, float(distance))
