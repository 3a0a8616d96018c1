"""Groups of action dimensions and their meaning, by fits to the recorded states.

Legend of shapes: N rows, S dimensions of the states, C of the actions.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlatool.conventions import fit as convention_fits
from vlatool.episode import Array
from vlatool.transforms.rotations import EULER_FORMS, RotationForm

_SMALLEST_RANGE = 1e-6
_BETTER = 2.0  # ratio of residuals
_EQUAL_SHARE = 0.05  # of the variance, within which the next dimension of the states is preferred
_FEWEST_ROWS = 20
_OTHER_SCALE = 2.0  # ratio of scales of dimensions that are other quantities
_END = 0.05
_RESTING = 0.5
_THREE: tuple[RotationForm, ...] = ("axis_angle", *EULER_FORMS)
_STRUCTURES: Mapping[int, tuple[RotationForm, ...]] = {
    9: ("matrix",),
    6: ("rot_6d", "rot_6d_columns"),
    4: ("quaternion_xyzw", "quaternion_wxyz"),
}
_NUMBER = re.compile(r"[^a-zA-Z]*\d+$|(?<![a-zA-Z])[xyz]$")  # or the axis of a position
_ANGLES = re.compile(r"roll|rpy|euler|axis_?angle|rotvec|ori\b|rot\b|rx\b")
_GRIPPER = re.compile(r"grip|finger|claw|jaw|hand_?(?:open|clos)")
_POSITION = re.compile(r"eef_pos|ee_pos|xyz|tcp_pos|cartesian|position")
_MOST_OF_POSITION = 6  # dimensions of both, actions and states
_JOINTS = re.compile(r"joint|qpos|arm|hand|leg|waist|neck|motor|shoulder|elbow|wrist")


@dataclass(frozen=True)
class Column:
    """A dimension of the actions or the states."""

    field: str
    index: int  # in the field
    name: str = ""  # of the dimension, if the data have one

    @property
    def group(self) -> str:
        """Part of the name that the dimensions of a joint, a hand and so on share."""
        return f"{self.field}/{_NUMBER.sub('', self.name)}"

    @property
    def words(self) -> str:
        return f"{self.field} {self.name}".lower()


@dataclass(frozen=True)
class Group:
    """Action dimensions that are one quantity, and the fits of it, the best one first."""

    kind: str  # position, rotation, joints, gripper, values, constant, missing
    columns: slice
    states: slice | None = None
    fits: Sequence[convention_fits.Fit] = ()
    tied: Sequence[convention_fits.Fit] = ()
    pose: convention_fits.PoseColumns | None = None  # of a rotation
    largest: float = convention_fits.LARGEST_RESIDUAL  # above it nothing is determined

    def values(self, name: str) -> list[Any]:
        """Values of an attribute among the ties; one: it is determined, none: it has none."""
        values = dict.fromkeys(getattr(fit.hypothesis, name) for fit in self.tied)
        return [value for value in values if value is not None]

    @property
    def is_determined(self) -> bool:
        return bool(self.tied) and self.tied[0].residual <= self.largest


def find_groups(
    tracks: convention_fits.Tracks,
    actions: Sequence[Column],
    states: Sequence[Column],
    declared: Sequence[tuple[int, int, convention_fits.PoseColumns]] = (),
) -> list[Group]:
    """Groups of the action dimensions, in order.

    `declared`: poses that the data name, as first column of position and rotation in the actions,
    and the columns of the measured pose.
    """
    if len(tracks.rows) < _FEWEST_ROWS:
        return [Group("values", span) for span in _spans(range(len(actions)), actions)]
    structural = list(_structural_poses(tracks, states))
    poses = [*structural, *_named_poses(states, structural)]
    is_moving = np.ptp(tracks.actions[tracks.rows], axis=0) > _SMALLEST_RANGE
    # Declared poses come first.
    candidates = [(0.0, *each) for each in declared if is_moving[each[0] : each[0] + 3].any()]
    for pose in poses:
        residuals = convention_fits.position_residuals(tracks.few, pose)
        for first in np.flatnonzero(residuals <= convention_fits.LARGEST_RESIDUAL).tolist():
            is_whole = actions[first].field == actions[first + 2].field
            if is_whole and is_moving[first : first + 3].all():
                candidates.append((float(residuals[first]), first, first + 3, pose))
    groups = _poses(tracks, actions, candidates)
    free = set(range(len(actions))).difference(*(_columns(group) for group in groups))
    after_pose = {group.columns.stop for group in groups}
    missing = [column for column in free if tracks.missing[column]]
    groups += [Group("missing", span) for span in _spans(missing, actions)]
    resting = [column for column in free if not is_moving[column] and column not in missing]
    fields = [replace(column, name="") for column in actions]
    groups += [Group("constant", span) for span in _spans(resting, fields)]
    active = [column for column in free if is_moving[column] and column not in missing]
    for span in _spans(active, actions):
        runs = _runs(tracks, span, actions, states, after_pose)
        groups += [_without_part(group, structural) for group in runs]
    ordered = sorted(groups, key=lambda group: group.columns.start)
    return [replace(group, largest=tracks.largest_residual) for group in ordered]


def _without_part(group: Group, poses: Sequence[convention_fits.PoseColumns]) -> Group:
    """The group, without fits to some numbers of a quaternion, which resemble other rotations."""
    width = len(_columns(group))
    for rotation in (pose.rotation for pose in poses):
        is_inside = group.states and rotation.start <= group.states.start < rotation.stop
        if is_inside and width < rotation.stop - rotation.start:
            return replace(group, states=None, fits=(), tied=())
    return group


def _columns(group: Group) -> range:
    return range(group.columns.start, group.columns.stop)


def _poses(
    tracks: convention_fits.Tracks,
    actions: Sequence[Column],
    candidates: Sequence[tuple[float, int, int, convention_fits.PoseColumns]],  # by residual
) -> list[Group]:
    """Groups of the poses in the actions, those that fit best first."""
    groups: list[Group] = []
    free = set(range(len(actions)))
    for _, first, rotation, pose in sorted(candidates, key=lambda row: row[0]):
        if {first, first + 1, first + 2} <= free:
            for group in _pose_groups(tracks, actions, first, rotation, pose, free):
                groups.append(group)
                free -= {*_columns(group)}
    return groups


def _pose_groups(
    tracks: convention_fits.Tracks,
    actions: Sequence[Column],
    first: int,
    rotation: int,
    pose: convention_fits.PoseColumns,
    free: set[int],
) -> list[Group]:
    """Groups of a position and the rotation behind it; none if these may be other numbers."""
    columns = slice(first, first + 3)
    fits = convention_fits.fit_position(tracks, columns, pose)
    groups = [
        Group("position", columns, pose.position, fits, convention_fits.ties(fits, tracks.blocks))
    ]
    is_pose = pose.is_known or all(fit.hypothesis.frame == "tool" for fit in groups[0].tied)
    turned: list[tuple[slice, list[convention_fits.Fit]]] = []
    # A hand that never turns has the same rotation in all forms.
    is_turning = np.ptp(tracks.state(pose.rotation, 0), axis=0).max() > _SMALLEST_RANGE
    for width in _rotation_widths(tracks, actions, rotation) if is_turning else ():
        span = slice(rotation, rotation + width)
        if {*range(rotation, rotation + width)} <= free:
            turned.append((span, convention_fits.fit_rotation(tracks, span, pose)))
    if turned:
        span, fits = min(turned, key=lambda pair: pair[1][0].residual)
        tied = convention_fits.ties(fits, tracks.blocks)
        if fits[0].residual <= convention_fits.LARGEST_RESIDUAL:
            groups.append(Group("rotation", span, pose.rotation, fits, tied, pose))
            is_pose = is_pose or _beats_numbers(fits)
    return groups if is_pose else []


def _beats_numbers(fits: Sequence[convention_fits.Fit]) -> bool:
    """True if rotations fit much better than bare numbers, whose residual is another measure."""
    numbers = [fit.residual for fit in fits if fit.hypothesis.rotation is None]
    return fits[0].hypothesis.rotation is not None and fits[0].residual * _BETTER < min(
        numbers, default=np.inf
    )


def _rotation_widths(
    tracks: convention_fits.Tracks, actions: Sequence[Column], first: int
) -> Iterator[int]:
    """Widths of the rotations that may begin at a column of the actions."""
    for width in (9, 6, 4, 3):
        columns = actions[first : first + width]
        if len(columns) == width and columns[0].field == columns[-1].field:
            values = tracks.action(slice(first, first + width))
            if np.ptp(values, axis=0).max() > _SMALLEST_RANGE and _may_be_rotation(values):
                yield width


def _may_be_rotation(values: Array, tolerance: float = 0.2) -> bool:
    """True if most rows [N, C] have the norms of rotations of that width."""
    width = values.shape[1]
    if width == 3:
        return True
    parts = values.reshape(len(values), -1, 4 if width == 4 else 3)
    norms = np.abs(np.linalg.norm(parts, axis=-1) - 1).max(axis=1)
    products = np.abs((parts[:, 0] * parts[:, 1]).sum(axis=1)) if width > 4 else norms
    return bool(np.median(np.maximum(norms, products)) < tolerance)


def _structural_poses(
    tracks: convention_fits.Tracks, states: Sequence[Column]
) -> Iterator[convention_fits.PoseColumns]:
    """Poses whose rotation shows by its norm: quaternions and parts of matrices, after three."""
    first = 3
    while first < len(states):
        width = next(
            (size for size in _STRUCTURES if _is_structure(tracks, states, first, size)), 0
        )
        if width:
            named = _named_forms(_STRUCTURES[width], states[first])
            spans = slice(first - 3, first), slice(first, first + width)
            yield convention_fits.PoseColumns(*spans, named or _STRUCTURES[width])
        first += width or 1


def _named_forms(forms: Sequence[RotationForm], column: Column) -> tuple[RotationForm, ...]:
    """The form in the name of a column, the most exact one; none: its name has none."""
    named: list[RotationForm] = [form for form in forms if form in column.words]
    return tuple(named[-1:])  # of two, the longer name is the later one


def _is_structure(
    tracks: convention_fits.Tracks, states: Sequence[Column], first: int, width: int
) -> bool:
    columns = states[first : first + width]
    is_whole = len(columns) == width and columns[0].field == columns[-1].field
    values = tracks.states[tracks.rows, first : first + width]
    return is_whole and _may_be_rotation(values, 0.02)


def _named_poses(
    states: Sequence[Column], others: Sequence[convention_fits.PoseColumns]
) -> Iterator[convention_fits.PoseColumns]:
    """Six numbers at the start of a field or of a named group: position and angles, perhaps."""
    taken = {column for pose in others for column in range(pose.position.start, pose.rotation.stop)}
    for first in range(len(states) - 5):
        if taken & {*range(first, first + 6)}:
            continue
        columns = states[first : first + 6]
        is_start = first == 0 or states[first - 1].group != columns[0].group
        is_after_pose = columns[0].field == columns[5].field and columns[0].index in (7, 8)
        is_whole = all(part[0].field == part[2].field for part in (columns[:3], columns[3:]))
        named = _named_forms(_THREE, columns[3])
        is_rotation = bool(named) or bool(_ANGLES.search(columns[3].words))
        may_be = is_rotation or not _JOINTS.search(columns[0].words)
        if (is_start or is_after_pose) and is_whole and may_be:
            spans = slice(first, first + 3), slice(first + 3, first + 6)
            yield convention_fits.PoseColumns(*spans, named or _THREE, is_known=is_rotation)


def _spans(columns: Iterable[int], actions: Sequence[Column]) -> Iterator[slice]:
    """Consecutive columns of one field and named group."""
    first = last = -1
    for column in sorted(columns):
        if first >= 0 and column == last + 1 and actions[column].group == actions[last].group:
            last = column
            continue
        if first >= 0:
            yield slice(first, last + 1)
        first = last = column
    if first >= 0:
        yield slice(first, last + 1)


def _runs(
    tracks: convention_fits.Tracks,
    span: slice,
    actions: Sequence[Column],
    states: Sequence[Column],
    after_pose: Container[int],
) -> Iterator[Group]:
    """Dimensions that are consecutive dimensions of the states in one relation."""
    for columns, matched in _matches(tracks, span, actions, states):
        for group in (
            [Group("values", columns)] if matched is None else _alike(tracks, columns, matched)
        ):
            kind = _kind(group, actions, states, after_pose)
            if kind == "values" and _is_end(group, actions) and _rests_at_ends(tracks, group):
                kind = "gripper"
            yield replace(group, kind=kind)


def _alike(tracks: convention_fits.Tracks, columns: slice, states: slice) -> Iterator[Group]:
    """Groups of consecutive dimensions that mean the same, each fitted alone at first."""
    alone: list[Group] = []
    for index in range(columns.stop - columns.start):
        column = slice(columns.start + index, columns.start + index + 1)
        state = slice(states.start + index, states.start + index + 1)
        fits = convention_fits.fit_values(tracks, column, state)
        alone.append(
            Group("values", column, state, fits, convention_fits.ties(fits, tracks.blocks))
        )
    first = 0
    for index in range(1, len(alone) + 1):
        if index < len(alone) and _is_alike(alone[index - 1], alone[index]):
            continue
        joined = slice(columns.start + first, columns.start + index)
        of_states = slice(states.start + first, states.start + index)
        fits = convention_fits.fit_values(tracks, joined, of_states)
        yield Group("values", joined, of_states, fits, convention_fits.ties(fits, tracks.blocks))
        first = index


def _is_alike(group: Group, other: Group) -> bool:
    """True if two dimensions have the same answers, and scales of one size and sign.

    One that is determined does not answer for one that is not, such as a slow gripper.
    """
    answers = [
        {(fit.hypothesis.relation, fit.hypothesis.lag) for fit in each.tied}
        for each in (group, other)
    ]
    if answers[0] != answers[1] and min(len(each) for each in answers) == 1:
        return False
    scales = [each.fits[0].scale[0] for each in (group, other)]
    least, greatest = sorted(abs(scale) for scale in scales)
    return scales[0] * scales[1] >= 0 and greatest <= _OTHER_SCALE * max(
        least, convention_fits.SMALLEST
    )


def _is_end(group: Group, actions: Sequence[Column]) -> bool:
    """True for the last dimension of a field that has others."""
    is_single = group.columns.stop == group.columns.start + 1
    return (
        is_single
        and actions[group.columns.start].index > 0
        and _is_last(actions, group.columns.start)
    )


def _rests_at_ends(tracks: convention_fits.Tracks, group: Group) -> bool:
    """True for a dimension that is at one of its ends in most rows, as a gripper is."""
    values = tracks.action(group.columns)[:, 0]
    low = values.min()
    high = values.max()
    margin = _END * (high - low)
    return bool(((values < low + margin) | (values > high - margin)).mean() > _RESTING)


def _matches(
    tracks: convention_fits.Tracks, span: slice, actions: Sequence[Column], states: Sequence[Column]
) -> Iterator[tuple[slice, slice | None]]:
    """Columns of the actions, and of the states that have their names or predict them best."""
    if not states:
        yield span, None
        return
    names = [column.name for column in actions[span]]
    of_states = [column.name for column in states]
    if names[0] and names[0] in of_states:
        first = of_states.index(names[0])
        if of_states[first : first + len(names)] == names:
            yield span, slice(first, first + len(names))
            return
    shares = {pair: _shares(tracks.few, span, *pair) for pair in convention_fits.pairs(tracks)}
    starts: list[
        tuple[int, int | None, convention_fits.Relation]
    ] = []  # (column, column of the states, relation)
    for column in range(span.start, span.stop):
        of_column = {pair: table[column - span.start] for pair, table in shares.items()}
        best, pair = max((float(share.max()), pair) for pair, share in of_column.items())
        state: int | None = (
            int(of_column[pair].argmax())
            if best >= 1 - convention_fits.LARGEST_RESIDUAL**2
            else None
        )
        relation = pair[0]
        if starts and (before := starts[-1][1]) is not None and not _is_last(states, before):
            same = [
                share[before + 1] for (kind, _), share in of_column.items() if kind == starts[-1][2]
            ]
            if max(same) >= best - _EQUAL_SHARE:
                state = before + 1
                relation = starts[-1][2]
        starts.append((column, state, relation))
    for run in _consecutive(starts, states):
        columns = slice(run[0][0], run[-1][0] + 1)
        first = run[0][1]
        yield columns, None if first is None else slice(first, first + len(run))


def _consecutive(
    starts: Iterable[tuple[int, int | None, convention_fits.Relation]], states: Sequence[Column]
) -> Iterator[list[tuple[int, int | None, convention_fits.Relation]]]:
    run: list[tuple[int, int | None, convention_fits.Relation]] = []
    for entry in starts:
        if run:
            state, relation = run[-1][1:]
            following = None if state is None else state + 1
            is_next = (entry[1], entry[2] if following else relation) == (following, relation)
            if not is_next or (state is not None and _is_last(states, state)):
                yield run
                run = []
        run.append(entry)
    yield run


def _is_last(states: Sequence[Column], column: int) -> bool:
    """True for the last dimension of a field."""
    return column + 1 == len(states) or states[column].field != states[column + 1].field


def _shares(
    tracks: convention_fits.Tracks, span: slice, relation: convention_fits.Relation, lag: int
) -> Array:
    """Explained share of the variance [columns of the span, S] of each dimension by each state."""
    values = tracks.moved(slice(0, tracks.states.shape[1]), relation, lag)
    actions = tracks.action(span)
    centered = actions - actions.mean(axis=0)
    if relation == "absolute":
        values = values - values.mean(axis=0)
        actions = centered
    power = (values**2).sum(axis=0)
    products = actions.T @ values
    left = (actions**2).sum(axis=0)[:, None] - products**2 / np.maximum(
        power, convention_fits.SMALLEST
    )
    variance = (centered**2).sum(axis=0)[:, None]
    return np.where(
        power > convention_fits.SMALLEST,
        1 - left / np.maximum(variance, convention_fits.SMALLEST),
        0.0,
    )


def _kind(
    group: Group, actions: Sequence[Column], states: Sequence[Column], after_pose: Container[int]
) -> str:
    columns = [*actions[group.columns], *(states[group.states] if group.states else ())]
    words = " ".join(column.words for column in columns)
    is_single = group.columns.stop == group.columns.start + 1
    if _GRIPPER.search(words) or (is_single and group.columns.start in after_pose):
        return "gripper"
    if _JOINTS.search(words):
        return "joints"
    return "position" if _POSITION.search(words) and len(columns) <= _MOST_OF_POSITION else "values"
