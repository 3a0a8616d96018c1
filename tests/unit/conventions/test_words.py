"""What conventions say in words, and what contradicts them."""

from dataclasses import replace
from typing import Any

import pytest

from vlatool.conventions.contradiction import relative_twice
from vlatool.conventions.file import (
    Convention,
    Conventions,
    conventions_rows,
    conventions_table,
    meaning,
    merged,
    sentence,
    undetermined,
)

DELTA = {"relation": ("delta",), "states": "state"}
ABSOLUTE = {"relation": ("absolute",), "states": "state"}


def measured(**values: Any) -> Conventions:
    group = Convention(**{"field": "action", "first": 0, "last": 2, "kind": "position", **values})
    return Conventions((group,), rows=100, episodes=3, episodes_of=3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({**DELTA, "lag": (1,)}, "the action 0-2 is the change of the position"),
        ({**ABSOLUTE, "lag": (1,)}, "the action 0-2 is the next position"),
        ({**ABSOLUTE, "lag": (0,)}, "the action 0-2 is the position of its own frame"),
        ({**ABSOLUTE, "lag": (3,)}, "the action 0-2 is the position 3 frames later"),
        ({**ABSOLUTE, "lag": (0, 1)}, "the action 0-2 is the position of a frame nearby"),
        ({**ABSOLUTE, "lag": (1,), "kind": "joints"}, "the action 0-2 is the next joint state"),
        (
            {**ABSOLUTE, "kind": "gripper", "range": (-1.0, 1.0)},
            "the gripper is a command from -1 to 1",
        ),
        (
            {"relation": ("absolute", "delta")},
            "the recordings do not show the meaning of action 0-2",
        ),
        ({"kind": "constant"}, "nothing moves"),
    ],
)
def test_a_convention_is_a_sentence(values: dict[str, Any], expected: str) -> None:
    assert sentence(measured(**values)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"scale": (20.0,) * 3}, "delta of state, scale 20 (1 is 0.05 of the states)"),
        ({"scale": (1.0, 2.0, 3.0, 4.0)}, "delta of state, scale 1 to 4"),
        (
            {"lag": (0, 1, 2, 3), "residual": 0.5},
            "roughly delta of state, lag 0 or 1 or 2 or others",
        ),
        ({"relation": ()}, "not determined"),
        ({"relation": ("absolute", "delta")}, "not determined: absolute or delta"),
        ({"kind": "missing"}, "no numbers"),
    ],
)
def test_the_meaning_has_the_attributes_that_say_something(
    values: dict[str, Any], expected: str
) -> None:
    (group,) = measured(**{**DELTA, **values}).groups
    assert meaning(group) == expected


def joints(**changes: dict[str, Any]) -> Conventions:
    """Six joints, each measured alone; `changes` are of one, by its number."""
    groups: list[Convention] = []
    for number in range(6):
        states = f"state[{number}:{number + 1}]"
        values: dict[str, Any] = {"kind": "joints", **ABSOLUTE, "lag": (1,), "states": states}
        values |= {"scale": (number + 1.0,), "residual": number / 10, "range": (-1.0, number)}
        values |= changes.get(f"joint_{number}", {})
        groups.append(Convention("action", number, number, **values))
    return Conventions(tuple(groups), rows=100, episodes=6, episodes_of=6)


def test_consecutive_dimensions_that_mean_the_same_are_one_row() -> None:
    (row,) = merged(joints())
    assert (row.name, row.states, row.residual) == ("action 0-5", "state[0:6]", 0.5)
    assert (row.range, row.scale) == ((-1.0, 5.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert sentence(joints()) == "the action 0-5 is the next joint state"
    assert len(joints().groups) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gripper"},
        {"relation": ("delta",)},
        {"relation": ()},
        {"lag": (2,)},
        {"lag_limit": "or more"},
        {"states": "other[3:4]"},
        {"frame": ("tool",)},
        {"field": "more"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_dimensions_that_differ_keep_rows_of_their_own(change: dict[str, Any]) -> None:
    conventions = joints()
    groups = list(conventions.groups)
    groups[3] = replace(groups[3], **change)
    rows = merged(replace(conventions, groups=tuple(groups)))
    assert [(row.first, row.last) for row in rows] == [(0, 2), (3, 3), (4, 5)]


def test_a_lag_that_all_neighbors_admit_is_theirs() -> None:
    (row,) = merged(joints(joint_2={"lag": (0, 1)}, joint_0={"lag": (1, 2)}))
    assert row.lag == (1,)


def test_the_headline_says_each_meaning_once() -> None:
    arms = joints(joint_2={"kind": "gripper", "range": (0.0, 1.0)})
    arms = replace(arms, groups=(*arms.groups[:-1], replace(arms.groups[2], first=5, last=5)))
    assert sentence(arms) == (
        "the action 0-1 and action 3-4 are the next joint state; "
        "the gripper is a command from 0 to 1"
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rows": 9}, "rows"),
        ({"episodes": 4}, "episodes"),
        ({}, "proprioception"),
    ],
)
def test_nothing_determined_is_one_line_with_a_remedy(change: dict[str, Any], word: str) -> None:
    unknown = {f"joint_{number}": {"relation": ()} for number in range(6)}
    conventions = replace(joints(**unknown), **change)
    table = conventions_table(conventions)
    assert len(table.rows) == 1
    assert word in str(table.rows[0][0]).rpartition(":")[2]


def test_no_state_to_compare_with_is_said() -> None:
    unknown = {f"joint_{n}": {"relation": (), "residual": None} for n in range(6)}
    assert "no measured state" in undetermined(joints(**unknown))


def test_meanings_that_fit_alike_are_named() -> None:
    tied = {f"joint_{n}": {"relation": ("absolute", "delta")} for n in range(6)}
    assert "absolute and delta" in undetermined(joints(**tied))


def test_what_was_determined_is_a_table_whatever_else_was_not() -> None:
    conventions = joints(joint_0={"relation": ()}, joint_1={"relation": ()})
    assert undetermined(conventions) == ""
    assert [row[0] for row in conventions_rows(conventions)] == ["action 0-1", "action 2-5"]


def test_differences_that_are_made_relative_again_are_named() -> None:
    conventions = measured(**DELTA, residual=0.01)
    (finding,) = relative_twice(conventions, ["action_relative"])
    assert finding.code == "conventions.relative_twice"
    assert not list(relative_twice(conventions, ["action"]))
    assert not list(relative_twice(measured(**ABSOLUTE), ["action_relative"]))
