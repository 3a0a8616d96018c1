"""Round ticks of an axis whose labels fit the narrowest page.

Sizes are CSS pixels; `page.html` repeats those of a chart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Plot of a chart: its width on a page 420 px wide, its smallest height.
PLOT_WIDTH = 170
PLOT_HEIGHT = 96
# Widest character and height of a label.
CHAR_WIDTH = 7
LABEL_HEIGHT = 14
# Longest labels at the left of a plot and under it, in characters.
MAX_LEFT = 8
MAX_BELOW = 6

_MOST_BELOW = 6
_GAP = 5
# Share of a step that rounding errors stay below.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Ticks:
    """Ticks of an axis."""

    values: tuple[float, ...]  # ascending multiples of 1, 2 or 5 times a power of ten
    texts: tuple[str, ...]  # label of each tick
    base: str = ""  # number to add to the labels, as text; empty for 0


def ticks_below(low: float, high: float, *, whole: bool = False, signed: bool = False) -> Ticks:
    """Ticks from `low` to `high` with labels under a plot."""
    ticks = Ticks((), ())
    for step in _steps((high - low) / _MOST_BELOW, whole=whole):
        first, last = _ceil(low, step), _floor(high, step)
        if last - first >= _MOST_BELOW:
            continue
        ticks = _ticks(range(first, last + 1), step, MAX_BELOW, signed=signed)
        width = max(map(len, ticks.texts), default=0) * CHAR_WIDTH + _GAP
        if len(ticks.texts) < 2 or step.size / (high - low) * PLOT_WIDTH >= width:
            break
    return ticks


def ticks_beside(low: float, high: float, *, whole: bool = False) -> Ticks:
    """Ticks that enclose `low` and `high`, which is above, with labels at the left of a plot."""
    most = PLOT_HEIGHT // (LABEL_HEIGHT + _GAP)
    step = next(
        step
        for step in _steps((high - low) / most, whole=whole)
        if -_floor(-high, step) - _floor(low, step) <= most
    )
    return _ticks(range(_floor(low, step), -_floor(-high, step) + 1), step, MAX_LEFT)


class _Step(NamedTuple):
    """Distance of ticks: `factor` times ten to the power of `exponent`."""

    factor: int
    exponent: int

    @property
    def size(self) -> float:
        return self.times(1)

    def times(self, index: int) -> float:
        """Multiple of the step, rounded once."""
        number = index * self.factor
        power = 10 ** abs(self.exponent)
        return float(number * power) if self.exponent >= 0 else number / power


def _steps(least: float, *, whole: bool) -> Iterator[_Step]:
    """Yields steps in ascending order, from the last below `least` on."""
    exponent = math.floor(math.log10(least))
    exponent = max(exponent, 0) if whole else exponent
    while True:
        yield from (_Step(factor, exponent) for factor in (1, 2, 5))
        exponent += 1


def _floor(value: float, step: _Step) -> int:
    return math.floor(value / step.size + _ROUNDING)


def _ceil(value: float, step: _Step) -> int:
    return -_floor(-value, step)


def _ticks(indices: Sequence[int], step: _Step, longest: int, *, signed: bool = False) -> Ticks:
    """Multiples of a step with labels of at most `longest` characters."""
    values = tuple(map(step.times, indices))
    texts = _texts(values, step, longest, signed=signed)
    if texts:
        return Ticks(values, texts)
    base = indices[0] - indices[0] % (10 // step.factor) if values else 0
    differences = [step.times(index - base) for index in indices]
    texts = _texts(differences, step, longest, signed=signed)
    return Ticks(values if texts else (), texts, f"{step.times(base):.12g}" if base else "")


def _texts(values: Sequence[float], step: _Step, longest: int, *, signed: bool) -> tuple[str, ...]:
    """Different labels of at most `longest` characters; empty if there are none."""
    for form in (f".{max(0, -step.exponent)}f", ".3g"):
        texts = tuple(f"{value:{'+' if signed and value > 0 else ''}{form}}" for value in values)
        if max(map(len, texts), default=0) <= longest and len({*texts}) == len(texts):
            return texts
    return ()
