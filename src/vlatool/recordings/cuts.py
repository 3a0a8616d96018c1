"""Finds the episodes in recordings whose rows are several: by a column that names them, or flags.

Every format that reads tables asks here. Shapes: N rows of the recording.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlatool.episode import Array
from vlatool.events import counted

# Columns that are constant in an episode and name it.
_NAME = re.compile(
    r"(ep|episodes?|traj|trajectory|trajectories|demo|demonstration|rollout)"
    r"([ _.-]?(id|ids|idx|index|indices|num|number|no|nr|name|key))?"
    r"|trials?|attempts?|sessions?"
    r"|(trial|run|sequence|seq|recording|take)[ _.-]?(id|idx|index|number|name)",
    re.I,
)
_STARTS = re.compile(r"(is|episode)[ _]?(first|starts?)", re.I)
_ENDS = re.compile(
    r"(is[ _]?)?(terminals?|terminated|terminations?|dones?|timeouts?|truncated|truncations?)"
    r"|(is|episode)[ _]?last",
    re.I,
)
_STOPS = re.compile(r"(episode|ep|traj|trajectory)[ _]?ends?", re.I)


@dataclass(frozen=True)
class Cuts:
    """The episodes in the rows of a recording.

    Attributes:
        stops: The row after the last of each episode; the last one is N.
        by: Columns that say so.
        names: Name of each episode; empty if nothing names them.
    """

    stops: tuple[int, ...]
    by: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First row and the one after the last of each episode."""
        return [*zip((0, *self.stops), self.stops, strict=False)]

    @property
    def text(self) -> str:
        """`3 episodes by the column episode`."""
        columns = "the column" if len(self.by) == 1 else "the columns"
        return f"{counted(len(self.stops), 'episode')} by {columns} {', '.join(self.by)}"


class CutColumns(NamedTuple):
    """Columns of a table that may divide its rows."""

    columns: Mapping[str, Array]  # [N] or [N, 1]
    rows: int  # N


def may_cut(name: str) -> bool:
    """True if a column of this name may divide a recording into episodes."""
    last = re.split(r"[/.@]", name)[-1]
    return any(pattern.fullmatch(last) for pattern in (_NAME, _STARTS, _ENDS, _STOPS))


def is_name(name: str) -> bool:
    """True if a column of this name holds the name of the episode."""
    return _NAME.fullmatch(re.split(r"[/.@]", name)[-1]) is not None


def find_cuts(columns: Mapping[str, Array], rows: int) -> Cuts | None:
    """Returns the episodes that some columns show; None if all rows are one episode.

    A column with the names of episodes comes before flags such as `terminals`. `columns`: numbers
    or texts [N] or [N, 1], and the list `episode_ends` of any length; `rows`: N.

    Raises:
        ValueError: A name comes back after another one, or a row has none.
    """
    flat: dict[str, Array] = {}
    last: dict[str, str] = {}
    for name, values in columns.items():
        if values.size:
            flat[name] = values.reshape(-1)
            last[name] = re.split(r"[/.@]", name)[-1]
    for name, values in flat.items():
        if _NAME.fullmatch(last[name]) and len(values) == rows and values.dtype.kind in "iufU":
            cuts = _by_name(name, values)
            if cuts is not None:
                return cuts
    is_start = np.zeros(rows, bool)
    by: list[str] = []
    for name, values in flat.items():
        if values.dtype.kind not in "iufb":
            continue
        if _STOPS.fullmatch(last[name]) and len(values) < rows:
            is_list = (np.diff(values) > 0).all() and values[0] > 0 and values[-1] == rows
            if is_list and len(values) > 1:
                names = tuple(f"{number:06d}" for number in range(len(values)))
                return Cuts(tuple(values.astype(int).tolist()), (name,), names)
        if len(values) != rows or not np.isin(values, (0, 1)).all() or len(set(values)) < 2:
            continue
        flags = values.astype(bool)
        if _STARTS.fullmatch(last[name]):
            starts = flags
        elif _ENDS.fullmatch(last[name]):
            # A flag that stays set until the end, such as a success, ends one episode.
            starts = np.append(False, flags[:-1] & ~flags[1:])
        else:
            continue
        starts[0] = False
        if starts.any():
            is_start |= starts
            by.append(name)
    if not by:
        return None
    return Cuts((*np.flatnonzero(is_start).tolist(), rows), tuple(by))


def _by_name(name: str, values: Array) -> Cuts | None:
    """Episodes by the values of a column; None if it has one value, or counts the rows."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError(f"{name} has no value in row {int(np.isnan(values).argmax())}")
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    if not len(starts) or len(starts) >= len(values) - 1:
        return None
    names: dict[str, None] = {}
    for row in (0, *starts):
        value = values[row].item()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if str(value) in names:
            raise ValueError(f"{name} is {value!r} again after other values, in row {row}")
        names[str(value)] = None
    return Cuts((*starts.tolist(), len(values)), (name,), tuple(names))
