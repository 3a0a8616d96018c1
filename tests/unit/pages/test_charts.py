"""Charts of fields."""

import math
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from vlatool.episode import Array
from vlatool.pages import charts
from vlatool.pages.plots import histogram

STEPS = np.arange(4)
HUMANOID = [f"{side}_arm.{n}" for side in ("left", "right") for n in range(7)] + [
    f"{side}_hand.{n}" for side in ("left", "right") for n in range(6)
]


class Labels(HTMLParser):
    """Position in percent and text of the labels of each side of each chart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: list[dict[str, list[tuple[float, str]]]] = []
        self._side, self._at = "", 0.0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "figure":
            self.charts.append({"left": [], "below": []})
        if tag == "div":
            self._side = values.get("class") or ""
        if tag == "span" and self._side in ("left", "below"):
            self._at = float((values.get("style") or "").split(":")[1].rstrip("%"))

    def handle_data(self, data: str) -> None:
        if self._side in ("left", "below"):
            self.charts[-1][self._side].append((self._at, data))


def sines(width: int, names: list[str] | None = None, count: int = 60) -> charts.FieldValues:
    positions = np.arange(count)[:, None] / 10
    values = np.sin(positions * (1 + np.arange(width)))
    return charts.FieldValues("action", values, names or [str(n) for n in range(width)])


def one_line(values: object) -> charts.FieldValues:
    return charts.FieldValues("gripper", np.array(values, np.float64)[:, None], ["0"])


FIELDS = {
    "humanoid": sines(26, HUMANOID),
    "numbered": sines(40),
    "offset": one_line([1.7e9, 1.7e9 + 1, 1.7e9 + 2]),
    "tiny": one_line([0, 3e-8, 1e-7]),
    "huge": one_line([-1e200, 0, 3e200]),
    "fine": one_line([999999.6, 999999.9, 1000000.2]),
    "gaps": one_line([np.nan, 1, np.nan, 2, np.inf]),
    "one frame": sines(7, count=1),
    "none": one_line([np.nan, np.nan]),
}
AXES = {
    "seconds": lambda count: charts.Axis(0, max(count - 1, 1) / 10),
    "long": lambda count: charts.Axis(0, 12_345.6, shaded=((3, 4),), marks=(0.0, 7.0)),
    "late": lambda count: charts.Axis(1.7e9, 1.7e9 + count),
    "steps": lambda count: charts.Axis(-3.5, count - 3.5, "steps", whole=True, anchor=0.0),
}


def assert_labels_are_apart(text: str) -> None:
    for chart in Labels(text).charts:
        left = sorted(at * charts.PLOT_HEIGHT / 100 for at, _ in chart["left"])
        assert all(b - a >= charts.LABEL_HEIGHT for a, b in pairwise(left))
        assert all(len(label) <= charts.MAX_LEFT for _, label in chart["left"])
        below = [
            (at * charts.PLOT_WIDTH / 100, len(label) * charts.CHAR_WIDTH)
            for at, label in chart["below"]
        ]
        for (a, width_a), (b, width_b) in pairwise(below):
            assert b - a > (width_a + width_b) / 2
        assert all(len(label) <= charts.MAX_BELOW for _, label in chart["below"])
        for at, _ in chart["left"] + chart["below"]:
            assert -0.01 <= at <= 100.01


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", FIELDS)
def test_labels_neither_overlap_nor_leave_the_chart_on_a_narrow_page(name: str, axis: str) -> None:
    field = FIELDS[name]
    count = len(field.values)
    made = AXES[axis](count)
    positions = np.linspace(made.low, made.high, count)
    assert_labels_are_apart(charts.field_charts(made, positions, [field]))


@pytest.mark.parametrize("values", [[3], [3, 3, 9], [0, 5000], list(range(400)), [123456789] * 3])
def test_labels_of_a_histogram_do_not_overlap(values: list[int]) -> None:
    text = histogram(values, "samples per episode")
    assert_labels_are_apart(text)
    assert all(label.isdecimal() for _, label in Labels(text).charts[0]["left"])


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("one frame", "none")])
def test_ticks_are_round(name: str) -> None:
    field = FIELDS[name]
    positions = np.arange(len(field.values)) / 10
    axis = charts.Axis(0, float(positions[-1]))
    for chart in Labels(charts.field_charts(axis, positions, [field])).charts:
        for side in ("left", "below"):
            numbers = [float(label) for _, label in chart[side]]
            assert len(numbers) >= 2
            step = numbers[1] - numbers[0]
            mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
            assert min(abs(mantissa - factor) for factor in (1, 2, 5)) < 1e-6


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
    assert max(len(part) for _, part in result) <= charts.MAX_LINES


def chart(values: Array, names: list[str], unit: str = "") -> str:
    axis = charts.Axis(0, max(len(values) - 1, 1))
    return charts.field_charts(
        axis, np.arange(len(values)), [charts.FieldValues("hand", values, names, unit)]
    )


def test_a_chart_has_a_line_per_dimension_and_its_unit() -> None:
    text = chart(np.stack([STEPS, 2.0 * STEPS], axis=1), ["x", "y"], "m")
    assert text.count('class="line') == 2
    assert "[m]" in text


def test_constant_dimensions_are_listed_with_their_values() -> None:
    values = np.full((4, 5), 0.25)
    values[:, 1] = STEPS
    text = chart(values, list("abcde"))
    assert text.count('class="line') == 1
    assert "a 0.25, c 0.25, d 0.25, e 0.25" in text


def test_a_line_has_gaps_and_dots_where_values_are_not_finite() -> None:
    text = chart(np.array([0, 1, np.nan, 2, 3])[:, None], ["0"])
    assert text.split('class="line s0" d="')[1].split('"')[0].count("M") == 2
    assert "h0" in chart(np.array([0, 1, np.nan, 2, np.nan])[:, None], ["0"])
    assert "not finite" in chart(np.full((4, 1), np.nan), ["0"])


def test_charts_after_the_first_screen_are_collapsed() -> None:
    fields = [sines(1)] * 13
    text = charts.field_charts(charts.Axis(0, 6), np.arange(60) / 10, fields)
    assert text.count("<figure") == 13
    assert text.split("<details>")[0].count("<figure") == 10
