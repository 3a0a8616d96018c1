"""Pose groups configured by the user, for formats that do not define poses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.episode import Array, Episode, PoseGroup
from vlatool.errors import DataError
from vlatool.plugins import did_you_mean
from vlatool.transforms.relative import SUFFIX, reference_keys
from vlatool.transforms.rotations import ROTATION_WIDTH, RotationForm, rot6d_from

_SLICE = re.compile(r"^(.+)\[(\d+):(\d+)\]$")


class PoseGroupConfig(ConfigModel):
    """Position and rotation that form a pose; keys may be slices, such as `state[0:3]`."""

    name: str = Field(description="Name of the pose.")
    position_key: str = Field(description="Field with the position in metres, 3 wide.")
    rotation_key: str = Field(description="Field with the rotation.")
    rotation: RotationForm = Field(
        default="rot_6d", description="Form of the rotation; others are stored as 6D as well."
    )
    reference: str | None = Field(
        default=None,
        description="Pose group at whose anchor frame the reference pose is; null: the measured "
        "counterpart by name, else the group itself.",
    )


def with_pose_groups(episode: Episode, groups: Sequence[PoseGroupConfig]) -> Episode:
    """The episode with these pose groups instead of its own.

    A pose that is a slice of a field, or whose rotation has another form, is stored as two new
    fields: `<name>__xyz` [F, 3] and `<name>__rot_6d` [F, 6].
    """
    lowdim = dict(episode.lowdim)
    resolved = {group.name: _resolve_fields(group, lowdim, episode.id) for group in groups}
    for group in groups:
        if group.reference is not None:
            resolved[group.name] = _with_reference(resolved, group, episode.id)
    for group in resolved.values():
        for key in reference_keys(group):
            _field(lowdim, key, episode.id, group.name)
    names = {key for group in resolved.values() for key in (group.position_key, group.rotation_key)}
    absolute = [name.removesuffix(SUFFIX) for name in episode.action_fields]
    return replace(
        episode,
        lowdim=lowdim,
        pose_groups=tuple(resolved.values()),
        action_fields=tuple(name + SUFFIX if name in names else name for name in absolute),
    )


def _resolve_fields(group: PoseGroupConfig, lowdim: dict[str, Array], episode: str) -> PoseGroup:
    """The group as two complete fields, which are added to `lowdim` if needed."""
    position = _field(lowdim, group.position_key, episode, group.name, 3)
    width = ROTATION_WIDTH[group.rotation]
    rotation = _field(lowdim, group.rotation_key, episode, group.name, width)
    keys = [group.position_key, group.rotation_key]
    if _SLICE.match(keys[0]):
        keys[0] = f"{group.name}__xyz"
        lowdim[keys[0]] = position
    if _SLICE.match(keys[1]) or group.rotation != "rot_6d":
        keys[1] = f"{group.name}__rot_6d"
        lowdim[keys[1]] = rot6d_from(rotation, group.rotation)
    return PoseGroup(group.name, keys[0], keys[1])


def _with_reference(
    resolved: Mapping[str, PoseGroup], group: PoseGroupConfig, episode: str
) -> PoseGroup:
    reference = resolved.get(group.reference or "")
    if reference is None:
        raise DataError(
            f"{episode}: pose group {group.name!r} has the unknown reference {group.reference!r}",
            hint=did_you_mean(group.reference or "", list(resolved)),
            code="data.unknown_pose_group",
            details={"pose_group": group.name, "known": list(resolved)},
        )
    return replace(
        resolved[group.name],
        reference_position=reference.position_key,
        reference_rotation=reference.rotation_key,
    )


def _field(
    lowdim: Mapping[str, Array], key: str, episode: str, group: str, width: int | None = None
) -> Array:
    """Values of a field or of a slice of it; raises DataError if the width is not `width`."""
    match = _SLICE.match(key)
    name = match.group(1) if match else key
    if name not in lowdim or lowdim[name].dtype.kind == "U":
        raise DataError(
            f"{episode}: pose group {group!r}: no numeric field {name!r}",
            hint=did_you_mean(name, list(lowdim)),
            code="data.missing_field",
            details={"field": name, "pose_group": group},
        )
    values = lowdim[name]
    if match:
        values = values[:, int(match.group(2)) : int(match.group(3))]
    if width is not None and (values.ndim != 2 or values.shape[1] != width):
        raise DataError(
            f"{episode}: pose group {group!r}: {key!r} is {list(values.shape)}, expected "
            f"[frames, {width}]",
            hint="give the slice that holds the pose, such as state[0:3]",
            code="data.bad_pose",
            details={"field": name, "pose_group": group},
        )
    return values
