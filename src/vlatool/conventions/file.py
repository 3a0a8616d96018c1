"""Conventions of the action dimensions of a data set: their file, and their description in words.

If an attribute has several values, all of them fit the data equally well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlatool.conventions.fit import FEW_EPISODES, FEWEST_ROWS
from vlatool.events import counted
from vlatool.report.facts import Table
from vlatool.report.text import number_text
from vlatool.storage.manifest import ManifestType

_ONE = 0.02  # share that a scale may differ from one number, or from 1
_MOST_NUMBERS = 3
_ROUGH = 0.35  # residual of an answer that is one only roughly
_CLIPPED = 0.05  # share of rows


@dataclass(frozen=True)
class Convention:
    """Meaning of consecutive dimensions of an action field.

    Attributes:
        kind: `position`, `rotation`, `joints`, `gripper`, `values`, `constant`, or `missing`
            without finite numbers.
        states: Dimensions of the states that they follow, such as `state[0:3]`; empty if unknown.
        relation: `absolute`, or `delta` for the difference from the previous frame.
        lag: Frames from an action to the state that it describes; 1 is the next state.
        frame: Frame of reference, `base` or `tool`, in which a pose changes.
        rotation: Representation of the rotation in the actions.
        state_rotation: Representation of the rotation in the states.
        scale: Action units per unit of the states, by dimension; negative if the sign is reversed.
        offset: Offset of absolute values, in action units.
        range: Lower and upper limit of 98 % of the rows.
        residual: Root of the share of the variance that is not explained; None without any fit.
        second: The second best answer.
    """

    field: str
    first: int
    last: int
    kind: str
    states: str = ""
    relation: tuple[str, ...] = ()
    lag: tuple[int, ...] = ()
    frame: tuple[str, ...] = ()
    rotation: tuple[str, ...] = ()
    state_rotation: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    range: tuple[float, float] | None = None
    residual: float | None = None
    lag_limit: str = ""  # `or more`, `or less`: the best lag is the last one that was tried
    clipped: float = 0.0  # largest share of rows in which a dimension stays at an end of its range
    second: str = ""
    second_residual: float | None = None

    @property
    def name(self) -> str:
        """Field and dimensions, such as `action 0-2`."""
        if self.first == self.last:
            return f"{self.field} {self.first}"
        return f"{self.field} {self.first}-{self.last}"

    @property
    def is_determined(self) -> bool:
        return len(self.relation) == 1


@dataclass(frozen=True)
class Conventions:
    """Conventions of all action dimensions, and the number of rows behind them."""

    groups: tuple[Convention, ...]
    rows: int
    episodes: int
    episodes_of: int  # number of episodes that they were chosen from
    # Messages on declarations that the data clearly contradict, and that --trust-declared took.
    trusted: tuple[str, ...] = ()

    @property
    def sample_text(self) -> str:
        """Such as `8,000 rows of 40 of 100 episodes`."""
        episodes = counted(self.episodes, "episode")
        if self.episodes < self.episodes_of:
            episodes = f"{self.episodes} of {counted(self.episodes_of, 'episode')}"
        return f"{counted(self.rows, 'row')} of {episodes}"


CONVENTIONS = ManifestType(
    "conventions.json",
    "vlatool-conventions",
    1,
    Conventions,
    "run `vlatool preprocess` again, or delete the file: it is only a description",
    optional=("trusted",),
)


def conventions_of(folder: Path) -> Conventions | None:
    """Reads the conventions in a folder of data or of a run; None if they were not measured."""
    return CONVENTIONS.read(folder)


def sentence(conventions: Conventions) -> str:
    """Describes the actions, such as `the gripper is a command from 0 to 1`."""
    subjects: dict[str, list[str]] = {}  # by what is said of them
    unknown: list[str] = []
    for group in _moving(merged(conventions)):
        if group.is_determined:
            said = _predicate(group)
            subject = "gripper" if group.kind == "gripper" else group.name
            subjects[said] = list(dict.fromkeys([*subjects.get(said, ()), subject]))
        else:
            unknown.append(group.name)
    clauses: list[str] = []
    for said, names in subjects.items():
        clauses.append(f"the {' and '.join(names)} {'is' if len(names) == 1 else 'are'} {said}")
    if unknown:
        clauses.append(f"the recordings do not show the meaning of {', '.join(unknown)}")
    return "; ".join(clauses) or "nothing moves"


def merged(conventions: Conventions) -> list[Convention]:
    """One convention for consecutive dimensions that mean the same, to show them as one row."""
    rows: list[Convention] = []
    for group in conventions.groups:
        row = _joined(rows[-1], group) if rows else None
        if row is None:
            rows.append(group)
        else:
            rows[-1] = row
    return rows


def _joined(row: Convention, group: Convention) -> Convention | None:
    """Both as one convention; None: they mean different things, or are not neighbors."""
    is_next = (row.field, row.last + 1) == (group.field, group.first)
    is_alike = (row.kind, row.relation) == (group.kind, group.relation)
    if not (is_next and is_alike) or (row.frame, row.rotation) != (group.frame, group.rotation):
        return None
    lag = tuple(value for value in row.lag if value in group.lag)
    states = _joined_states(row.states, group.states)
    if row.is_determined and (not lag or not states or row.lag_limit != group.lag_limit):
        return None
    limits = (*(row.range or ()), *(group.range or ()))
    worst = max(row, group, key=lambda each: each.residual or 0.0)
    return replace(
        row,
        last=group.last,
        states=states,
        lag=lag,
        scale=row.scale + group.scale,
        offset=row.offset + group.offset,
        range=(min(limits), max(limits)) if limits else None,
        residual=worst.residual,
        clipped=max(row.clipped, group.clipped),
        second=worst.second,
        second_residual=worst.second_residual,
    )


_DIMENSIONS = re.compile(r"(.*)\[(\d+):(\d+)\]")


def _joined_states(states: str, following: str) -> str:
    """Consecutive dimensions of one field, as `state[0:2]`; empty: they are not consecutive."""
    first = _DIMENSIONS.fullmatch(states)
    second = _DIMENSIONS.fullmatch(following)
    if first is None or second is None or first.group(1, 3) != second.group(1, 2):
        return ""
    return f"{first[1]}[{first[2]}:{second[3]}]"


def _moving(groups: Sequence[Convention]) -> list[Convention]:
    return [group for group in groups if group.kind not in ("constant", "missing")]


def undetermined(conventions: Conventions) -> str:
    """Says that nothing was determined, and what helps; empty if something was."""
    moving = _moving(conventions.groups)
    if not moving or any(group.is_determined for group in moving):
        return ""
    said = f"{conventions.sample_text} do not show what the actions mean"
    if conventions.rows < FEWEST_ROWS:
        return f"{said}: too few rows; record more"
    if all(group.residual is None for group in moving):
        return (
            f"{said}: no measured state to compare them with; record one, or name it in a mapping"
        )
    if relations := {name for group in moving for name in group.relation}:
        fits = " and ".join(sorted(relations))
        return f"{said}: {fits} values fit equally well; record more, and longer movements"
    if conventions.episodes < FEW_EPISODES:
        return f"{said}: so few may agree by chance; record {FEW_EPISODES} episodes or more"
    return (
        f"{said}: no measured state explains them; see whether `proprioception` names what the "
        "robot measures of itself"
    )


def _predicate(group: Convention) -> str:
    """Such as `the next joint state`."""
    if group.kind == "gripper" and group.range is not None:
        low, high = group.range
        return f"a command from {_number(low)} to {_number(high)}"
    quantity = {"joints": "joint state", "values": "state"}.get(group.kind, group.kind)
    if group.relation == ("delta",):
        return f"the change of the {quantity}"
    if group.lag == (0,):
        return f"the {quantity} of its own frame"
    if group.lag == (1,):
        return f"the next {quantity}"
    if len(group.lag) == 1:
        return f"the {quantity} {group.lag[0]} frames later"
    return f"the {quantity} of a frame nearby"


HEADER = ("dimensions", "kind", "meaning", "residual", "second best")


def conventions_rows(conventions: Conventions) -> list[tuple[str, ...]]:
    """Returns a table row with the columns of `HEADER` for each meaning."""
    rows: list[tuple[str, ...]] = []
    for group in merged(conventions):
        residual = "-" if group.residual is None else f"{group.residual:.3f}"
        second = f"{group.second} ({group.second_residual:.3f})" if group.second else "-"
        rows.append((group.name, group.kind, meaning(group), residual, second))
    return rows


def conventions_table(conventions: Conventions) -> Table:
    if said := undetermined(conventions):
        return Table((), [(said,)], "Conventions")
    title = f"Conventions, by {conventions.sample_text}: {sentence(conventions)}"
    return Table(HEADER, conventions_rows(conventions), title)


def meaning(group: Convention) -> str:
    """Says in words what a group of dimensions means."""
    if group.kind == "constant":
        return "does not move"
    if group.kind == "missing":
        return "no numbers"
    if not group.is_determined:
        if group.relation:
            return f"not determined: {_any(group.relation)}"
        return "not determined"

    about = "roughly " if (group.residual or 0.0) > _ROUGH else ""
    parts = [f"{about}{group.relation[0]} of {group.states}"]
    if group.lag:
        parts.append(f"lag {_any(group.lag)} {group.lag_limit}".rstrip())
    if group.frame:
        parts.append(f"{_any(group.frame)} frame")
    if group.rotation:
        parts.append(_any(group.rotation))
    if group.scale:
        least = min(group.scale)
        greatest = max(group.scale)
        if greatest - least > _ONE * max(abs(least), abs(greatest)):
            parts.append(f"scale {_numbers(group.scale)}")
        elif abs(least - 1) > _ONE:
            inverse = _number(1 / least)
            parts.append(f"scale {_number(group.scale[0])} (1 is {inverse} of the states)")
    if group.scale and group.kind != "gripper":
        low, high = group.range or (0.0, 0.0)
        if max(map(abs, group.offset), default=0) > _ONE * (high - low):
            parts.append(f"offset {_numbers(group.offset)}")
    if group.clipped > _CLIPPED and group.kind != "gripper":
        parts.append(f"{group.clipped:.0%} at the ends of the range: clipped?")
    if group.kind == "gripper" and group.range is not None:
        low, high = group.range
        parts.append(f"from {number_text(low)} to {number_text(high)}")
    return ", ".join(parts)


def _number(value: float) -> str:
    return number_text(float(f"{value:.3g}"))


def _numbers(values: Sequence[float]) -> str:
    if len(values) > _MOST_NUMBERS and min(values) * max(values) >= 0:
        return f"{_number(min(values))} to {_number(max(values))}"
    return " ".join(map(_number, values))


def _any(values: Sequence[Any]) -> str:
    """Joins values as in `0 or 1`; names at most three."""
    words = list(map(str, values[:3]))
    if len(values) > 3:
        words.append("others")
    return " or ".join(words)
