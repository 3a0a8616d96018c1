"""Poses in the convention of a robot, observed and commanded."""

from typing import Any, ClassVar

import numpy as np
import pytest

from tests.builders.toy_policy import PushPolicy
from vlatool.episode import ObservationSpec
from vlatool.errors import DataError
from vlatool.evaluation.config import ActionMap, RolloutConfig
from vlatool.evaluation.controllers import KeyMap, control_options
from vlatool.transforms.names import FieldMap, NameMap
from vlatool.transforms.relative import PoseGroupConfig

DOWN = [1.0, 0, 0, 0, -1, 0]  # 6D rotation of a hand that points down


class PosePolicy(PushPolicy):
    """Policy that sees and commands absolute poses."""

    sees: ClassVar[Any] = ObservationSpec(fields={"hand__xyz": 3, "hand__rot_6d": 6})
    actions: ClassVar[Any] = {"target__xyz": 3, "target__rot_6d": 6, "grip": 1}


class PositionPolicy(PosePolicy):
    """Policy that commands no rotation, and sees nothing."""

    sees: ClassVar[Any] = ObservationSpec()
    actions: ClassVar[Any] = {"target__xyz": 3}


def robot(**changes: Any) -> RolloutConfig:
    """Robot with positions in millimeters whose commands are differences in its hand's frame."""
    measured = PoseGroupConfig(
        name="hand",
        position_key="state.tcp[0:3]",
        rotation_key="state.tcp[3:7]",
        rotation="quaternion_wxyz",
        scale=1000.0,
    )
    command = PoseGroupConfig(
        name="target",
        position_key="action[0:3]",
        rotation_key="action[3:6]",
        rotation="axis_angle",
        relation="delta",
        frame="tool",
        scale=20.0,
        reference="hand",
    )
    keys = {"pose_groups": [measured, command], "action": [ActionMap(field="target")]}
    return RolloutConfig(**{**keys, **changes})


OBSERVATION = {"state": {"tcp": np.array([100.0, 200, 300, 0, 1, 0, 0])}}


def test_measured_pose_is_seen_in_meters_and_as_6d_rotation() -> None:
    state = KeyMap(PosePolicy(), robot()).state(OBSERVATION)

    np.testing.assert_allclose(state.fields["hand__xyz"], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(state.fields["hand__rot_6d"], DOWN, atol=1e-12)


def test_commands_are_differences_to_the_measured_pose_and_then_to_each_other() -> None:
    action = [ActionMap(field="target"), ActionMap(field="grip", scale=-1.0)]
    keys = KeyMap(PosePolicy(), robot(action=action))
    chunk = {
        "target__xyz": np.array([[0.1, 0.25, 0.3], [0.1, 0.25, 0.4]]),
        "target__rot_6d": np.array([DOWN, DOWN]),
        "grip": np.array([[1.0], [0.0]]),
    }

    numbers = keys.action(chunk, keys.poses(OBSERVATION))

    assert keys.action_width == numbers.shape[1] == 7
    # A hand that points down has y and z mirrored.
    expected = [[0, -1.0, 0, 0, 0, 0, -1], [0, 0, -2.0, 0, 0, 0, 0]]
    np.testing.assert_allclose(numbers, expected, atol=1e-12)
    first = {name: values[0] for name, values in chunk.items()}
    np.testing.assert_allclose(keys.action(first, keys.poses(OBSERVATION)), expected[0], atol=1e-12)


def test_rotation_that_no_policy_commands_stays_as_measured() -> None:
    keys = KeyMap(PositionPolicy(), robot())
    step = {"target__xyz": np.array([0.1, 0.2, 0.35])}

    numbers = keys.action(step, keys.poses(OBSERVATION))

    np.testing.assert_allclose(numbers, [0, 0, -1, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action": [ActionMap(field="target", scale=2.0)]}, "no scale"),
        ({"resize": {"fronnt": "crop"}}, "no camera 'fronnt'"),
        (
            {"map": NameMap(fields={"hand__xyz": FieldMap(key="tcp")})},
            "pose group already provides it",
        ),
    ],
)
def test_keys_beside_a_pose_group_that_would_change_nothing_are_errors(
    changes: dict[str, Any], text: str
) -> None:
    config = robot(**changes)
    with pytest.raises(DataError, match=text):
        _ = control_options(config, PosePolicy()), KeyMap(PosePolicy(), config)


def test_a_pose_that_nothing_needs_is_not_asked_for() -> None:
    config = robot()
    other = config.pose_groups[0].model_copy(update={"name": "left", "position_key": "left[0:3]"})
    keys = KeyMap(PosePolicy(), robot(pose_groups=[*config.pose_groups, other]))
    assert keys.names == ["state.tcp", "instruction"]


def test_a_commanded_pose_is_no_reference() -> None:
    config = robot()
    group = config.pose_groups[1].model_copy(update={"relation": "absolute", "reference": "target"})
    with pytest.raises(DataError, match=r"and 'target' is none"):
        KeyMap(PosePolicy(), robot(pose_groups=[config.pose_groups[0], group]))


def test_command_without_the_measured_pose_that_it_needs_is_an_error() -> None:
    config = robot()
    command = config.model_copy(update={"pose_groups": config.pose_groups[1:]})
    with pytest.raises(DataError, match=r"needs a measured pose"):
        KeyMap(PositionPolicy(), command)
