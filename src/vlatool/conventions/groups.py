"""Groups action dimensions that are one quantity, by names and by fits to the recorded states.

`find_groups` takes poses first: a position and a rotation that follow a pose of the states. Each
other dimension is matched with the dimension of the states that has its name, or else predicts it
best. Neighbors that mean the same are one group.

Legend of shapes: N rows, S dimensions of the states, C of the actions.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from vlatool.conventions import fit
from vlatool.conventions.fit import (
    FEWEST_ROWS,
    LARGEST_RESIDUAL,
    SMALLEST,
    Column,
    Fit,
    Pose,
    Samples,
)
from vlatool.episode import Array
from vlatool.transforms.rotations import EULER_FORMS, RotationForm

_SMALLEST_RANGE = 1e-6
_BETTER = 2.0  # ratio of residuals
_EQUAL_SHARE = 0.05  # of the variance, within which the next dimension of the states is preferred
_OTHER_SCALE = 2.0  # ratio of scales of dimensions that are other quantities
_END = 0.05
_RESTING = 0.5
_UNIT = 0.2  # norms of rotations may differ so much from 1
_MEASURED_UNIT = 0.02  # the same of the states
_THREE: tuple[RotationForm, ...] = ("axis_angle", *EULER_FORMS)
_STRUCTURES: Mapping[int, tuple[RotationForm, ...]] = {
    9: ("matrix",),
    6: ("rot_6d", "rot_6d_columns"),
    4: ("quaternion_xyzw", "quaternion_wxyz"),
}
_ANGLES = re.compile(r"roll|rpy|euler|axis_?angle|rotvec|ori\b|rot\b|rx\b")
_GRIPPER = re.compile(r"grip|finger|claw|jaw|hand_?(?:open|clos)")
_POSITION = re.compile(r"eef_pos|ee_pos|xyz|tcp_pos|cartesian|position")
_MOST_OF_POSITION = 6  # dimensions of both, actions and states
_JOINTS = re.compile(r"joint|qpos|arm|hand|leg|waist|neck|motor|shoulder|elbow|wrist")


@dataclass(frozen=True)
class Group:
    """Action dimensions that are one quantity, and the fits of it, the best one first."""

    kind: str  # position, rotation, joints, gripper, values, constant, missing
    columns: slice
    states: slice | None = None
    fits: Sequence[Fit] = ()
    tied: Sequence[Fit] = ()  # empty: not determined
    pose: Pose | None = None  # of a rotation

    @property
    def is_determined(self) -> bool:
        return bool(self.tied)

    def values(self, name: str) -> list[Any]:
        """Values of an attribute among the ties; one: it is determined, none: it has none."""
        values: list[Any] = []
        for tie in self.tied:
            value = getattr(tie, name)
            if value is not None and value not in values:
                values.append(value)
        return values


class PoseColumns(NamedTuple):
    """Columns of the actions that may follow a pose of the states."""

    position: int  # first column of the position
    rotation: int  # first column of the rotation
    pose: Pose

    @property
    def of_position(self) -> slice:
        return slice(self.position, self.position + 3)


def find_groups(samples: Samples, declared: Sequence[PoseColumns] = ()) -> list[Group]:
    """Groups of the action dimensions, in order; `declared`: poses that the data name."""
    columns = samples.action_columns
    if len(samples.rows) < FEWEST_ROWS:
        names = [column.group for column in columns]
        return [Group("values", span) for span in _spans(range(len(columns)), names)]
    is_moving = np.ptp(samples.actions[samples.rows], axis=0) > _SMALLEST_RANGE

    structural = _structural_poses(samples)
    poses = [*structural, *_named_poses(samples.state_columns, structural)]
    groups: list[Group] = []
    free = set(range(len(columns)))
    for candidate in _candidates(samples, poses, declared, is_moving):
        if free.issuperset(range(candidate.position, candidate.position + 3)):
            for group in _pose_groups(samples, candidate, free):
                groups.append(group)
                free.difference_update(range(group.columns.start, group.columns.stop))

    ends_of_poses = {group.columns.stop for group in groups}
    labels: list[tuple[str, str]] = []  # kind and name
    for number, column in enumerate(columns):
        if samples.missing[number]:
            labels.append(("missing", column.group))
        elif is_moving[number]:
            labels.append(("values", column.group))
        else:
            labels.append(("constant", column.field))
    for span in _spans(sorted(free), labels):
        kind = labels[span.start][0]
        if kind == "values":
            groups += _value_groups(samples, span, structural, ends_of_poses)
        else:
            groups.append(Group(kind, span))

    groups.sort(key=lambda group: group.columns.start)
    for number, group in enumerate(groups):
        if group.tied and group.tied[0].residual > samples.largest_residual:
            groups[number] = replace(group, tied=())
    return groups


def _candidates(
    samples: Samples, poses: Sequence[Pose], declared: Sequence[PoseColumns], is_moving: Array
) -> list[PoseColumns]:
    """Columns that may follow a pose: declared ones first, then by their residual."""
    columns = samples.action_columns
    found: list[tuple[float, PoseColumns]] = []  # with the residual of the position
    for pose in poses:
        residuals = fit.position_residuals(samples.few, pose)
        for first in np.flatnonzero(residuals <= LARGEST_RESIDUAL).tolist():
            is_whole = columns[first].field == columns[first + 2].field
            if is_whole and is_moving[first : first + 3].all():
                found.append((float(residuals[first]), PoseColumns(first, first + 3, pose)))
    found.sort(key=lambda entry: entry[0])
    candidates = [entry for entry in declared if is_moving[entry.of_position].any()]
    return candidates + [candidate for _, candidate in found]


def _spans(columns: Sequence[int], labels: Sequence[object]) -> list[slice]:
    """Consecutive columns with one label, from columns in ascending order."""
    spans: list[slice] = []
    for column in columns:
        if spans and spans[-1].stop == column and labels[column] == labels[column - 1]:
            spans[-1] = slice(spans[-1].start, column + 1)
        else:
            spans.append(slice(column, column + 1))
    return spans


def _structural_poses(samples: Samples) -> list[Pose]:
    """Poses whose rotation shows by its norm: quaternions and parts of matrices, after three."""
    columns = samples.state_columns
    poses: list[Pose] = []
    first = 3
    while first < len(columns):
        for width, forms in _STRUCTURES.items():
            part = columns[first : first + width]
            values = samples.states[samples.rows, first : first + width]
            is_whole = len(part) == width and part[0].field == part[-1].field
            if is_whole and _may_be_rotation(values, _MEASURED_UNIT):
                position = slice(first - 3, first)
                rotation = slice(first, first + width)
                poses.append(Pose(position, rotation, _named_forms(forms, part[0]) or forms))
                first += width
                break
        else:
            first += 1
    return poses


def _named_poses(columns: Sequence[Column], others: Sequence[Pose]) -> Iterator[Pose]:
    """Six numbers at the start of a field or of a named group: position and angles, perhaps."""
    taken: set[int] = set()
    for pose in others:
        taken.update(range(pose.position.start, pose.rotation.stop))
    for first in range(len(columns) - 5):
        x, _, z, rx, _, rz = columns[first : first + 6]
        is_start = first == 0 or columns[first - 1].group != x.group
        is_after_pose = x.field == rz.field and x.index in (7, 8)
        is_whole = x.field == z.field and rx.field == rz.field
        named = _named_forms(_THREE, rx)
        is_rotation = bool(named) or bool(_ANGLES.search(rx.words))
        may_be = is_rotation or not _JOINTS.search(x.words)
        is_free = taken.isdisjoint(range(first, first + 6))
        if is_free and (is_start or is_after_pose) and is_whole and may_be:
            position = slice(first, first + 3)
            rotation = slice(first + 3, first + 6)
            yield Pose(position, rotation, named or _THREE, is_known=is_rotation)


def _named_forms(forms: Sequence[RotationForm], column: Column) -> tuple[RotationForm, ...]:
    """The form in the name of a column, the most exact one; none: its name has none."""
    named: list[RotationForm] = [form for form in forms if form in column.words]
    return tuple(named[-1:])  # of two, the longer name is the later one


def _may_be_rotation(values: Array, tolerance: float) -> bool:
    """True if most rows [N, C] have the norms of rotations of that width."""
    width = values.shape[1]
    if width == 3:
        return True
    parts = values.reshape(len(values), -1, 4 if width == 4 else 3)
    errors = np.abs(np.linalg.norm(parts, axis=-1) - 1).max(axis=1)
    if width > 4:
        errors = np.maximum(errors, np.abs((parts[:, 0] * parts[:, 1]).sum(axis=1)))
    return bool(np.median(errors) < tolerance)


def _pose_groups(samples: Samples, candidate: PoseColumns, free: Collection[int]) -> list[Group]:
    """Groups of a position and the rotation behind it; none if these may be other numbers."""
    columns = candidate.of_position
    pose = candidate.pose
    fits = fit.position_fits(samples, columns, pose)
    tied = fit.ties(fits, samples)
    position = Group("position", columns, pose.position, fits, tied)
    is_pose = pose.is_known or all(tie.frame == "tool" for tie in tied)

    rotation = _best_rotation(samples, candidate, free)
    if rotation is not None:
        best = rotation.fits[0]
        # Residuals of rotations and of bare numbers are other measures.
        numbers = [other.residual for other in rotation.fits if other.rotation is None]
        is_better = best.residual * _BETTER < min(numbers, default=np.inf)
        if is_pose or (best.rotation is not None and is_better):
            return [position, rotation]
    return [position] if is_pose else []


def _best_rotation(samples: Samples, candidate: PoseColumns, free: Collection[int]) -> Group | None:
    """The columns that follow the rotation of a pose best; None: none does."""
    pose = candidate.pose
    # A hand that never turns has the same rotation in all forms.
    if np.ptp(samples.state(pose.rotation, 0), axis=0).max() <= _SMALLEST_RANGE:
        return None
    best: Group | None = None
    for width in (*_STRUCTURES, 3):
        span = slice(candidate.rotation, candidate.rotation + width)
        part = samples.action_columns[span]
        is_free = all(column in free for column in range(span.start, span.stop))
        if not is_free or part[0].field != part[-1].field:
            continue
        values = samples.action(span)
        if np.ptp(values, axis=0).max() <= _SMALLEST_RANGE or not _may_be_rotation(values, _UNIT):
            continue
        fits = fit.rotation_fits(samples, span, pose)
        if best is None or fits[0].residual < best.fits[0].residual:
            best = Group("rotation", span, pose.rotation, fits, pose=pose)
    if best is None or best.fits[0].residual > LARGEST_RESIDUAL:
        return None
    return replace(best, tied=fit.ties(best.fits, samples))


def _value_groups(
    samples: Samples, span: slice, poses: Sequence[Pose], ends_of_poses: Collection[int]
) -> Iterator[Group]:
    """Dimensions that are consecutive dimensions of the states in one relation."""
    for columns, states in _matches(samples, span):
        if states is None:
            groups = [Group("values", columns)]
        else:
            groups = _alike(samples, columns, states)
        for group in groups:
            kind = _kind(samples, group, ends_of_poses)
            # Some numbers of a quaternion resemble other rotations.
            if any(_is_part(group.states, pose.rotation) for pose in poses):
                group = Group(kind, group.columns)
            yield replace(group, kind=kind)


def _is_part(span: slice | None, other: slice) -> bool:
    """True if a span begins in another one and is shorter."""
    if span is None or not other.start <= span.start < other.stop:
        return False
    return span.stop - span.start < other.stop - other.start


def _matches(samples: Samples, span: slice) -> Iterator[tuple[slice, slice | None]]:
    """Columns of the actions, and of the states that have their names or predict them best."""
    states = samples.state_columns
    if not states:
        yield span, None
        return
    names = [column.name for column in samples.action_columns[span]]
    state_names = [column.name for column in states]
    if names[0] and names[0] in state_names:
        first = state_names.index(names[0])
        stop = first + len(names)
        if state_names[first:stop] == names:
            yield span, slice(first, stop)
            return

    shares = {pair: _shares(samples.few, span, *pair) for pair in samples.pairs}
    columns = slice(span.start, span.start)
    matched: slice | None = None
    matched_relation = ""
    for column in range(span.start, span.stop):
        row = column - span.start
        best, pair = max((float(table[row].max()), pair) for pair, table in shares.items())
        relation = pair[0]
        state = None
        if best >= 1 - LARGEST_RESIDUAL**2:
            state = int(shares[pair][row].argmax())
        # Where it explains nearly as much, the next dimension of the states is preferred.
        is_next = False
        if matched is not None and not _is_last(states, matched.stop - 1):
            following = -np.inf
            for (other, _), table in shares.items():
                if other == matched_relation:
                    following = max(following, table[row][matched.stop])
            is_best = state == matched.stop and relation == matched_relation
            is_next = is_best or following >= best - _EQUAL_SHARE

        if matched is None and state is None:
            columns = slice(columns.start, column + 1)
        elif matched is not None and is_next:
            columns = slice(columns.start, column + 1)
            matched = slice(matched.start, matched.stop + 1)
        else:
            if columns.stop > columns.start:
                yield columns, matched
            columns = slice(column, column + 1)
            matched = None if state is None else slice(state, state + 1)
            matched_relation = relation
    yield columns, matched


def _is_last(columns: Sequence[Column], number: int) -> bool:
    """True for the last dimension of a field."""
    return number + 1 == len(columns) or columns[number].field != columns[number + 1].field


def _shares(samples: Samples, span: slice, relation: fit.Relation, lag: int) -> Array:
    """Explained share of the variance [columns of the span, S] of each dimension by each state."""
    values = samples.moved(slice(None), relation, lag)
    actions = samples.action(span)
    centered = actions - actions.mean(axis=0)
    if relation == "absolute":
        values = values - values.mean(axis=0)
        actions = centered
    power = (values**2).sum(axis=0)
    products = actions.T @ values
    left = (actions**2).sum(axis=0)[:, None] - products**2 / np.maximum(power, SMALLEST)
    variance = (centered**2).sum(axis=0)[:, None]
    return np.where(power > SMALLEST, 1 - left / np.maximum(variance, SMALLEST), 0.0)


def _alike(samples: Samples, columns: slice, states: slice) -> list[Group]:
    """Groups of consecutive dimensions that mean the same, each fitted alone at first."""
    shift = states.start - columns.start
    spans: list[slice] = []
    before: list[Fit] = []
    for column in range(columns.start, columns.stop):
        state = column + shift
        fits = fit.value_fits(samples, slice(column, column + 1), slice(state, state + 1))
        tied = fit.ties(fits, samples)
        if before and _is_alike(before, tied):
            spans[-1] = slice(spans[-1].start, column + 1)
        else:
            spans.append(slice(column, column + 1))
        before = tied

    groups: list[Group] = []
    for span in spans:
        of_states = slice(span.start + shift, span.stop + shift)
        fits = fit.value_fits(samples, span, of_states)
        groups.append(Group("values", span, of_states, fits, fit.ties(fits, samples)))
    return groups


def _is_alike(tied: Sequence[Fit], others: Sequence[Fit]) -> bool:
    """True if two dimensions have the same answers, and scales of one size and sign.

    One that is determined does not answer for one that is not, such as a slow gripper.
    """
    answers = {(tie.relation, tie.lag) for tie in tied}
    other_answers = {(tie.relation, tie.lag) for tie in others}
    if answers != other_answers and 1 in (len(answers), len(other_answers)):
        return False
    scale = tied[0].scale[0]
    other = others[0].scale[0]
    least, greatest = sorted([abs(scale), abs(other)])
    return scale * other >= 0 and greatest <= _OTHER_SCALE * max(least, SMALLEST)


def _kind(samples: Samples, group: Group, ends_of_poses: Collection[int]) -> str:
    first = group.columns.start
    is_single = group.columns.stop == first + 1
    columns = list(samples.action_columns[group.columns])
    if group.states is not None:
        columns += samples.state_columns[group.states]
    words = " ".join(column.words for column in columns)
    if _GRIPPER.search(words) or (is_single and first in ends_of_poses):
        return "gripper"
    if _JOINTS.search(words):
        return "joints"
    if _POSITION.search(words) and len(columns) <= _MOST_OF_POSITION:
        return "position"
    # The last dimension of a field that has others, and that rests at its ends in most rows.
    if is_single and columns[0].index > 0 and _is_last(samples.action_columns, first):
        values = samples.action(group.columns)
        low = values.min()
        high = values.max()
        margin = _END * (high - low)
        is_at_end = (values < low + margin) | (values > high - margin)
        if is_at_end.mean() > _RESTING:
            return "gripper"
    return "values"
