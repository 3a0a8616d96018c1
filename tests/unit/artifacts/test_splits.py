"""Validation split of shards. Source: reference/future-vla 2.2."""

import pytest

from vlatool.artifacts.image_shards.format import validation_positions


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0]), (50, [0]), (150, [0, 75]), (1693, list(range(0, 1585, 99)))],
)
def test_one_percent_is_spread_evenly(count: int, expected: list[int]) -> None:
    assert validation_positions(count, 0.01) == expected


@pytest.mark.parametrize(
    ("count", "ratio", "expected"),
    [(0, 0.5, []), (5, 0.3, [0, 2]), (5, 0.5, [0, 1, 2]), (2, 0.99, [0, 1]), (100, 0.01, [0])],
)
def test_other_ratios_take_the_next_whole_number(
    count: int, ratio: float, expected: list[int]
) -> None:
    assert validation_positions(count, ratio) == expected
