"""What conventions say in words, and what contradicts them."""

from typing import Any

import pytest

from vlatool.conventions.contradiction import relative_twice
from vlatool.conventions.file import Convention, Conventions, meaning, sentence

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


def test_differences_that_are_made_relative_again_are_named() -> None:
    conventions = measured(**DELTA, residual=0.01)
    (finding,) = relative_twice(conventions, ["action_relative"])
    assert finding.code == "conventions.relative_twice"
    assert not list(relative_twice(conventions, ["action"]))
    assert not list(relative_twice(measured(**ABSOLUTE), ["action_relative"]))
