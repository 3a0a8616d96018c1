"""Relative poses of a window: every pose relative to the measured pose at the anchor.

Source: formats/lbm-preprocessing 2.7.
"""

from collections.abc import Mapping, Sequence

from vlatool.episode import Array, PoseGroup
from vlatool.errors import DataError
from vlatool.transforms.rotations import relative_pose

SUFFIX = "_relative"


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


def relative_fields(
    windows: Mapping[str, Array], groups: Sequence[PoseGroup], anchor: int
) -> dict[str, Array]:
    """`<field>_relative` windows [N, T, 3] and [N, T, 6] for each pose group.

    `windows` [N, T, C] are padded; `anchor` is the index of the anchor in a window.

    Raises:
        DataError: A group names a field that does not exist.
    """
    result: dict[str, Array] = {}
    for group in groups:
        position, rotation = _pose(windows, group.position_key, group.rotation_key, group.name)
        reference = _pose(windows, *reference_keys(group), group.name)
        at_anchor = (values[:, anchor : anchor + 1] for values in reference)
        xyz, rot6d = relative_pose(position, rotation, *at_anchor)
        result[group.position_key + SUFFIX] = xyz
        result[group.rotation_key + SUFFIX] = rot6d
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
