"""Comparison of two success rates over the same starts."""

import pytest

from vlatool.evaluation.success import PairCounts


# Source: reference/policy 4.2; the first interval is in table II of the paper that it names. The
# p-value: 2 (C(14,0) + C(14,1) + C(14,2)) / 2^14.
@pytest.mark.parametrize(
    ("counts", "interval", "p_value"),
    [
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
