"""Charts of fields."""

import numpy as np
import pytest

from vlatool.episode import Array
from vlatool.report import charts
from vlatool.report.facts import Axis, Chart, Curve, Fold, Table

STEPS = np.arange(4)
HUMANOID = [f"{side}_arm.{n}" for side in ("left", "right") for n in range(7)] + [
    f"{side}_hand.{n}" for side in ("left", "right") for n in range(6)
]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper"], ["position", "rotation", "gripper"]),
        (
            ["left_waist", "left_gripper", "right_waist"],
            ["left joints", "left gripper", "right joints"],
        ),
        (["shoulder_pan.pos", "elbow_flex.pos", "wrist_flex.pos"], [""]),
        ([str(n) for n in range(20)], ["0 to 6", "7 to 13", "14 to 19"]),
        (HUMANOID, ["left_arm", "right_arm", "left_hand", "right_hand"]),
    ],
)
def test_groups_by_name(names: list[str], groups: list[str]) -> None:
    result = charts.dimension_groups(names, range(len(names)))
    assert [label for label, _ in result] == groups
    assert sorted(index for _, part in result for index in part) == list(range(len(names)))
    assert max(len(part) for _, part in result) <= 8


def field_parts(values: Array, names: list[str], unit: str = "") -> tuple[list[Chart], Table]:
    """The charts of a field, and the table of its constant dimensions."""
    field = charts.FieldValues("hand", values, names, unit)
    parts = charts.field_charts(Axis(0, 3), np.arange(len(values)), [field])
    table = parts[-1]
    assert isinstance(table, Table)
    return [part for part in parts if isinstance(part, Chart)], table


def test_a_chart_has_a_line_per_dimension_and_its_unit() -> None:
    (chart,), table = field_parts(np.stack([STEPS, 2.0 * STEPS], axis=1), ["x", "y"], "m")
    assert [line.name for line in chart.lines] == ["x", "y"]
    assert chart.title == "hand [m]"
    assert table.rows == []


def test_constant_dimensions_are_listed_with_their_values() -> None:
    values = np.full((4, 5), 0.25)
    values[:, 1] = STEPS
    (chart,), table = field_parts(values, list("abcde"))
    assert [line.name for line in chart.lines] == ["b"]
    assert table.rows == [("hand", "a 0.25, c 0.25, d 0.25, e 0.25")]


def test_a_field_without_finite_numbers_is_no_chart() -> None:
    none, table = field_parts(np.full((4, 1), np.nan), ["0"])
    assert none == []
    assert table.rows == [("hand", "not finite")]


def test_charts_after_the_first_screen_are_collapsed() -> None:
    fields = [charts.FieldValues(str(n), STEPS[:, None] * 1.0, ["0"]) for n in range(13)]
    *shown, fold, _ = charts.field_charts(Axis(0, 3), STEPS, fields)
    assert len(shown) == 10
    assert isinstance(fold, Fold)
    assert len(fold.parts) == 3


def test_a_predicted_line_is_dashed_in_the_color_of_the_recorded_one() -> None:
    field = charts.FieldValues("action", np.stack([STEPS, STEPS], axis=1) * 1.0, ["x", "y"])
    chart, *_ = charts.prediction_charts(Axis(0, 3), STEPS, [(field, field.values)], has_dots=False)
    assert isinstance(chart, Chart)
    shown = [(line.name, line.color, line.is_dashed) for line in chart.lines]
    assert shown == [
        ("x", 0, False),
        ("x predicted", 0, True),
        ("y", 1, False),
        ("y predicted", 1, True),
    ]


def test_a_dimension_that_neither_recorded_nor_predicted_values_change_is_listed() -> None:
    recorded = np.stack([np.zeros(4), np.ones(4), STEPS * 1.0], axis=1)
    predicted = np.stack([np.zeros(4), STEPS * 1.0, STEPS * 1.0], axis=1)
    field = charts.FieldValues("action", recorded, ["x", "y", "z"])
    chart, _, table = charts.prediction_charts(
        Axis(0, 3), STEPS, [(field, predicted)], has_dots=False
    )
    assert isinstance(chart, Chart)
    assert [line.name for line in chart.lines[::2]] == ["y", "z"]
    assert isinstance(table, Table)
    assert table.rows == [("action", "x 0")]


@pytest.mark.parametrize("answer", [0.9, np.nan])
def test_a_constant_prediction_that_is_wrong_is_drawn(answer: float) -> None:
    field = charts.FieldValues("gripper", np.full((4, 1), 0.1), ["0"])
    predicted = np.full((4, 1), answer)
    chart, *_ = charts.prediction_charts(Axis(0, 3), STEPS, [(field, predicted)], has_dots=False)
    assert isinstance(chart, Chart)


def test_curves_share_charts_of_eight_and_those_without_numbers_have_none() -> None:
    curves = [Curve(str(n), STEPS, STEPS * 1.0) for n in range(9)]
    assert [len(chart.lines) for chart in charts.metric_charts("loss", curves)] == [8, 1]
    assert charts.metric_charts("loss", [Curve("", STEPS, np.full(4, np.nan))]) == []
