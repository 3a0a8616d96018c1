"""Comparison of two success rates over the same starts."""

import math

import pytest

from vlatool.evaluation.success import PairCounts


# Source: reference/policy 4.2. The first two intervals are published, in the tests of the R package
# contingencytables (data of Cavo et al. 2012) and for table 6.2 of Altman et al., Statistics with
# Confidence, 2000; the others agree with a second implementation of the formula. The p-value is
# 2 (C(n,0) + ... + C(n,k)) / 2^n of n pairs that differ, k of them in favor of the worse policy.
@pytest.mark.parametrize(
    ("counts", "interval", "p_value"),
    [
        (
            PairCounts(59, 16, 6, 80),
            (-0.1186, -0.0046),
            2 * sum(math.comb(22, k) for k in range(7)) / 2**22,
        ),
        (PairCounts(14, 0, 5, 22), (0.0115, 0.2265), 2 / 2**5),
        (PairCounts(36, 2, 12, 0), (0.0569, 0.3404), 2 * (1 + 14 + 91) / 2**14),
        (PairCounts(36, 12, 2, 0), (-0.3404, -0.0569), 2 * (1 + 14 + 91) / 2**14),
        (PairCounts(5, 0, 0, 5), (-0.1666, 0.1666), 1.0),
        (PairCounts(0, 0, 0, 0), (-1.0, 1.0), 1.0),
    ],
)
def test_difference_of_paired_outcomes(
    counts: PairCounts, interval: tuple[float, float], p_value: float
) -> None:
    assert counts.confidence_95() == pytest.approx(interval, abs=5e-5)
    assert counts.p_value() == pytest.approx(p_value)


def test_pairs_are_counted_by_outcome() -> None:
    pairs = [(True, True), (True, False), (True, False), (False, True)]
    assert PairCounts.of(pairs) == PairCounts(both=1, only_a=2, only_b=1, neither=0)
