"""Measures the conventions of the actions of raw episodes, on parts of some episodes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlatool.conventions import file
from vlatool.conventions.file import Convention, Conventions
from vlatool.conventions.fit import Column, Pose, Samples
from vlatool.conventions.groups import Group, PoseColumns, find_groups
from vlatool.episode import Array, Declaration, Episode, EpisodeRef, PoseGroup
from vlatool.errors import DataError
from vlatool.report.charts import FieldValues, prediction_charts
from vlatool.report.facts import Axis, Part, Section, Table, Text, Titled, evenly_spaced
from vlatool.transforms.relative import SUFFIX, reference_keys

_MOST_EPISODES = 40
_MOST_ROWS = 8000
_FEWEST_FRAMES = 20  # of an episode
_WIDEST = 64  # a field of more dimensions is no state of a robot
_EXACT = 0.01  # residual of a copy
_DRAWN_ROWS = 200
_DRAWN = 3
_NO_STATES = ("action", "reward", "discount", "timestamp", "embedding")
_ATTRIBUTES = ("relation", "lag", "frame", "rotation", "state_rotation")


@dataclass(frozen=True)
class Measured:
    """Conventions, and the fits behind them, one group for each."""

    conventions: Conventions
    groups: Sequence[Group]
    samples: Samples
    declared: Sequence[Declaration]  # by the data
    fps: float  # 0: unknown


def sampled(total: int) -> list[int]:
    """Numbers of the episodes that are measured, of `total`: evenly spaced ones."""
    return evenly_spaced(total, _MOST_EPISODES)


def sampled_part(episode: Episode, number: int, total: int) -> Episode:
    """Numbers of the rows of a sampled episode that are measured; later ones in later episodes."""
    quota = max(_MOST_ROWS // len(sampled(total)), _FEWEST_FRAMES)
    first = int(max(episode.num_frames - quota, 0) * number / total)
    lowdim: dict[str, Array] = {}
    for name, values in episode.lowdim.items():
        if _is_numeric(values):
            lowdim[name] = np.array(values[first : first + quota])
    return replace(episode, lowdim=lowdim, cameras={}, depth={}, labels={}, calibration={})


def measure_some(
    read: Callable[[EpisodeRef], Episode],
    refs: Sequence[EpisodeRef],
    actions: Sequence[str] = (),  # further action fields
) -> Measured | None:
    """Reads some of the episodes and measures their conventions; None without any actions."""
    parts: list[Episode] = []
    for number in sampled(len(refs)):
        with suppress(DataError):  # of an episode that is reported elsewhere
            episode = read(refs[number])
            fields = (*episode.action_fields, *actions)
            part = sampled_part(episode, number, len(refs))
            parts.append(replace(part, action_fields=fields))
    return measure(parts, len(refs))


def measure(episodes: Sequence[Episode], total: int) -> Measured | None:
    """Measures the conventions of episodes that were chosen from `total`; None without actions."""
    actions = _columns(episodes, [name.removesuffix(SUFFIX) for name in _action_fields(episodes)])
    states = _columns(episodes, state_fields(episodes))
    whole: list[Episode] = []
    rows: list[tuple[Array, Array]] = []
    for episode in episodes:
        acted = _values(episode, actions)
        observed = _values(episode, states)
        if acted is not None and observed is not None:
            whole.append(episode)
            rows.append((acted, observed))
    if not actions or not whole:
        return None
    samples = Samples.of(rows, actions, states)
    groups = find_groups(samples, list(_declared_poses(episodes, samples)))
    conventions = Conventions(
        tuple(_convention(group, samples) for group in groups),
        rows=len(samples.rows),
        episodes=len(whole),
        episodes_of=total,
    )
    declared: dict[Declaration, None] = {}
    for episode in whole:
        declared |= dict.fromkeys(episode.declared)
    return Measured(conventions, groups, samples, list(declared), whole[0].fps)


def _action_fields(episodes: Sequence[Episode]) -> list[str]:
    names: dict[str, None] = {}
    for episode in episodes:
        names |= dict.fromkeys(episode.action_fields)
    return list(names)


def state_fields(episodes: Sequence[Episode]) -> list[str]:
    """Fields that a policy observes; all numbers if the format names none."""
    observed: dict[str, None] = {}
    others: dict[str, None] = {}
    actions = _action_fields(episodes)
    for episode in episodes:
        observed |= dict.fromkeys(episode.proprioception_fields)
        for name in episode.lowdim:
            if name not in actions and not any(word in name.lower() for word in _NO_STATES):
                others[name] = None
    return list(observed or others)


def _columns(episodes: Sequence[Episode], fields: Sequence[str]) -> list[Column]:
    columns: list[Column] = []
    for name in dict.fromkeys(fields):
        for episode in episodes:
            if _is_numeric(episode.lowdim.get(name)):
                width = episode.lowdim[name].shape[1]
                names = episode.dimension_names.get(name, ())
                if len(names) != width:
                    names = [""] * width
                columns += [Column(name, index, names[index]) for index in range(width)]
                break
    return columns


def _is_numeric(values: Array | None) -> bool:
    return (
        values is not None
        and values.dtype.kind in "fiub"
        and values.ndim == 2
        and values.shape[1] <= _WIDEST
    )


def _values(episode: Episode, columns: Sequence[Column]) -> Array | None:
    """Numbers of an episode [F, C]; None if it lacks a field or has it in another width."""
    widths = {column.field: column.index + 1 for column in columns}
    frames = max(map(len, episode.lowdim.values()), default=0)
    fields = [np.zeros((frames, 0))]
    for name, width in widths.items():
        values = episode.lowdim.get(name)
        if values is None or not _is_numeric(values) or values.shape[1] != width:
            return None
        fields.append(values)
    return np.hstack(fields)


def _declared_poses(episodes: Sequence[Episode], samples: Samples) -> Iterator[PoseColumns]:
    """Poses of the format, with the measured ones."""
    actions = _first_columns(samples.action_columns)
    states = _first_columns(samples.state_columns)
    groups: dict[PoseGroup, None] = {}
    for episode in episodes:
        groups |= dict.fromkeys(episode.pose_groups)
    for group in groups:
        keys = {group.position_key, group.rotation_key}
        xyz, rot6d = reference_keys(group)
        if keys <= actions.keys() and {xyz, rot6d} <= states.keys():
            position = slice(states[xyz], states[xyz] + 3)
            rotation = slice(states[rot6d], states[rot6d] + 6)
            pose = Pose(position, rotation, ("rot_6d",))
            yield PoseColumns(actions[group.position_key], actions[group.rotation_key], pose)


def _first_columns(columns: Sequence[Column]) -> dict[str, int]:
    """Number of the first column of each field."""
    return {column.field: number for number, column in enumerate(columns) if column.index == 0}


def _convention(group: Group, samples: Samples) -> Convention:
    first = samples.action_columns[group.columns.start]
    last = samples.action_columns[group.columns.stop - 1]
    answer = Convention(first.field, first.index, last.index, group.kind)
    values = samples.action(group.columns)
    if len(values):
        low, high = np.percentile(values, [1, 99])
        answer = replace(answer, range=(_rounded(low), _rounded(high)))
    if not group.fits:
        return answer
    best = group.fits[0]
    answer = replace(answer, residual=_rounded(best.residual))
    if not group.is_determined or group.states is None:
        return answer

    lag_limit = ""
    if best.residual > _EXACT and best.lag == samples.lags[-1]:
        lag_limit = "or more"
    elif best.residual > _EXACT and best.lag == samples.lags[0]:
        lag_limit = "or less"
    answer = replace(
        answer,
        **_attributes(group),
        states=_states_text(group.states, samples.state_columns),
        scale=tuple(map(_rounded, best.scale)),
        offset=tuple(map(_rounded, best.offset)),
        lag_limit=lag_limit,
        clipped=_rounded(_clipped(values, samples.rows)),
    )
    for other in group.fits:
        if other not in group.tied:
            # The best answer that the data reject, by what it says otherwise.
            attributes = _attributes(replace(group, tied=[other]))
            without = {"scale": (), "offset": (), "range": None, "clipped": 0.0}
            rejected = replace(answer, **attributes, **without)
            second = file.meaning(rejected).replace(f" of {answer.states}", "")
            return replace(answer, second=second, second_residual=_rounded(other.residual))
    return answer


def _clipped(values: Array, rows: Array) -> float:
    """Largest share of the rows [N] in which a dimension of the values [N, C] stays at its least or
    greatest value; a curve only touches it. One that has but two values is a command.
    """
    low = values == values.min(axis=0)
    high = values == values.max(axis=0)
    share = 0.0
    for column in np.flatnonzero(~(low | high).all(axis=0)):
        stays = np.zeros(len(values), bool)
        for is_end in (low[:, column], high[:, column]):
            starts = is_end[:-2] & is_end[1:-1] & is_end[2:] & (rows[2:] - rows[:-2] == 2)
            for shift in range(3):
                stays[shift : shift + len(starts)] |= starts
        share = max(share, float(stays.mean()))
    return share


def _attributes(group: Group) -> dict[str, Any]:
    """Values of the attributes of a convention among the ties of a group."""
    return {name: tuple(group.values(name)) for name in _ATTRIBUTES}


def _rounded(value: float) -> float:
    """The number without its last digits, which differ between machines."""
    return float(f"{value:.5g}")


def _states_text(states: slice, columns: Sequence[Column]) -> str:
    """Field of the states, with the dimensions if it has more."""
    first = columns[states.start]
    last = columns[states.stop - 1]
    width = sum(column.field == first.field for column in columns)
    if first.index == 0 and last.index == width - 1:
        return first.field
    return f"{first.field}[{first.index}:{last.index + 1}]"


def section(measured: Measured) -> Section:
    """Table of the conventions, and a chart with the best fit of each group.

    The chart has recorded and predicted values of the first dimensions in consecutive rows.
    """
    conventions = measured.conventions
    if said := file.undetermined(conventions):
        return Section("Conventions", [Text(said)])
    parts: list[Part] = [
        Text(file.sentence(conventions)),
        Text(f"by {conventions.sample_text}", "quiet"),
        Table(file.HEADER, file.conventions_rows(conventions)),
    ]
    for row in file.merged(conventions):
        if not row.is_determined:
            continue
        pairs: list[tuple[Array, Array]] = []
        for convention, group in zip(conventions.groups, measured.groups, strict=True):
            if convention.field == row.field and row.first <= convention.first <= row.last:
                drawn = group.fits[0].drawn
                assert drawn is not None, "the best fit is drawn"
                pairs.append(drawn)
        recorded = np.hstack([values for values, _ in pairs])[:_DRAWN_ROWS, :_DRAWN]
        predicted = np.hstack([values for _, values in pairs])[:_DRAWN_ROWS, :_DRAWN]
        rows, width = recorded.shape
        names = [str(row.first + index) for index in range(width)]
        axis = Axis(0, max(rows - 1, 1), unit="rows", whole=True)
        field = FieldValues(row.name, recorded, names)
        charts = prediction_charts(axis, np.arange(rows), [(field, predicted)], has_dots=False)
        parts.append(Titled(f"{row.name}: {file.meaning(row)}", charts))
    return Section("Conventions", parts)
