"""Relative poses: every pose of a window relative to the measured pose at the anchor, and back.

`with_pose_groups` makes absolute poses of recorded numbers (`PoseGroupConfig`), `relative_fields`
makes them relative, and `absolute_actions` is its inverse for the actions of a policy.

Source: formats/lbm-preprocessing 2.7.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Declaration, Episode, PoseGroup
from vlatool.errors import DataError
from vlatool.plugins import did_you_mean
from vlatool.transforms import rotations

Pose = tuple[Array, Array]  # position [..., 3] and rotation [..., C]

SUFFIX = "_relative"
POSITION = "__xyz"
ROTATION = "__rot_6d"
_SLICE = re.compile(r"^(.+)\[(\d+):(\d+)\]$")


class _Recorded(NamedTuple):
    """Where the numbers of a position or a rotation are recorded."""

    field: str
    first: int = 0
    stop: int | None = None  # None: the complete field


def _recorded(key: str) -> _Recorded:
    """The field of a key, or the columns of a slice such as `state[0:3]`."""
    match = _SLICE.match(key)
    if match is None:
        return _Recorded(key)
    return _Recorded(match.group(1), int(match.group(2)), int(match.group(3)))


class PoseGroupConfig(ConfigModel):
    """A pose in recorded fields; a field may be a slice, such as `state[0:3]`.

    The stored pose is always absolute, in meters and with a 6D rotation.
    """

    name: str = Field(description="Name of the pose.")
    position_key: str = Field(description="Field with the position, 3 numbers.")
    rotation_key: str = Field(description="Field with the rotation.")
    rotation: rotations.RotationForm = option(
        "rot_6d", "Recorded representation of the rotation; it is stored as 6D."
    )
    relation: Literal["absolute", "delta"] = option(
        "absolute", "Absolute, or a delta from the pose of `reference` at the same frame."
    )
    frame: Literal["base", "tool"] = option(
        "base", "Frame of reference of a delta: the base, or the reference pose (tool)."
    )
    scale: float = option(
        1.0, "Recorded units of the position per meter, such as 1000 for millimeters.", gt=0
    )
    rotation_scale: float = option(
        1.0, "Recorded units per radian of a rotation of three numbers; 57.3 for degrees.", gt=0
    )
    reference: str | None = option(
        None,
        "Pose group whose pose at the anchor is the reference; null uses the measured pose of the "
        "same name, else this pose itself.",
    )

    @model_validator(mode="after")
    def _check_conversion(self) -> Self:
        if self.relation == "delta" and self.reference in (None, self.name):
            raise ValueError(f"pose group {self.name!r}: a delta needs a reference")
        if self.rotation_scale != 1 and rotations.ROTATION_WIDTH[self.rotation] != 3:
            raise ValueError(f"pose group {self.name!r}: {self.rotation} has no rotation_scale")
        return self

    @property
    def stored_keys(self) -> tuple[str, str]:
        """Fields of the stored position and rotation; complete fields are stored as they are."""
        position = self.position_key
        rotation = self.rotation_key
        is_delta = self.relation == "delta"
        if _SLICE.match(position) or is_delta or self.scale != 1:
            position = self.name + POSITION
        if _SLICE.match(rotation) or is_delta or self.rotation != "rot_6d":
            rotation = self.name + ROTATION
        return position, rotation

    @property
    def recorded_fields(self) -> list[str]:
        """Fields that the pose is read from."""
        return [_recorded(self.position_key).field, _recorded(self.rotation_key).field]

    def absolute(self, numbers: Pose, reference: Pose | None) -> Pose:
        """Absolute pose of recorded numbers; `reference`: absolute pose of a delta."""
        position, rotation = numbers
        if self.scale != 1:
            position = position / self.scale
        if self.rotation_scale != 1:
            rotation = rotation / self.rotation_scale
        rot6d = rotations.rot6d_from(rotation, self.rotation)
        if self.relation == "absolute" or reference is None:
            return position, rot6d
        if self.frame == "tool":
            return rotations.absolute_pose(position, rot6d, *reference)
        turn = rotations.matrix_from_rot6d(rot6d)
        turned = turn @ rotations.matrix_from_rot6d(reference[1])
        return reference[0] + position, rotations.rot6d_from_matrix(turned)

    def numbers(self, pose: Pose, reference: Pose | None) -> Pose:
        """Inverse of `absolute`: the numbers of an absolute pose."""
        if self.relation == "delta" and reference is not None:
            if self.frame == "tool":
                pose = rotations.relative_pose(*pose, *reference)
            else:
                pose = pose[0] - reference[0], rotations.turn_between(reference[1], pose[1])
        matrix = rotations.matrix_from_rot6d(pose[1])
        rotation = rotations.form_from_matrix(matrix, self.rotation)
        return pose[0] * self.scale, rotation * self.rotation_scale


def with_pose_groups(episode: Episode, groups: Sequence[PoseGroupConfig]) -> Episode:
    """The episode with these pose groups instead of its own.

    A pose that is a slice of a field, or whose rotation has another form, is stored as two new
    fields: `<name>__xyz` [F, 3] and `<name>__rot_6d` [F, 6].
    """
    lowdim = dict(episode.lowdim)
    resolved = add_poses(lowdim, groups, episode.id)
    for group in groups:
        if group.reference is not None:
            reference = _pose_group(resolved, group, episode.id)
            resolved[group.name] = replace(
                resolved[group.name],
                reference_position=reference.position_key,
                reference_rotation=reference.rotation_key,
            )
    pose_fields: set[str] = set()
    for group in resolved.values():
        for key in reference_keys(group):
            _field(lowdim, key, episode.id, group.name)
        pose_fields.update((group.position_key, group.rotation_key))
    action_fields: list[str] = []
    for name in episode.action_fields:
        absolute = name.removesuffix(SUFFIX)
        action_fields.append(absolute + SUFFIX if absolute in pose_fields else absolute)
    return replace(
        episode,
        lowdim=lowdim,
        pose_groups=tuple(resolved.values()),
        action_fields=tuple(action_fields),
    )


def add_poses(
    lowdim: dict[str, Array], groups: Sequence[PoseGroupConfig], episode: str
) -> dict[str, PoseGroup]:
    """Adds the absolute poses of groups to fields [F, C]; returns the groups by name."""
    resolved: dict[str, PoseGroup] = {}
    for group in sorted(groups, key=lambda group: group.relation):  # deltas last
        reference = None
        if group.relation == "delta":
            referred = _pose_group(resolved, group, episode)
            reference = (lowdim[referred.position_key], lowdim[referred.rotation_key])
        width = rotations.ROTATION_WIDTH[group.rotation]
        position = _field(lowdim, group.position_key, episode, group.name, 3)
        rotation = _field(lowdim, group.rotation_key, episode, group.name, width)
        try:
            xyz, rot6d = group.absolute((position, rotation), reference)
        except ValueError as error:  # of scipy: a quaternion of zeros, numbers that are not finite
            raise DataError(
                f"{episode}: pose group {group.name!r} has no {group.rotation}: {error}",
                hint="repair the recording, leave the episode out, or correct `rotation`",
                code="data.broken",
                details={"field": group.rotation_key, "pose_group": group.name},
            ) from None
        position_key, rotation_key = group.stored_keys
        lowdim[position_key] = xyz
        lowdim[rotation_key] = rot6d
        resolved[group.name] = PoseGroup(group.name, position_key, rotation_key)
    return {group.name: resolved[group.name] for group in groups}


def declarations(groups: Sequence[PoseGroupConfig]) -> Iterator[Declaration]:
    """Declarations of the relation of poses in the actions, and of the form of their rotation."""
    for group in groups:
        position = _recorded(group.position_key)
        rotation = _recorded(group.rotation_key)
        origin = f"pose_groups: {group.name}"
        frame = group.frame if group.relation == "delta" else ""
        last = position.first + 2
        yield Declaration(position.field, position.first, last, origin, group.relation, (), frame)
        forms = (group.rotation,)
        last = rotation.first + rotations.ROTATION_WIDTH[group.rotation] - 1
        yield Declaration(
            rotation.field, rotation.first, last, origin, group.relation, forms, frame
        )


def _pose_group(
    resolved: Mapping[str, PoseGroup], group: PoseGroupConfig, episode: str
) -> PoseGroup:
    """The group that another one refers to."""
    reference = resolved.get(group.reference or "")
    if reference is None:
        raise DataError(
            f"{episode}: pose group {group.name!r} has the unknown reference {group.reference!r}",
            hint=did_you_mean(group.reference or "", list(resolved)),
            code="data.unknown_field",
            details={"pose_group": group.name, "known": list(resolved)},
        )
    return reference


def _field(
    lowdim: Mapping[str, Array], key: str, episode: str, group: str, width: int | None = None
) -> Array:
    """Values of a field or of a slice of it; raises DataError if the width is not `width`."""
    name, first, stop = _recorded(key)
    if name not in lowdim or lowdim[name].dtype.kind == "U":
        raise DataError(
            f"{episode}: pose group {group!r}: no numeric field {name!r}",
            hint=did_you_mean(name, list(lowdim)),
            code="data.unknown_field",
            details={"field": name, "pose_group": group},
        )
    values = lowdim[name]
    if stop is not None:
        values = values[:, first:stop]
    if width is not None and (values.ndim != 2 or values.shape[1] != width):
        raise DataError(
            f"{episode}: pose group {group!r}: {key!r} is {list(values.shape)}, expected "
            f"[frames, {width}]",
            hint="give the slice that holds the pose, such as state[0:3]",
            code="data.broken",
            details={"field": name, "pose_group": group},
        )
    return values


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
    groups: dict[str, PoseGroup] = {}
    for name in names:
        for suffix in (POSITION, ROTATION):
            if name.endswith(suffix + SUFFIX):
                pose = name.removesuffix(suffix + SUFFIX)
                groups[pose] = PoseGroup(pose, pose + POSITION, pose + ROTATION)
    return list(groups.values())


def stored_from(name: str, fields: Collection[str]) -> str:
    """Returns the field that a field is computed from: itself, or the pose of a relative pose."""
    return name if name in fields else name.removesuffix(SUFFIX)


def relative_fields(
    windows: Mapping[str, Array], groups: Sequence[PoseGroup], anchor: int
) -> dict[str, Array]:
    """`<field>_relative` windows [N, T, 3] and [N, T, 6] for each pose group.

    `windows` [N, T, C] are padded; `anchor` is the index of the anchor in a window.
    """
    result: dict[str, Array] = {}
    for group in groups:
        reference_position, reference_rotation = reference_keys(group)
        for key in (
            group.position_key,
            group.rotation_key,
            reference_position,
            reference_rotation,
        ):
            if key not in windows:
                raise DataError(
                    f"pose group {group.name!r}: field {key!r} is not in the episode",
                    hint="correct pose_groups, or leave the group out",
                    code="data.unknown_field",
                    details={"field": key, "pose_group": group.name},
                )
        xyz, rot6d = rotations.relative_pose(
            windows[group.position_key],
            windows[group.rotation_key],
            windows[reference_position][:, anchor : anchor + 1],
            windows[reference_rotation][:, anchor : anchor + 1],
        )
        relative_position, relative_rotation = relative_names(group)
        result[relative_position] = xyz
        result[relative_rotation] = rot6d
    return result


def absolute_actions(
    actions: Mapping[str, Array], fields: Mapping[str, Array], groups: Sequence[PoseGroup]
) -> dict[str, Array]:
    """Actions [B, T, C], absolute poses in place of relative ones; inverse of `relative_fields`.

    If a group has only its position or its rotation, the other stays at its measured value.

    Args:
        actions: Actions [B, T, C] by field.
        fields: Measured poses of the references [B, 1, C].
        groups: Poses; those without a relative field in `actions` are left out.
    """
    result = dict(actions)
    for group in groups:
        position = result.pop(group.position_key + SUFFIX, None)
        rotation = result.pop(group.rotation_key + SUFFIX, None)
        predicted = position if position is not None else rotation
        if predicted is None:
            continue
        shape = predicted.shape[:-1]
        reference_position, reference_rotation = reference_keys(group)
        xyz, rot6d = rotations.absolute_pose(
            np.zeros((*shape, 3)) if position is None else position,
            np.broadcast_to(_IDENTITY_ROT6D, (*shape, 6)) if rotation is None else rotation,
            fields[reference_position],
            fields[reference_rotation],
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

    If only the position or the rotation of a pose is in `actions`, the other counts as the measured
    one.

    Args:
        actions: Absolute actions [S, C] by field.
        fields: Measured poses of the references [1, C].
        groups: Poses.
    """
    result = dict(actions)
    for group in groups:
        reference_position, reference_rotation = reference_keys(group)
        measured_xyz = fields[reference_position]
        measured_rot6d = fields[reference_rotation]
        steps = len(next(iter(actions.values())))
        position = actions.get(group.position_key)
        if position is None:
            position = np.repeat(measured_xyz, steps, axis=0)
        rotation = actions.get(group.rotation_key)
        if rotation is None:
            rotation = np.repeat(measured_rot6d, steps, axis=0)
        xyz, rot6d = rotations.relative_pose(position, rotation, measured_xyz, measured_rot6d)
        result[group.position_key + SUFFIX] = xyz
        result[group.rotation_key + SUFFIX] = rot6d
    return result
