from typing import Any

import numpy as np
import pytest

from vlatool.errors import DataError
from vlatool.transforms.normalize import FieldScale, Method, Scope, field_scale, unscaled

STATS: dict[str, Any] = {
    "mean": [2.0, 5.0],
    "std": [4.0, 0.0],
    "min": [-6.0, 5.0],
    "max": [10.0, 5.0],
    "percentile_5": [-2.0, 5.0],
    "percentile_95": [6.0, 5.0],
    "percentile_1": [-4.0, 5.0],
    "percentile_99": [8.0, 5.0],
    "mean_per_timestep": [[1.0, 5.0], [3.0, 5.0]],
    "std_per_timestep": [[2.0, 0.0], [0.0, 0.0]],
    "min_per_timestep": [[-6.0, 5.0], [3.0, 5.0]],
    "max_per_timestep": [[10.0, 5.0], [3.0, 5.0]],
}


def scale(
    method: Method = "std",
    scope: Scope = "global",
    *,
    epsilon: float = 1e-8,
    centered: bool = False,
    stats: dict[str, Any] = STATS,
) -> FieldScale:
    return field_scale(
        stats,
        field="f",
        method=method,
        scope=scope,
        epsilon=epsilon,
        centered=centered,
    )


@pytest.mark.parametrize(
    ("method", "centered", "value", "expected"),
    [
        ("std", False, 6.0, 1.0),
        ("std", True, 6.0, 1.0),
        ("min_max", False, -6.0, 0.0),
        ("min_max", False, 10.0, 1.0),
        ("min_max", True, -6.0, -1.0),
        ("min_max", True, 10.0, 1.0),
        ("percentile_5_95", False, 6.0, 1.0),
        ("percentile_5_95", True, -2.0, -1.0),
        ("percentile_1_99", False, -4.0, 0.0),
        ("percentile_1_99", True, 8.0, 1.0),
    ],
)
def test_method_maps_its_statistics_to_the_range(
    method: Method, centered: bool, value: float, expected: float
) -> None:
    normalized = scale(method, centered=centered).normalize(np.array([value, 5.0]))

    np.testing.assert_allclose(normalized, [expected, 0.0], atol=1e-6)


@pytest.mark.parametrize("method", ["std", "min_max", "percentile_5_95", "percentile_1_99"])
def test_constant_dimension_is_centered_and_scaled_by_one(method: Method) -> None:
    result = scale(method)

    assert result.constant.tolist() == [False, True]
    assert (result.center[1], result.scale[1]) == (5.0, 1.0)


@pytest.mark.parametrize("scope", ["global", "per_timestep"])
def test_a_constant_dimension_is_commanded_as_recorded_whatever_was_predicted(scope: Scope) -> None:
    predicted = np.array([[0.5, 3.7], [0.5, -2.1]])

    assert scale("std", scope).denormalize(predicted)[:, 1].tolist() == [5.0, 5.0]


def test_a_dimension_that_differs_by_rounding_is_commanded_at_its_mean() -> None:
    stats = {**STATS, "mean": [2.0, 0.1], "min": [-6.0, 0.1 - 1e-8], "max": [10.0, 0.1 + 1e-8]}

    assert scale(stats=stats).denormalize(np.array([0.0, 9.0]))[1] == 0.1


def test_statistics_without_range_hold_the_mean_where_nothing_deviates() -> None:
    stats = {"mean": STATS["mean"], "std": STATS["std"]}
    assert scale(stats=stats).denormalize(np.array([1.0, 0.3])).tolist() == [6.0, 5.0]


def test_fields_without_normalization_hold_constant_dimensions_too() -> None:
    assert unscaled(STATS, "f").denormalize(np.array([1.5, 9.0])).tolist() == [1.5, 5.0]


def test_nearly_constant_dimension_counts_relative_to_its_size() -> None:
    stats = {**STATS, "mean": [1e6, 0.0], "min": [1e6, 0.0], "max": [1e6 + 0.5, 1e-3]}

    assert scale(stats=stats).constant.tolist() == [True, False]


def test_step_that_never_changes_has_scale_one_and_each_has_its_own_statistics() -> None:
    result = scale("std", "per_timestep")

    assert result.scale.tolist() == [[2, 1], [1, 1]]
    assert result.constant.tolist() == [False, True]
    assert result.normalize(np.array([[5.0, 5.0], [5.0, 5.0]])).tolist() == [[2, 0], [2, 0]]


def test_steps_selects_the_steps_of_a_cropped_window_unless_the_scale_is_global() -> None:
    assert scale("std", "per_timestep").steps(1, 1).center.tolist() == [[3, 5]]

    assert scale().steps(1, 1).center.tolist() == [2, 5]


def test_epsilon_is_the_smallest_scale_and_a_scalar_applies_to_every_dimension() -> None:
    small, scalar = {**STATS, "std": [1e-4, 0.0]}, {**STATS, "std": 0.5}

    assert scale(stats=small, epsilon=0.01).scale.tolist() == pytest.approx([0.01, 1.0])
    assert scale(stats=scalar).scale.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("method", ["std", "min_max", "percentile_5_95"])
@pytest.mark.parametrize("centered", [False, True])
def test_denormalize_inverts_normalize(method: Method, centered: bool) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 2)) * 10
    values[..., 1] = 5.0  # never changes
    result = scale(method, centered=centered)

    np.testing.assert_allclose(result.denormalize(result.normalize(values)), values, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "scope", "key", "value"),
    [
        ("percentile_5_95", "global", "percentile_5", None),
        ("percentile_5_95", "global", "percentile_5", [None, 5.0]),
        ("percentile_5_95", "global", "percentile_95", [6.0, float("nan")]),
        ("std", "global", "mean", [float("inf"), 5.0]),
        ("std", "global", "mean", 2.0),
        ("std", "global", "mean", [[2.0, 5.0]]),
        ("std", "global", "mean", []),
        ("std", "global", "mean", "two"),
        ("std", "global", "std", [4.0]),
        ("std", "global", "std", {"x": 4.0}),
        ("std", "global", "max", [10.0, 5.0, 1.0]),
        ("std", "global", "min", [[1.0], [2.0, 3.0]]),
        ("std", "global", "min", [10**400, 1]),
        ("std", "per_timestep", "mean_per_timestep", [1.0, 5.0]),
        ("std", "per_timestep", "std_per_timestep", [[2.0, 0.0]] * 3),
    ],
)
def test_missing_statistics_and_those_of_wrong_type_or_shape_are_refused(
    method: Method, scope: Scope, key: str, value: Any
) -> None:
    with pytest.raises(DataError) as caught:
        scale(method, scope, stats={**STATS, key: value})

    assert caught.value.code == ("data.missing" if value is None else "data.broken")
    assert caught.value.details == {"field": "f", "key": key}


def test_step_beyond_all_episodes_is_reported() -> None:
    stats = {**STATS, "std_per_timestep": [[2.0, 1.0], [float("nan"), 1.0]]}
    with pytest.raises(DataError) as caught:
        scale("std", "per_timestep", stats=stats)

    assert caught.value.details["step"] == 1
    assert "scope=global" in caught.value.hint
