"""Success rates with confidence intervals, and the comparison of two over the same starts.

Source: reference/policy 4.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_Z_95 = 1.959963985


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate."""
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    center = rate + _Z_95**2 / (2 * trials)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / trials + _Z_95**2 / (4 * trials**2))
    scale = 1 + _Z_95**2 / trials
    low = (center - half) / scale
    high = (center + half) / scale
    return max(low, 0.0), min(high, 1.0)


def success_report(outcomes: Sequence[bool | None]) -> dict[str, Any]:
    """Success rate and its 95 % interval; outcomes that are None ended with an error and do not
    count.
    """
    valid = [outcome for outcome in outcomes if outcome is not None]
    low, high = wilson_interval(sum(valid), len(valid))
    return {
        "episodes": len(valid),
        "successes": sum(valid),
        "errors": len(outcomes) - len(valid),
        "success_rate": sum(valid) / max(len(valid), 1),
        "confidence_95": [round(low, 4), round(high, 4)],
    }


@dataclass(frozen=True)
class PairCounts:
    """Numbers of starts by the outcomes of two policies, a and b."""

    both: int  # starts on which both succeed
    only_a: int  # starts on which a succeeds and b does not
    only_b: int  # starts on which b succeeds and a does not
    neither: int  # starts on which both fail

    @classmethod
    def of(cls, pairs: Sequence[tuple[bool, bool]]) -> "PairCounts":
        """Counts of pairs of outcomes (a, b)."""
        cells = [(True, True), (True, False), (False, True), (False, False)]
        return cls(*map(list(pairs).count, cells))

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Success rate of b minus the success rate of a; 0 without any start."""
        return (self.only_b - self.only_a) / max(self.total, 1)

    def confidence_95(self) -> tuple[float, float]:
        """95 % confidence interval of the difference; without any start, the whole range."""
        if not self.total:
            return -1.0, 1.0
        rate_a = self._rate(self.only_a)
        rate_b = self._rate(self.only_b)
        low_a, high_a = wilson_interval(self.both + self.only_a, self.total)
        low_b, high_b = wilson_interval(self.both + self.only_b, self.total)
        correlation = self._correlation()
        below = _combined(rate_b - low_b, high_a - rate_a, correlation)
        above = _combined(high_b - rate_b, rate_a - low_a, correlation)
        return max(self.difference - below, -1.0), min(self.difference + above, 1.0)

    def p_value(self) -> float:
        """Exact two-sided McNemar test: the probability of such a difference if both are equally
        good.
        """
        trials = self.only_a + self.only_b
        fewer = min(self.only_a, self.only_b)
        tail = sum(math.comb(trials, number) for number in range(fewer + 1)) / 2**trials
        return min(2 * tail, 1.0)

    def _rate(self, other: int) -> float:
        return (self.both + other) / self.total

    def _correlation(self) -> float:
        margins = (
            (self.both + self.only_a)
            * (self.only_b + self.neither)
            * (self.both + self.only_b)
            * (self.only_a + self.neither)
        )
        if not margins:
            return 0.0
        product = self.both * self.neither - self.only_a * self.only_b
        corrected = max(product - self.total / 2, 0.0) if product > 0 else float(product)
        return corrected / math.sqrt(margins)


def _combined(first: float, second: float, correlation: float) -> float:
    """Half width of the interval of a difference, computed from the intervals of both terms."""
    return math.sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0.0))
