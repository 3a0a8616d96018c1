"""Relative poses: every pose of a window relative to the measured pose at the anchor, and back.

Source: formats/lbm-preprocessing 2.7.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vlatool.episode import Array, PoseGroup
from vlatool.errors import DataError
from vlatool.transforms.rotations import absolute_pose, relative_pose

SUFFIX = "_relative"
_POSITION, _ROTATION = "__xyz", "__rot_6d"
_IDENTITY_ROT6D = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])


def actual_field(name: str) -> str | None:
    """Field with the measured value: `robot__actual__x` for `robot__action__x`; else None."""
    parts = name.split("__")
    if len(parts) < 3:
        return None
    return "__".join([parts[0], "actual", *parts[2:]])


def reference_keys(group: PoseGroup) -> tuple[str, str]:
    """Position and rotation field of the reference pose of a group."""
    return (
        group.reference_position or actual_field(group.position_key) or group.position_key,
        group.reference_rotation or actual_field(group.rotation_key) or group.rotation_key,
    )


def relative_names(group: PoseGroup) -> tuple[str, str]:
    """Names of the relative position and rotation of a group."""
    return group.position_key + SUFFIX, group.rotation_key + SUFFIX


def groups_with(names: Collection[str], groups: Sequence[PoseGroup]) -> list[PoseGroup]:
    """Groups with a relative position or rotation among `names`."""
    return [group for group in groups if {*relative_names(group)} & {*names}]


def groups_by_name(names: Collection[str]) -> list[PoseGroup]:
    """Pose groups of relative fields, for data that declare none: `X__xyz` and `X__rot_6d`.

    Their references are the measured poses, as of all published data.
    """
    fields = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    suffixes = (_POSITION, _ROTATION)
    poses = dict.fromkeys(f[: -len(text)] for f in fields for text in suffixes if f.endswith(text))
    return [PoseGroup(pose, pose + _POSITION, pose + _ROTATION) for pose in poses]


def stored_from(name: str, fields: Collection[str]) -> str:
    """Field among `fields` that a field is computed from: itself, or that of a relative pose."""
    return name if name in fields else name.removesuffix(SUFFIX)


def relative_fields(
    windows: Mapping[str, Array], groups: Sequence[PoseGroup], anchor: int
) -> dict[str, Array]:
    """`<field>_relative` windows [N, T, 3] and [N, T, 6] for each pose group.

    `windows` [N, T, C] are padded; `anchor` is the index of the anchor in a window.
    """
    result: dict[str, Array] = {}
    for group in groups:
        position, rotation = _pose(windows, group.position_key, group.rotation_key, group.name)
        reference = _pose(windows, *reference_keys(group), group.name)
        at_anchor = (values[:, anchor : anchor + 1] for values in reference)
        xyz, rot6d = relative_pose(position, rotation, *at_anchor)
        result |= zip(relative_names(group), (xyz, rot6d), strict=True)
    return result


def absolute_actions(
    actions: Mapping[str, Array], fields: Mapping[str, Array], groups: Sequence[PoseGroup]
) -> dict[str, Array]:
    """Actions [B, T, C], absolute poses in place of relative ones; inverse of `relative_fields`.

    `fields`: measured poses of the references [B, 1, C]; `groups`: poses; those without a relative
    field in `actions` are left out.

    If a group has only its position or its rotation, the other stays at its measured value.
    """
    result = dict(actions)
    for group in groups:
        position = result.pop(group.position_key + SUFFIX, None)
        rotation = result.pop(group.rotation_key + SUFFIX, None)
        predicted = position if position is not None else rotation
        if predicted is None:
            continue
        shape = predicted.shape[:-1]
        xyz, rot6d = absolute_pose(
            np.zeros((*shape, 3)) if position is None else position,
            np.broadcast_to(_IDENTITY_ROT6D, (*shape, 6)) if rotation is None else rotation,
            *(fields[key] for key in reference_keys(group)),
        )
        if position is not None:
            result[group.position_key] = xyz
        if rotation is not None:
            result[group.rotation_key] = rot6d
    return result


def relative_actions(
    actions: Mapping[str, Array], fields: Mapping[str, Array], groups: Sequence[PoseGroup]
) -> dict[str, Array]:
    """Actions [S, C] and, for each pose group, its relative poses; inverse of `absolute_actions`.

    `actions`: map from field to absolute actions; `fields`: measured poses of the references [1,
    C]; `groups`: poses. If only the position or the rotation of one is in `actions`, the other
    counts as the measured one.
    """
    result = dict(actions)
    for group in groups:
        measured = [fields[key] for key in reference_keys(group)]
        keys = (group.position_key, group.rotation_key)
        pose = [
            actions.get(key, np.repeat(now, len(next(iter(actions.values()))), axis=0))
            for key, now in zip(keys, measured, strict=True)
        ]
        for key, values in zip(keys, relative_pose(*pose, *measured), strict=True):
            result[key + SUFFIX] = values
    return result


def _pose(
    windows: Mapping[str, Array], position_key: str, rotation_key: str, group: str
) -> tuple[Array, Array]:
    for key in (position_key, rotation_key):
        if key not in windows:
            raise DataError(
                f"pose group {group!r}: field {key!r} is not in the episode",
                hint="correct pose_groups, or leave the group out",
                code="data.missing_field",
                details={"field": key, "pose_group": group},
            )
    return windows[position_key], windows[rotation_key]
