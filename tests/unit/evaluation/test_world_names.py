"""The map of the built-in world has the names of the layouts that policies are trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.toy_policy import PushPolicy
from vlatool.episode import CameraView, ObservationSpec
from vlatool.evaluation.config import ActionMap, RolloutConfig
from vlatool.evaluation.controllers import KeyMap
from vlatool.evaluation.environments import with_mapping
from vlatool.world.env import PickPlaceEnv
from vlatool.world.registration import ENVIRONMENT

XYZ, HAND = "robot__{}__poses__right::panda__xyz", "robot__{}__grippers__right::panda_hand"


def policy(cameras: Sequence[str], fields: dict[str, int], actions: dict[str, int]) -> PushPolicy:
    """A policy with these inputs and actions."""

    class Named(PushPolicy):
        sees: Any = ObservationSpec(
            cameras={name: CameraView(offsets=(0,)) for name in cameras}, fields=fields
        )

    Named.actions = actions
    return Named()


@pytest.mark.parametrize(
    ("cameras", "fields", "actions"),
    [
        (("front", "wrist"), {"state": 4}, {"action": 4}),
        (
            ("scene_right_0", "wrist_right_minus"),
            {XYZ.format("actual"): 3, HAND.format("actual"): 1},
            {XYZ.format("action"): 3, HAND.format("action"): 1},
        ),
    ],
    ids=["folder", "spartan"],
)
def test_the_world_runs_policies_of_both_layouts(
    cameras: Sequence[str], fields: dict[str, int], actions: dict[str, int]
) -> None:
    keys = KeyMap(policy(cameras, fields, actions), with_mapping(RolloutConfig(env=ENVIRONMENT)))
    seen, _ = PickPlaceEnv().reset(seed=1)
    state = keys.state(seen)
    np.testing.assert_array_equal(np.concatenate([*state.fields.values()]), seen["proprio"])
    np.testing.assert_array_equal(state.images[cameras[0]], seen["scene_right_0"])
    np.testing.assert_array_equal(state.images[cameras[1]], seen["wrist_right_minus"])
    command = np.array([0.1, 0.2, 0.3, 0.05])
    parts = dict(zip(actions, np.split(command, np.cumsum([*actions.values()])[:-1]), strict=True))
    np.testing.assert_array_equal(keys.action(parts, {}), command)


def test_a_part_of_the_action_that_the_policy_lacks_is_still_an_error() -> None:
    action = [ActionMap(field="all", is_whole=True), ActionMap(field="shove")]
    with fails("data.unknown_field"):
        KeyMap(policy((), {}, {"push": 1}), RolloutConfig(action=action))
