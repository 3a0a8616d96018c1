"""Poses in slices of a vector. Source: formats/lbm-preprocessing 4."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.transforms.action_tokenizer import relative_chunks
from vlatool.transforms.relative import PoseGroupConfig, relative_fields, with_pose_groups
from vlatool.transforms.rotations import (
    EULER_FORMS,
    ROTATION_WIDTH,
    RotationForm,
    matrix_from,
    rot6d_from_matrix,
)

XYZ = [[1.0, 2, 3], [2, 2, 3]]
ROT6D = [[0.0, 1, 0, -1, 0, 0], [1, 0, 0, 0, 1, 0]]
HALF = 0.5**0.5
FORMS: dict[str, list[list[float]]] = {
    "rot_6d": ROT6D,
    "axis_angle": [[0, 0, -np.pi / 2], [0, 0, 0]],
    "euler_xyz": [[0, 0, -np.pi / 2], [0, 0, 0]],
    "quaternion_xyzw": [[0, 0, -HALF, HALF], [0, 0, 0, 2]],
    "quaternion_wxyz": [[HALF, 0, 0, -HALF], [2, 0, 0, 0]],
}


def episode(**fields: Any) -> Episode:
    lowdim = {name: np.array(values) for name, values in fields.items()}
    return Episode("e", "", 10.0, 2, {}, lowdim, action_fields=("state", "gripper"))


def group(**keys: Any) -> PoseGroupConfig:
    defaults = {"name": "hand", "position_key": "state[0:3]", "rotation_key": "state[3:9]"}
    return PoseGroupConfig.model_validate({**defaults, **keys})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("writeable", [True, False])
def test_slices_become_new_fields(form: str, writeable: bool) -> None:
    state = np.hstack([XYZ, FORMS[form]])
    state.flags.writeable = writeable  # arrays from files are read-only
    config = group(rotation=form, rotation_key=f"state[3:{state.shape[1]}]")

    result = with_pose_groups(Episode("e", "", 10.0, 2, {}, {"state": state}), [config])

    np.testing.assert_allclose(result.lowdim["hand__xyz"], XYZ)
    np.testing.assert_allclose(result.lowdim["hand__rot_6d"], ROT6D, atol=1e-12)


def test_relative_fields_equal_the_published_vector() -> None:
    result = with_pose_groups(episode(state=np.hstack([XYZ, ROT6D])), [group()])

    windows = {name: values[None] for name, values in result.lowdim.items()}
    relative = relative_fields(windows, result.pose_groups, anchor=0)

    np.testing.assert_allclose(relative["hand__xyz_relative"][0], [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(
        relative["hand__rot_6d_relative"][0],
        [[1, 0, 0, 0, 1, 0], [0, -1, 0, 1, 0, 0]],
        atol=1e-12,
    )


def test_chunks_at_the_end_repeat_the_last_frame() -> None:
    fields = {"gripper": np.array([[1.0], [2], [3]])}
    chunks = relative_chunks(fields, ["gripper"], [], 3)
    assert chunks[:, :, 0].tolist() == [[1, 2, 3], [2, 3, 3], [3, 3, 3]]


def test_whole_fields_keep_their_names_and_those_of_actions_are_predicted_relative() -> None:
    base = episode(state=ROT6D, gripper=XYZ)

    result = with_pose_groups(base, [group(position_key="gripper", rotation_key="state")])

    assert set(result.lowdim) == {"state", "gripper"}
    assert result.action_fields == ("state_relative", "gripper_relative")


def test_reference_is_the_pose_of_another_group() -> None:
    measured = group(name="measured", position_key="m[0:3]", rotation_key="m[3:9]")
    commanded = group(reference="measured")
    state = np.hstack([XYZ, ROT6D])
    result = with_pose_groups(episode(state=state[[1, 1]], m=state[[0, 0]]), [measured, commanded])

    windows = {name: values[None] for name, values in result.lowdim.items()}
    relative = relative_fields(windows, result.pose_groups, anchor=0)

    np.testing.assert_allclose(relative["hand__xyz_relative"][0, 0], [0, 1, 0])


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"position_key": "stat[0:3]"}, "data.unknown_field"),
        ({"rotation_key": "text"}, "data.unknown_field"),
        ({"position_key": "state[0:4]"}, "data.broken"),
        ({"position_key": "state[7:10]"}, "data.broken"),
        ({"rotation_key": "state[3:6]"}, "data.broken"),
        ({"position_key": "state"}, "data.broken"),
        ({"rotation": "axis_angle"}, "data.broken"),
        ({"reference": "hnd"}, "data.unknown_field"),
    ],
)
def test_group_that_does_not_fit_is_refused(keys: dict[str, str], code: str) -> None:
    base = episode(state=np.hstack([XYZ, ROT6D]), text=["a", "b"])

    with pytest.raises(DataError) as caught:
        with_pose_groups(base, [group(**keys)])

    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize("relation", ["absolute", "delta"])
@pytest.mark.parametrize("form", ROTATION_WIDTH)
def test_numbers_of_any_convention_are_the_pose_that_they_came_from(
    form: RotationForm, relation: str, frame: str
) -> None:
    turns = Rotation.from_quat(np.random.default_rng(1).normal(size=(60, 4))).as_matrix()
    for number, order in enumerate(EULER_FORMS):  # gimbal lock of each order
        angles = [0.3, (-1) ** number * np.pi / 2, -0.7]
        turns[number] = matrix_from(np.array(angles), order)
    rng = np.random.default_rng(0)
    pose = rng.normal(size=(60, 3)), rot6d_from_matrix(turns)
    reference = rng.normal(size=(60, 3)), rot6d_from_matrix(turns[::-1])
    keys: dict[str, Any] = {"relation": relation, "frame": frame, "reference": "measured"}
    scales = {"scale": 20.0, "rotation_scale": 57.3 if ROTATION_WIDTH[form] == 3 else 1.0}
    config = group(rotation=form, **keys, **scales)

    back = config.absolute(config.numbers(pose, reference), reference)

    np.testing.assert_allclose(back[0], pose[0], atol=1e-9)
    np.testing.assert_allclose(back[1], pose[1], atol=1e-9)


def test_difference_in_the_frame_of_the_tool_becomes_an_absolute_pose() -> None:
    down = [0.0, 1, 0, 0]  # xyzw of a hand that points down: y and z are mirrored
    state = np.array([[1.0, 2, 3, *down]])
    action = np.array([[20.0, 40, 60, 0, 0, np.pi / 2]])
    measured = group(rotation="quaternion_xyzw", rotation_key="state[3:7]")
    keys = {"position_key": "gripper[0:3]", "rotation_key": "gripper[3:6]", "name": "target"}
    moved: dict[str, Any] = {"relation": "delta", "frame": "tool", "reference": "hand"}
    config = group(**keys, **moved, rotation="axis_angle", scale=1000.0)

    result = with_pose_groups(episode(state=state, gripper=action), [measured, config])

    np.testing.assert_allclose(result.lowdim["target__xyz"], [[0.98, 2.04, 2.94]])
    turned = [[0.0, 1, 0, 1, 0, 0]]
    np.testing.assert_allclose(result.lowdim["target__rot_6d"], turned, atol=1e-9)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"relation": "delta"}, "needs a reference"),
        ({"relation": "delta", "reference": "hand"}, "needs a reference"),
        ({"rotation": "matrix", "rotation_scale": 2.0}, "no rotation_scale"),
    ],
)
def test_conversion_that_cannot_be_is_an_error(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        group(**keys)


def test_quaternion_of_zeros_is_an_error_of_its_episode() -> None:
    config = group(rotation="quaternion_xyzw", rotation_key="state[3:7]")
    with pytest.raises(DataError, match=r"e: pose group 'hand' has no quaternion_xyzw"):
        with_pose_groups(episode(state=np.zeros((2, 7))), [config])
