from typing import Any

import numpy as np
import pytest

from vlatool.datasets.stats.layout import Statistics, StatsPart, merge_parts
from vlatool.errors import DataError
from vlatool.transforms.statistics import summary, window_statistics

NUMBERS = np.random.default_rng(0).normal(3, 2, (40, 6, 2))


def stats(values: np.ndarray, *names: str) -> Statistics:
    """Statistics of windows [N, T, C], nothing padded, under each name."""
    entry = summary(window_statistics([values], np.ones(values.shape[:2], bool)))
    return dict.fromkeys(names or ("x",), entry)


@pytest.mark.parametrize(
    "key", ["count", "mean", "std", "min", "max", "std_per_timestep", "percentile_5"]
)
def test_equal_windows_merge_to_the_statistics_of_all_samples(key: str) -> None:
    parts = [StatsPart(stats(part)) for part in np.split(NUMBERS, [10, 25])]

    merged = merge_parts(parts).statistics["x"]

    np.testing.assert_allclose(merged[key], stats(NUMBERS)["x"][key], rtol=1e-9)


def test_different_windows_are_aligned_by_the_anchor() -> None:
    # Steps 0 to 5 around anchor 2 for one, steps 1 to 4 around anchor 1 (the same) for the other.
    first, second = NUMBERS[:20], NUMBERS[20:, 1:5]

    merged = merge_parts([StatsPart(stats(first), past=2), StatsPart(stats(second), past=1)])

    both = np.concatenate([first[:, 1:5], second])
    assert merged.steps == 4
    np.testing.assert_allclose(
        merged.statistics["x"]["mean_per_timestep"], both.mean(axis=0), rtol=1e-12
    )


@pytest.mark.parametrize("samples", [(4, 4), (9, 9), (3, 37), (1, 5)])
def test_weights_give_the_mean_of_the_mixture(samples: tuple[int, int]) -> None:
    zeros, ones = (np.full((n, 2, 1), value) for n, value in zip(samples, (0.0, 1.0), strict=True))

    merged = merge_parts([StatsPart(stats(zeros), weight=1), StatsPart(stats(ones), weight=3)])

    np.testing.assert_allclose(merged.statistics["x"]["mean"], [0.75])


def test_few_rows_of_a_part_with_a_small_weight_keep_their_mean_and_spread() -> None:
    values = np.random.default_rng(1).normal(100, 1, (5000, 2, 1))
    few, none = (np.ones((rows, 2), bool) for rows in (5000, 500))
    few[40:, 1], none[:, 1] = False, False
    parts = [
        StatsPart({"x": summary(window_statistics([part], valid))}, weight=weight)
        for part, valid, weight in ((values, few, 0.01), (values[:500], none, 0.99))
    ]

    merged = merge_parts(parts).statistics["x"]

    assert merged["mean_per_timestep"][1][0] == pytest.approx(values[:40, 1].mean())
    assert merged["std_per_timestep"][1][0] == pytest.approx(values[:40, 1].std(), rel=0.3)


def test_counts_of_a_mixture_are_whole_numbers() -> None:
    parts = [StatsPart(stats(NUMBERS[:7]), weight=1), StatsPart(stats(NUMBERS[7:]), weight=2)]

    merged = merge_parts(parts).statistics["x"]

    assert {type(count) for count in merged["count"]} == {int}


def test_field_that_a_part_lacks_or_of_unequal_channels_is_named() -> None:
    fit, wide = stats(NUMBERS, "x", "y"), stats(NUMBERS[..., :1], "y")
    merged = merge_parts([StatsPart(fit), StatsPart({**fit, **wide})], leave_out_unequal=True)
    assert (list(merged.statistics), list(merged.left_out)) == (["x"], ["y"])

    merged = merge_parts([StatsPart(fit), StatsPart(stats(NUMBERS, "x", "z"))])
    assert list(merged.statistics) == ["x"]
    assert merged.left_out == {"y": "not in 1 of 2", "z": "not in 1 of 2"}


def without(key: str) -> Statistics:
    entry = dict(stats(NUMBERS)["x"])
    del entry[key]
    return {"x": entry}


def changed(**keys: Any) -> Statistics:
    return {"x": {**stats(NUMBERS)["x"], **keys}}


@pytest.mark.parametrize(
    "other",
    [
        StatsPart(stats(NUMBERS, "y")),
        StatsPart(stats(NUMBERS[..., :1])),
        StatsPart(stats(NUMBERS[:, :4])),
        StatsPart(without("tdigest_state_per_timestep")),
        StatsPart(without("count")),
        StatsPart(changed(tdigest_state_per_timestep=None)),
        StatsPart(changed(mean_per_timestep=[[None, None]] * 6)),
        StatsPart(changed(tdigest_state_per_timestep=stats(NUMBERS)["x"]["tdigest_state"])),
    ],
    ids=[
        "no common field",
        "channels",
        "windows without anchor",
        "no digests",
        "no count",
        "null digests",
        "null means",
        "digests of another shape",
    ],
)
def test_statistics_that_do_not_fit_are_refused(other: StatsPart) -> None:
    with pytest.raises(DataError) as caught:
        merge_parts([StatsPart(stats(NUMBERS)), other])

    assert caught.value.code == "data.mismatch"
    assert caught.value.hint


@pytest.mark.parametrize("pasts", [(1, None), (99, 1)], ids=["unknown", "beyond the window"])
def test_anchor_that_cannot_be_matched_is_refused(pasts: tuple[int, int | None]) -> None:
    with pytest.raises(DataError) as caught:
        merge_parts([StatsPart(stats(NUMBERS), past=past) for past in pasts])

    assert caught.value.code == "data.mismatch"


def test_step_without_rows_has_no_weight() -> None:
    entry = stats(NUMBERS)["x"]
    never = {**entry, "count": [0, *entry["count"][1:]]}
    never["mean_per_timestep"] = [[None, None], *entry["mean_per_timestep"][1:]]

    merged = merge_parts([StatsPart({"x": never}), StatsPart(stats(NUMBERS))]).statistics["x"]

    np.testing.assert_allclose(merged["mean_per_timestep"], entry["mean_per_timestep"])
