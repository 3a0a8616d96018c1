"""Frechet distance of two sets of features."""

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.builders.errors import fails
from vlatool.evaluation.image_metrics import FeatureMoments, frechet_distance


def features(seed: int, count: int = 60, width: int = 12) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    return torch.from_numpy(rng.normal(size=(count, width)) @ mix + seed)


def moments(rows: torch.Tensor) -> FeatureMoments:
    result = FeatureMoments.of_width(rows.shape[1])
    for part in rows.split(7):
        result.add(part)
    return result


def test_distance_is_that_of_the_matrix_root() -> None:
    a, b = features(1), features(2)
    means = a.mean(0).numpy(), b.mean(0).numpy()
    s, t = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = np.real(np.asarray(scipy.linalg.sqrtm(s @ t)))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


def test_distance_of_shifted_features_is_the_square_of_the_shift() -> None:
    rows = features(3)
    shifted = moments(rows + 0.5)
    assert frechet_distance(moments(rows), shifted) == pytest.approx(12 * 0.25, rel=1e-6)
    few = moments(features(4, count=5))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    single = moments(features(6, count=1))
    with fails("data.no_samples"):
        frechet_distance(single, single)


def test_moments_over_ranks_are_those_of_all_images() -> None:
    rows = features(5)
    ranks = [moments(part) for part in rows.split([20, 1, 39])]
    names = iter(("count", "total", "products"))

    def reduce(own: torch.Tensor) -> torch.Tensor:
        name = next(names)
        return sum((getattr(rank, name) for rank in ranks), torch.zeros_like(own))

    mean, covariance = ranks[1].reduced(reduce).mean_and_covariance()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-9)
