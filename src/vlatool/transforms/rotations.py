"""Rotations and poses as the LBM data stores them: positions [..., 3] and 6D rotations [..., 6].

A 6D rotation is the first two ROWS of the rotation matrix, flattened.
Source: formats/lbm-preprocessing 2.7.
"""

from typing import Literal, get_args
from warnings import catch_warnings

import numpy as np

from vlatool.episode import Array

_SMALLEST_NORM = 1e-12

EulerForm = Literal["euler_xyz", "euler_xzy", "euler_yxz", "euler_yzx", "euler_zxy", "euler_zyx"]
RotationForm = Literal[
    "rot_6d",
    "rot_6d_columns",
    "matrix",
    "axis_angle",
    "quaternion_xyzw",
    "quaternion_wxyz",
    EulerForm,
]
EULER_FORMS: tuple[EulerForm, ...] = get_args(EulerForm)
ROTATION_WIDTH: dict[RotationForm, int] = {
    "rot_6d": 6,
    "rot_6d_columns": 6,
    "matrix": 9,
    "axis_angle": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    **dict.fromkeys(EULER_FORMS, 3),
}


def matrix_from_rot6d(rot6d: Array) -> Array:
    """Rotation matrices [..., 3, 3] from 6D rotations [..., 6], orthonormalized."""
    first = rot6d[..., :3]
    second = rot6d[..., 3:6]
    row1 = _unit(first)
    row2 = _unit(second - np.sum(row1 * second, axis=-1, keepdims=True) * row1)
    return np.stack([row1, row2, np.cross(row1, row2)], axis=-2)


def rot6d_from_matrix(matrix: Array) -> Array:
    """6D rotations [..., 6] from rotation matrices [..., 3, 3]."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def rot6d_from(values: Array, form: RotationForm) -> Array:
    """6D rotations float64 [..., 6] from another form; see `matrix_from`."""
    if form == "rot_6d":
        return values
    return rot6d_from_matrix(matrix_from(values, form))


def matrix_from(values: Array, form: RotationForm) -> Array:
    """Rotation matrices float64 [..., 3, 3] from a form.

    Args:
        values: `rot_6d` [..., 6], the first two rows; `rot_6d_columns` [..., 6], the first two
            columns, one after the other; `matrix` [..., 9], row by row; `axis_angle` [..., 3], a
            rotation vector in radians; `euler_xyz` [..., 3], radians about the fixed x, then y,
            then z axis, which are intrinsic angles of the reverse order (zyx); `quaternion_xyzw`
            and `quaternion_wxyz` [..., 4], of any norm but 0.
        form: Name of the form.
    """
    if form in ("rot_6d", "matrix"):
        return matrix_from_rot6d(values[..., :6])
    if form == "rot_6d_columns":
        return np.swapaxes(matrix_from_rot6d(values), -1, -2)
    from scipy.spatial.transform import Rotation

    # A copy: scipy needs a writable array, and arrays from files are read-only.
    flat = np.array(values, np.float64).reshape(-1, values.shape[-1])
    if form == "axis_angle":
        rotation = Rotation.from_rotvec(flat)
    elif form in EULER_FORMS:
        rotation = Rotation.from_euler(form.removeprefix("euler_"), flat)
    elif form == "quaternion_xyzw":
        rotation = Rotation.from_quat(flat)
    else:
        rotation = Rotation.from_quat(np.roll(flat, -1, axis=1))
    return rotation.as_matrix().reshape(*values.shape[:-1], 3, 3)


def form_from_matrix(matrix: Array, form: RotationForm) -> Array:
    """Inverse of `matrix_from`: values [..., C] of rotation matrices [..., 3, 3].

    Quaternions have w >= 0; angles are within pi, the second of Euler angles within pi / 2.
    """
    if form in ("rot_6d", "matrix"):
        rows = ROTATION_WIDTH[form] // 3
        return matrix[..., :rows, :].reshape(*matrix.shape[:-2], ROTATION_WIDTH[form])
    if form == "rot_6d_columns":
        return rot6d_from_matrix(np.swapaxes(matrix, -1, -2))
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_matrix(matrix.reshape(-1, 3, 3))
    if form == "axis_angle":
        values = rotation.as_rotvec()
    elif form in EULER_FORMS:
        with catch_warnings(action="ignore"):  # gimbal lock, where one angle is set to 0
            values = rotation.as_euler(form.removeprefix("euler_"))
    else:
        values = rotation.as_quat(canonical=True)
        if form == "quaternion_wxyz":
            values = np.roll(values, 1, axis=1)
    return values.reshape(*matrix.shape[:-2], values.shape[-1])


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


def turn_between(first: Array, second: Array) -> Array:
    """Turn in the frame of the base that leads from one 6D rotation [..., 6] to another."""
    inverse = np.swapaxes(matrix_from_rot6d(first), -1, -2)
    return rot6d_from_matrix(matrix_from_rot6d(second) @ inverse)


def angle_between(a: Array, b: Array) -> Array:
    """Angles between rotation matrices [..., 3, 3], in radians."""
    # The norm of the difference is exact for small angles, unlike the trace.
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8)
    return 2 * np.arcsin(np.minimum(chord, 1.0))


def _unit(vector: Array) -> Array:
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / np.maximum(norm, _SMALLEST_NORM)
