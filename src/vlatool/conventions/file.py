"""Conventions of the action dimensions of a data set, as measured, and the file that has them.

Several values of an attribute are those that the data do not distinguish.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.pages.text import number_text, text_table
from vlatool.storage.manifest import ManifestType
from vlatool.transforms.relative import SUFFIX

_ONE = 0.02  # share by which a scale may differ from one number, or from 1
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
        relation: `absolute`, or `delta` for the difference between a frame and the one before.
        lag: Frames from an action to the state that it is about; 1 for the next state.
        frame: `base` or `tool`, of the difference of a pose.
        rotation: Forms of the rotation in the actions.
        state_rotation: Forms of the rotation in the states.
        scale: Action units per unit of the states, by dimension; negative: the sign is reversed.
        offset: Of absolute values, in action units.
        range: Least and greatest value that 98 % of the rows are within.
        residual: Root of the share of the variance that is left; None without any fit.
        second: The best answer that is not the one above.
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
    clipped: float = 0.0  # largest share of rows in which a dimension is at the ends of its range
    second: str = ""
    second_residual: float | None = None

    @property
    def name(self) -> str:
        span = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.field} {span}"

    @property
    def is_determined(self) -> bool:
        return bool(self.relation) and len(self.relation) == 1


@dataclass(frozen=True)
class Conventions:
    """Conventions of all action dimensions, and the rows that they were measured on."""

    groups: tuple[Convention, ...]
    rows: int
    episodes: int
    episodes_of: int  # number of episodes that they were chosen from
    # Messages on declarations that the data clearly contradict, and that --trust-declared took.
    trusted: tuple[str, ...] = ()

    @property
    def sample_text(self) -> str:
        chosen = counted(self.episodes, "episode")
        if self.episodes < self.episodes_of:
            chosen = f"{self.episodes} of {counted(self.episodes_of, 'episode')}"
        return f"{counted(self.rows, 'row')} of {chosen}"


CONVENTIONS = ManifestType(
    "conventions.json",
    "vlatool-conventions",
    1,
    Conventions,
    "run `vlatool preprocess` again, or delete the file: it describes the data, nothing needs it",
    optional=("trusted",),
)


def conventions_of(folder: Path) -> Conventions | None:
    """Conventions in a folder of data or of a run; None if they were not measured."""
    return CONVENTIONS.read(folder)


HEADER = ("dimensions", "kind", "meaning", "residual", "second best")


def conventions_table(conventions: Conventions) -> str:
    title = f"Conventions, by {conventions.sample_text}: {sentence(conventions)}"
    return text_table(title, HEADER, conventions_rows(conventions))


def sentence(conventions: Conventions) -> str:
    """What the actions are, in a sentence."""
    known: list[str] = []
    unknown: list[str] = []
    for group in conventions.groups:
        if group.kind in ("constant", "missing"):
            continue
        if group.is_determined:
            known.append(_clause(group))
        else:
            unknown.append(group.name)
    if unknown:
        known.append(f"what {', '.join(unknown)} mean is not determined")
    return "; ".join(known) or "nothing moves"


def _clause(group: Convention) -> str:
    """Such as `the action is the next joint state`."""
    subject = f"the {'gripper' if group.kind == 'gripper' else group.name}"
    if group.kind == "gripper" and group.range is not None:
        low, high = (number_text(float(f"{value:.3g}")) for value in group.range)
        return f"{subject} is a command from {low} to {high}"
    quantity = {"joints": "joint state", "values": "state"}.get(group.kind, group.kind)
    lag = group.lag[0] if len(group.lag) == 1 else None
    if group.relation[0] == "delta":
        return f"{subject} is the change of the {quantity}"
    if lag == 1:
        return f"{subject} is the next {quantity}"
    if lag == 0:
        return f"{subject} is the {quantity} of its own frame"
    return f"{subject} is the {quantity}" + (
        f" {lag} frames later" if lag else " of a frame nearby"
    )


def conventions_rows(conventions: Conventions) -> list[tuple[str, ...]]:
    """Row of `HEADER` for each group."""
    return [
        (
            group.name,
            group.kind,
            meaning(group),
            "-" if group.residual is None else f"{group.residual:.3f}",
            f"{group.second} ({group.second_residual:.3f})" if group.second else "-",
        )
        for group in conventions.groups
    ]


def check_rate(conventions: Conventions, actions: Sequence[str], hint: str) -> None:
    """Raises DataError if action fields that get another rate are differences between frames."""
    known = {name.removesuffix(SUFFIX) for name in actions}
    for group in conventions.groups:
        if group.field in known and group.relation == ("delta",):
            raise DataError(
                f"{group.name}: actions that are differences between frames "
                f"({meaning(group)}) mean something else at another rate",
                hint=hint,
                code="data.mismatch",
                details={"field": group.field},
            )


def meaning(group: Convention) -> str:
    """The answer in words."""
    if group.kind == "constant":
        return "does not move"
    if group.kind == "missing":
        return "no numbers"
    if not group.is_determined:
        return "not determined" + (f": {_any(group.relation)}" if group.relation else "")
    about = "roughly " if (group.residual or 0.0) > _ROUGH else ""
    return ", ".join([f"{about}{group.relation[0]} of {group.states}", *_attributes(group)])


def _attributes(group: Convention) -> Iterator[str]:
    if group.lag:
        yield f"lag {_any(group.lag)}{group.lag_limit and f' {group.lag_limit}'}"
    if group.frame:
        yield f"{_any(group.frame)} frame"
    if group.rotation:
        yield _any(group.rotation)
    if group.scale:
        yield from _scale_texts(group)
    if group.clipped > _CLIPPED and group.kind != "gripper":
        yield f"{group.clipped:.0%} at the ends of the range: clipped?"
    if group.kind == "gripper" and group.range is not None:
        low, high = map(number_text, group.range)
        yield f"from {low} to {high}"


def _scale_texts(group: Convention) -> Iterator[str]:
    least = min(group.scale)
    greatest = max(group.scale)
    if greatest - least > _ONE * max(abs(least), abs(greatest)):
        yield f"scale {_numbers(group.scale)}"
    elif abs(least - 1) > _ONE:
        yield f"scale {_numbers(group.scale[:1])} (1 is {_numbers([1 / least])} of the states)"
    low, high = group.range or (0.0, 0.0)
    if group.kind != "gripper" and max(map(abs, group.offset), default=0) > _ONE * (high - low):
        yield f"offset {_numbers(group.offset)}"


def _numbers(values: Sequence[float]) -> str:
    shown = [number_text(float(f"{value:.3g}")) for value in values]
    if len(shown) > _MOST_NUMBERS:
        order = sorted(zip(values, shown, strict=True))
        return f"{order[0][1]} to {order[-1][1]}"
    return " ".join(shown)


def _any(values: Sequence[Any]) -> str:
    return " or ".join(map(str, values[:3])) + (" or others" if len(values) > 3 else "")
