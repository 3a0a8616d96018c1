"""Differences between what training saw and other data."""

from dataclasses import replace

import pytest

from vlatool.checkpoints.contract import Contract, SeenCamera, differences
from vlatool.conventions.file import Convention

HAND = Convention(
    "actions", 0, 2, "position", relation=("delta",), lag=(1,), frame=("base",), scale=(20.0,) * 3
)
TRAINED = Contract(
    cameras={"front": SeenCamera(((480, 640),), (224, 224), 1)},
    resize_method="center_crop",
    fields={"pose": 7},
    fps=10.0,
    conventions=(HAND,),
)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fps": 10.05}, ""),
        ({"fps": 10.5}, "fps"),
        ({"fps": None, "resize_method": "", "conventions": (), "cameras": {}}, ""),
        ({"resize_method": "resize_fit"}, "resize_method"),
        ({"fields": {"pose": 8}}, "fields.pose"),
        ({"cameras": {"front": SeenCamera(quarter_turns=3)}}, "cameras.front.quarter_turns"),
    ],
)
def test_only_values_that_both_know_differ(changes: dict[str, object], key: str) -> None:
    assert [each[0] for each in differences(TRAINED, replace(TRAINED, **changes))] == [key][
        : bool(key)
    ]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lag": (3,)}, ""),
        ({"relation": ("delta", "absolute")}, ""),
        ({"relation": ("absolute",)}, "relation"),
        ({"frame": ("tool",)}, "frame"),
        ({"scale": (20.5,) * 3}, ""),
        ({"scale": (23.0,) * 3}, "scale"),
        ({"scale": (23.0,) * 3, "residual": 0.2}, ""),
        ({"scale": (-20.0,) * 3, "residual": 0.3}, "scale"),
    ],
)
def test_meaning_of_actions_is_compared(changes: dict[str, object], key: str) -> None:
    other = replace(TRAINED, conventions=(replace(HAND, **changes),))
    keys = [each[0] for each in differences(TRAINED, other)]
    assert keys == ([f"conventions.actions.0-2.{key}"] if key else [])
