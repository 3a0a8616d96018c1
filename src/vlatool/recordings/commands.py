"""Finds the commands among the fields of recordings that do not call them actions.

Two rules, both for every format: a name such as `target_q` beside `q`, and numbers that are the
later values of a measured field. Shapes: F frames, C numbers of a row.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array, Episode
from vlatool.events import counted
from vlatool.recordings.inventory import is_action
from vlatool.report.text import few_text

_COMMANDS = (
    "target",
    "goal",
    "desired",
    "des",
    "cmd",
    "command",
    "commanded",
    "setpoint",
    "reference",
    "ref",
    "leader",
    "master",
    "control",
    "ctrl",
)
# Words of measured values, which the name of their command may lack: `joint_pos`, `joint_cmd`.
_MEASURED = ("measured", "actual", "current", "present", "feedback", "follower", "slave", "puppet")
_QUANTITIES = ("pos", "position", "positions", "state", "states", "obs", "observation")
_FEWEST_LETTERS = 3  # of a word that is joined to another without a separator
# Fields that are made of others later, so the other one is no command.
_DERIVED = re.compile(r"prev|last|delay|filter|smooth|old|lagged", re.I)
_LARGEST_LAG = 5  # frames
_SHARE = 0.99  # of the rows
_FEWEST_ROWS = 4  # that move, of an episode
_ROUNDING = 1e-6  # of float32, relative to the largest value
_WIDEST = 64
_MOST_LISTED = 8


def named_commands(widths: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the fields whose names say that they command another field of the same width.

    A name says so if it is the other name and a word such as `target`, `cmd` or `leader`: as a word
    of its own, before or behind. `widths`: number of dimensions of each field.
    """
    commands: dict[str, None] = {}
    for name, width in widths.items():
        for other in widths:
            is_pair = other != name and width and widths[other] == width
            if is_pair and _is_command_of(name, other):
                commands[name] = None
    return tuple(commands)


def _is_command_of(name: str, measured: str) -> bool:
    if says_command(measured):
        return False
    rest = _words(measured)
    for stem in _stems(name):
        if stem == rest or _without(stem) == _without(rest):
            return True
    # `targetq` beside `q`: joined without a separator.
    plain = "".join(_words(name))
    other = "".join(rest)
    for word in _COMMANDS:
        if len(word) >= _FEWEST_LETTERS and plain in (word + other, other + word):
            return True
    return False


def says_command(name: str) -> bool:
    """True if a word of a name is one of a command, such as `target_q` or `leader.joints`."""
    return is_action(name) or not set(_COMMANDS).isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    """Words of a name in lower case; `jointCmd` has two."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z]+|\d+", spaced.lower())


def _stems(name: str) -> Iterator[list[str]]:
    """What remains of a name without one of its words for commands."""
    words = _words(name)
    for number, word in enumerate(words):
        if word in _COMMANDS:
            yield words[:number] + words[number + 1 :]


def _without(words: Sequence[str]) -> list[str]:
    """Words that say which part of the robot it is, not that it was measured."""
    return [word for word in words if word not in (*_MEASURED, *_QUANTITIES)]


@dataclass(frozen=True)
class LaterValues:
    """A field with the values that a measured one has `lag` frames later."""

    field: str
    state: str
    lag: int
    is_only: bool  # no other field of this width is left over

    @property
    def is_certain(self) -> bool:
        """True if it may be taken as the action without asking."""
        return self.is_only or says_command(self.field)

    @property
    def text(self) -> str:
        """What the numbers say: `target_q is q one frame later`."""
        frames = "one frame" if self.lag == 1 else counted(self.lag, "frame")
        return f"{self.field} is {self.state} {frames} later"


def later_values(episodes: Sequence[Episode]) -> list[LaterValues]:
    """Returns the fields that equal the later values of another field, in every episode.

    Only numbers that move count: no constants, counters and times. At least 99 % of the rows are
    equal to the rounding of float32, with one lag of 1 to 5 frames in all episodes. A field whose
    name says that it is derived, such as `prev_q`, has no command.
    """
    if not episodes:
        return []
    widths: dict[str, int] = {}
    for name, values in episodes[0].lowdim.items():
        if all(_moves(episode.lowdim.get(name)) for episode in episodes):
            widths[name] = values.shape[1]
    stored = [values.shape[1:] for values in episodes[0].lowdim.values()]
    found: dict[str, LaterValues] = {}
    for field, width in widths.items():
        is_only = stored.count((width,)) == 2
        for state in widths:
            is_pair = state != field and widths[state] == width
            if not is_pair or field in found or _DERIVED.search(f"{state} {field}"):
                continue
            lag = _common_lag(episodes, field, state)
            if lag is not None:
                found[field] = LaterValues(field, state, lag, is_only)
    return [*found.values()]


def _common_lag(episodes: Sequence[Episode], field: str, state: str) -> int | None:
    """The number of frames by which a field is ahead of a state in all episodes."""
    lags = set(range(1, _LARGEST_LAG + 1))
    for episode in episodes:
        for lag in [*lags]:
            if not _is_later(episode.lowdim[field], episode.lowdim[state], lag):
                lags.discard(lag)
    return min(lags, default=None)


def _moves(values: Array | None) -> bool:
    """True for numbers [F, C] that change, and not by the same step in each row."""
    if values is None or values.ndim != 2 or values.dtype.kind not in "fiu":
        return False
    if not 0 < values.shape[1] <= _WIDEST or len(values) < _FEWEST_ROWS + _LARGEST_LAG:
        return False
    steps = np.diff(values.astype(np.float64), axis=0)
    is_counter = np.abs(steps - steps[0]).max() <= _ROUNDING * max(np.abs(values).max(), 1.0)
    return bool(np.isfinite(steps).all()) and not is_counter


def _is_later(field: Array, state: Array, lag: int) -> bool:
    """True if `field` [F, C] is `state` [F, C] some frames later, also in the rows that move."""
    later = state[lag:].astype(np.float64)
    rounding = _ROUNDING * max(float(np.abs(later).max()), 1e-12)
    distances = np.abs(field[:-lag] - later).max(axis=1)
    steps = np.abs(state[:-lag] - later).max(axis=1)
    moving = distances[steps > rounding]
    if len(moving) < _FEWEST_ROWS:
        return False
    return bool(min((distances <= rounding).mean(), (moving <= rounding).mean()) >= _SHARE)


def proposals_text(found: Sequence[LaterValues], widths: Mapping[str, int]) -> str:
    """Says which fields may be the action: by their numbers, else all with their widths."""
    texts: list[str] = []
    for later in found:
        texts.append(f"{later.text} (--action-fields {later.field})")
    if texts:
        return "; ".join(texts)
    for name, width in widths.items():
        if width:
            texts.append(f"{name} ({width})")
    return few_text(texts, _MOST_LISTED) or "none"
