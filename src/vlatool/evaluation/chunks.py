"""Commands that are executed of overlapping action chunks: join, temporal ensemble, grippers.

Legend of shapes: T steps of a chunk, C dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.config import GripperConfig
from vlatool.models.policy import HasRanges, Policy
from vlatool.plugins import did_you_mean
from vlatool.transforms.relative import actual_field

# Commands by field [T, C].
Commands = Mapping[str, Array]


@dataclass(frozen=True)
class Gripper:
    """Gripper whose command has two values; it changes at a threshold each way.

    Source: reference/policy 4.1.
    """

    field: str  # action field
    dimension: int
    closed: float  # command that closes the gripper
    opened: float  # command that opens it
    # An open gripper closes below this share of the way from `closed` to `opened`.
    close_below: float
    open_above: float  # A closed one opens above this share

    def is_open(self, value: float) -> bool:
        """True if a value is nearer to the open state than to the closed one."""
        return self._share(value) > (self.close_below + self.open_above) / 2

    def commands(self, values: Array, *, is_open: bool) -> Array:
        """Commands [T] for the values [T] of a policy."""
        result = np.empty(len(values))
        for step, value in enumerate(values):
            share = self._share(value)
            is_open = share >= self.close_below if is_open else share > self.open_above
            result[step] = self.opened if is_open else self.closed
        return result

    def _share(self, value: float) -> float:
        return (value - self.closed) / (self.opened - self.closed)


def grippers_of(configs: Sequence[GripperConfig], policy: Policy) -> tuple[Gripper, ...]:
    """Grippers of a policy; missing commands are the range of its training data."""
    return tuple(_gripper(config, policy) for config in configs)


def _gripper(config: GripperConfig, policy: Policy) -> Gripper:
    name, dimension = config.field, config.dimension
    if dimension >= policy.actions.get(name, 0):
        known = ", ".join(f"{field} ({width} wide)" for field, width in policy.actions.items())
        raise DataError(
            f"grippers: the policy has no dimension {dimension} of an action field {name!r}",
            hint=did_you_mean(name, list(policy.actions)) or f"it has {known}",
            code="data.unknown_field",
            details={"field": name, "dimension": dimension},
        )
    closed, opened = config.closed, config.opened
    if closed is None or opened is None:
        if not isinstance(policy, HasRanges):
            raise DataError(
                f"grippers: the range of {name!r} in the training data is unknown",
                hint="give the commands of the gripper with `closed` and `opened`",
                code="data.unknown_range",
                details={"field": name},
            )
        low, high = policy.action_range(name)
        closed = float(low[dimension]) if closed is None else closed
        opened = float(high[dimension]) if opened is None else opened
    if closed == opened:
        raise DataError(
            f"grippers: {name!r} is {closed:g} both open and closed",
            hint="give different commands with `closed` and `opened`",
            code="data.constant_gripper",
            details={"field": name},
        )
    return Gripper(name, dimension, closed, opened, config.close_below, config.open_above)


class ChunkJoiner:
    """Commands of one episode, from the chunks that its policy plans.

    `ensemble_decay`: decay of the weights; None: no ensemble.

    A chunk takes effect some steps after its observation. With an ensemble the command of a step is
    the mean of those of all chunks that reach it, weighted exp(-decay * i), i = 0 for the oldest
    (Zhao et al. 2023, algorithm 2). Grippers come last.
    """

    def __init__(
        self, grippers: Sequence[Gripper] = (), ensemble_decay: float | None = None
    ) -> None:
        self._grippers = grippers
        self._decay = ensemble_decay
        self._chunks: list[tuple[int, Commands]] = []
        self._start = 0
        # State of each gripper before the first command; None: unknown.
        self._states: list[bool | None] = [None] * len(grippers)
        # Commands [T, C] from the newest observation on, before `grippers`.
        self.planned: Commands = {}
        self.commands: Commands = {}  # commands to execute [T, C]; empty before the first chunk

    def start(self, measured: Commands) -> None:
        """Sets the states of the grippers that are measured; `measured` has fields [C]."""
        for number, gripper in enumerate(self._grippers):
            values = measured.get(actual_field(gripper.field) or gripper.field, ())
            if gripper.dimension < len(values):
                self._states[number] = gripper.is_open(values[gripper.dimension])

    def join(self, chunk: Commands, executed: int, delay: int) -> None:
        """Replaces the commands by those of a chunk, from its observation on; `chunk`: commands of
        the policy [T, C].
        """
        self._start += executed
        blended = chunk if self._decay is None else self._ensemble(chunk, self._decay)
        carried = slice(executed, executed + delay)
        before, self.planned = self.commands, _joined(self.planned, blended, carried)
        self.commands = _joined(before, self.planned, carried)
        for number, gripper in enumerate(self._grippers):
            if executed:
                last = before[gripper.field][executed - 1, gripper.dimension]
                self._states[number] = bool(last == gripper.opened)
            self._move(gripper, delay, is_open=self._states[number])

    def _move(self, gripper: Gripper, delay: int, *, is_open: bool | None) -> None:
        """Gives a gripper its two values from step `delay` on; the steps before have them."""
        field, dimension = gripper.field, gripper.dimension
        commands = self.commands[field].copy()
        if delay:
            is_open = bool(commands[delay - 1, dimension] == gripper.opened)
        elif is_open is None:
            is_open = gripper.is_open(commands[0, dimension])
        values = commands[delay:, dimension]
        commands[delay:, dimension] = gripper.commands(values, is_open=is_open)
        self.commands = {**self.commands, field: commands}

    def _ensemble(self, chunk: Commands, decay: float) -> Commands:
        """Weighted means [T, C] of a chunk and those before that reach its steps."""
        self._chunks.append((self._start, chunk))
        steps = len(next(iter(chunk.values())))
        sums = {name: np.zeros_like(values) for name, values in chunk.items()}
        weights, rank = np.zeros((steps, 1)), np.zeros((steps, 1))
        reaching = [row for row in self._chunks if row[0] + steps > self._start]
        for start, older in reaching:
            count = start + steps - self._start
            weight = np.exp(-decay * rank[:count])
            for name, values in older.items():
                sums[name][:count] += weight * values[-count:]
            weights[:count] += weight
            rank[:count] += 1
        self._chunks = reaching
        return {name: values / weights for name, values in sums.items()}


def _joined(before: Commands, chunk: Commands, carried: slice) -> Commands:
    if carried.start == carried.stop:
        return chunk
    return {
        name: np.concatenate([before[name][carried], values[carried.stop - carried.start :]])
        for name, values in chunk.items()
    }
