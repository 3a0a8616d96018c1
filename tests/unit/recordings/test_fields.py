"""Names of the dimensions of fields."""

from collections.abc import Mapping, Sequence

import pytest

from vlatool.recordings.field_summary import (
    FieldSummary,
    dimension_label,
    dimension_names,
    recorded_names,
)

XYZ = "robot__action__poses__right::panda__xyz"
JOINTS = "robot__actual__joint_position__right::panda"


@pytest.mark.parametrize(
    ("field", "width", "recorded", "names"),
    [
        ("action", 2, {"action": ["hip", "knee"]}, ["hip", "knee"]),
        ("action_relative", 2, {"action": ["hip", "knee"]}, ["hip", "knee"]),
        ("action", 3, {"action": ["hip", "knee"]}, ["0", "1", "2"]),
        (XYZ, 3, {}, ["x", "y", "z"]),
        (f"{XYZ}_relative", 3, {}, ["x", "y", "z"]),
        (JOINTS, 7, {}, [f"joint_{number}" for number in range(1, 8)]),
        (XYZ, 3, {XYZ: ["north", "east", "up"]}, ["north", "east", "up"]),
    ],
)
def test_recorded_names_precede_fixed_names_and_numbers(
    field: str, width: int, recorded: Mapping[str, Sequence[str]], names: list[str]
) -> None:
    assert dimension_names(field, width, recorded) == names


@pytest.mark.parametrize(
    ("field", "width", "label"),
    [("action", 3, "action: knee"), ("state", 3, "state[1]"), ("gripper", 1, "gripper")],
)
def test_label_of_a_dimension(field: str, width: int, label: str) -> None:
    recorded = {"action": ["hip", "knee", "toe"]}
    assert dimension_label(field, min(1, width - 1), width, recorded) == label


@pytest.mark.parametrize("stored", [None, 3, [1], {"action": "hip"}])
def test_malformed_names_are_ignored(stored: object) -> None:
    assert recorded_names({"dimension_names": stored}) == {}


def test_a_dimension_without_a_number_starts_no_range() -> None:
    assert FieldSummary("q", width=3, names=("a", "a.1", "a.2")).dimensions_text == "a, a.1-2"
