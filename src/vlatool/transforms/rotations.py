"""Rotations and poses as the LBM data stores them: positions [..., 3] and 6D rotations [..., 6].

A 6D rotation is the first two ROWS of the rotation matrix, flattened.
Source: formats/lbm-preprocessing 2.7.
"""

from typing import Literal

import numpy as np

from vlatool.episode import Array

_SMALLEST_NORM = 1e-12

RotationForm = Literal["rot_6d", "axis_angle", "euler_xyz", "quaternion_xyzw", "quaternion_wxyz"]
ROTATION_WIDTH: dict[RotationForm, int] = {
    "rot_6d": 6,
    "axis_angle": 3,
    "euler_xyz": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
}


def matrix_from_rot6d(rot6d: Array) -> Array:
    """Rotation matrices [..., 3, 3] from 6D rotations [..., 6], orthonormalized."""
    first, second = rot6d[..., :3], rot6d[..., 3:6]
    row1 = _unit(first)
    row2 = _unit(second - np.sum(row1 * second, axis=-1, keepdims=True) * row1)
    return np.stack([row1, row2, np.cross(row1, row2)], axis=-2)


def rot6d_from_matrix(matrix: Array) -> Array:
    """6D rotations [..., 6] from rotation matrices [..., 3, 3]."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def rot6d_from(values: Array, form: RotationForm) -> Array:
    """6D rotations float64 [..., 6] from another form.

    `values`: `rot_6d` [..., 6]; `axis_angle` [..., 3], a rotation vector in radians; `euler_xyz`
    [..., 3], radians about the fixed x, then y, then z axis; `quaternion_xyzw` and
    `quaternion_wxyz` [..., 4], of any norm but 0.
    """
    if form == "rot_6d":
        return values
    from scipy.spatial.transform import Rotation

    # A copy: scipy needs a writable array, and arrays from files are read-only.
    flat = np.array(values, np.float64).reshape(-1, values.shape[-1])
    if form == "axis_angle":
        rotation = Rotation.from_rotvec(flat)
    elif form == "euler_xyz":
        rotation = Rotation.from_euler("xyz", flat)
    else:
        rotation = Rotation.from_quat(flat if form == "quaternion_xyzw" else np.roll(flat, -1, 1))
    return rot6d_from_matrix(rotation.as_matrix()).reshape(*values.shape[:-1], 6)


def relative_pose(
    xyz: Array, rot6d: Array, reference_xyz: Array, reference_rot6d: Array
) -> tuple[Array, Array]:
    """Poses relative to a reference: `inverse(T_ref) @ T`, as (xyz [..., 3], rot6d [..., 6])."""
    inverse = np.swapaxes(matrix_from_rot6d(reference_rot6d), -1, -2)
    offset = xyz - reference_xyz
    return (
        np.einsum("...ij,...j->...i", inverse, offset),
        rot6d_from_matrix(inverse @ matrix_from_rot6d(rot6d)),
    )


def absolute_pose(
    xyz: Array, rot6d: Array, reference_xyz: Array, reference_rot6d: Array
) -> tuple[Array, Array]:
    """The inverse of `relative_pose`: `T_ref @ T_rel`."""
    reference = matrix_from_rot6d(reference_rot6d)
    return (
        np.einsum("...ij,...j->...i", reference, xyz) + reference_xyz,
        rot6d_from_matrix(reference @ matrix_from_rot6d(rot6d)),
    )


def _unit(vector: Array) -> Array:
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / np.maximum(norm, _SMALLEST_NORM)
