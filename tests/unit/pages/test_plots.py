"""Charts of fields."""

import numpy as np

from vlatool.pages.plots import Axis, FieldValues, field_chart, histogram

STEPS = np.arange(4)


def test_a_chart_has_a_line_per_dimension_and_its_unit() -> None:
    values = np.stack([STEPS, 2.0 * STEPS], axis=1)
    chart = field_chart(Axis(0, 3), STEPS, FieldValues("hand", values, ["x", "y"], "m"))
    assert chart.count("<path") == 2
    assert "[m]" in chart
    assert ">6</text>" in chart


def test_constant_dimensions_of_a_wide_field_are_named_but_not_drawn() -> None:
    values = np.zeros((4, 5))
    values[:, 1] = STEPS
    chart = field_chart(Axis(0, 3), STEPS, FieldValues("joints", values, list("abcde")))
    assert chart.count("<path") == 1
    assert "constant: a, c, d, e" in chart


def test_a_line_has_a_gap_where_a_value_is_not_finite() -> None:
    values = np.array([0, 1, np.nan, 2, 3])[:, None]
    chart = field_chart(Axis(0, 4), np.arange(5), FieldValues("gripper", values, ["0"]))
    assert chart.split(' d="')[1].split('"')[0].count("M") == 2


def test_a_histogram_has_a_bar_per_value() -> None:
    assert histogram([3, 3, 4], "samples").count('class="bar"') == 2
    assert histogram([], "samples") == ""
