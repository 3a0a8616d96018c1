import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlatool.episode import PoseGroup
from vlatool.errors import DataError
from vlatool.transforms import rotations
from vlatool.transforms.relative import actual_field, relative_fields

IDENTITY = [1, 0, 0, 0, 1, 0]


def array(*values: float) -> np.ndarray:
    return np.array(values, float)


# Source: formats/lbm-preprocessing 4
@pytest.mark.parametrize(
    ("current", "expected_xyz", "expected_rot6d"),
    [
        ((array(2, 2, 3), array(*IDENTITY)), [0, 1, 0], [0, -1, 0, 1, 0, 0]),
        ((array(1, 2, 3), array(0, 1, 0, -1, 0, 0)), [0, 0, 0], IDENTITY),
    ],
)
def test_relative_pose_equals_the_published_vectors(
    current: tuple[np.ndarray, np.ndarray], expected_xyz: list[int], expected_rot6d: list[int]
) -> None:
    xyz, rot6d = rotations.relative_pose(*current, array(1, 2, 3), array(0, 1, 0, -1, 0, 0))

    np.testing.assert_allclose(xyz, expected_xyz, atol=1e-15)
    np.testing.assert_allclose(rot6d, expected_rot6d, atol=1e-15)


def test_rot6d_is_the_first_two_rows_of_the_orthonormalized_matrix() -> None:
    matrix = rotations.matrix_from_rot6d(array(0, 1, 0, -1, 0, 0))

    assert matrix.tolist() == [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    assert rotations.rot6d_from_matrix(matrix).tolist() == [0, 1, 0, -1, 0, 0]

    np.testing.assert_allclose(
        rotations.matrix_from_rot6d(array(2, 0, 0, 1, 3, 0)), np.eye(3), atol=1e-15
    )

    assert np.isfinite(rotations.matrix_from_rot6d(np.zeros(6))).all()


coordinates = arrays(np.float64, (2, 3), elements=st.floats(-10, 10))
quaternions = arrays(np.float64, (2, 4), elements=st.floats(-1, 1)).filter(
    lambda q: bool((np.linalg.norm(q, axis=1) > 0.1).all())
)


def rot6d_of(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    row1 = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    row2 = [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    return np.array(row1 + row2)


@given(positions=coordinates, turns=quaternions)
def test_absolute_pose_inverts_relative_pose(positions: np.ndarray, turns: np.ndarray) -> None:
    current, reference = ((p, rot6d_of(q)) for p, q in zip(positions, turns, strict=True))

    xyz, rot6d = rotations.absolute_pose(*rotations.relative_pose(*current, *reference), *reference)

    np.testing.assert_allclose(xyz, current[0], atol=1e-12)
    np.testing.assert_allclose(rot6d, current[1], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("robot__action__poses__left::panda__xyz", "robot__actual__poses__left::panda__xyz"),
        ("robot__action__gripper", "robot__actual__gripper"),
        ("robot__version", None),
    ],
)
def test_actual_counterpart_replaces_the_second_part_of_a_name(
    name: str, expected: str | None
) -> None:
    assert actual_field(name) == expected


def test_relative_fields_take_the_measured_pose_at_the_anchor_as_reference() -> None:
    windows = {
        "r__action__p__xyz": np.array([[[5.0, 0, 0], [7, 0, 0]]]),
        "r__action__p__rot": np.array([[IDENTITY, IDENTITY]], float),
        "r__actual__p__xyz": np.array([[[1.0, 0, 0], [2, 0, 0]]]),
        "r__actual__p__rot": np.array([[IDENTITY, IDENTITY]], float),
    }
    group = PoseGroup("p", "r__action__p__xyz", "r__action__p__rot")

    fields = relative_fields(windows, [group], anchor=1)

    assert fields["r__action__p__xyz_relative"].tolist() == [[[3, 0, 0], [5, 0, 0]]]
    assert fields["r__action__p__rot_relative"].tolist() == [[IDENTITY, IDENTITY]]


def test_pose_group_without_its_field_is_refused_by_name() -> None:
    with pytest.raises(DataError) as caught:
        relative_fields({}, [PoseGroup("p", "a__b__xyz", "a__b__rot")], anchor=0)

    assert caught.value.code == "data.unknown_field"
    assert caught.value.details["field"] == "a__b__xyz"
