"""One clock for several topics: a row takes the last value before its time.

Legend of shapes: M messages of a topic, F rows. Times are in nanoseconds.
"""

from array import array
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vlatool.episode import Array

_TOLERANCE = 0.01  # of an interval, by which a value may be later than its row: stamps are rounded
_GAP = 4.0  # times the median interval of a topic


class Track:
    """Values of a topic; `value(message, position)` is None for messages that are left out."""

    def __init__(self, topic: str, value: Callable[[Any, tuple[int, ...]], Any]) -> None:
        self.topic = topic
        self._value = value
        self._times = array("q")
        self.values: list[Any] = []
        self.skipped = 0

    def take(self, message: Any, time: int, position: tuple[int, ...]) -> None:
        value = self._value(message, position)
        if value is None:
            self.skipped += 1
        else:
            self._times.append(time)
            self.values.append(value)

    @property
    def times(self) -> Array:
        return np.array(self._times, np.int64)

    def sort(self) -> int:
        """Sorts by time; returns the number of messages that were earlier than one before them."""
        times = self.times
        late = int((times < np.maximum.accumulate(times)).sum())
        if late:
            order = np.argsort(times, kind="stable")
            self._times = array("q", times[order].tolist())
            self.values = [self.values[index] for index in order]
        return late


class Rows(NamedTuple):
    """Rows of an episode."""

    times: Array  # int64 [F]
    taken: Mapping[str, Array]  # track to the index of its value, int64 [F]
    ages: Mapping[str, Array]  # track to the age of its value, int64 [F]
    dropped: tuple[int, int]  # rows left out at the start and at the end


def make_rows(tracks: Mapping[str, Track], fps: float | None, max_age: float | None) -> Rows:
    """Rows from the time at which all tracks have a value to that at which one of them ends.

    A track ends one of its intervals, or `max_age` seconds, after its last value; a track of one
    value does not end. Without `fps`, rows are at the values of the longest track.
    """
    times = {name: track.times for name, track in tracks.items()}
    first, start = (pick(int(t[0]) for t in times.values()) for pick in (min, max))
    last = max(int(t[-1]) for t in times.values())
    ages = {n: float(np.median(np.diff(t))) for n, t in times.items() if len(t) > 1}
    if max_age is not None:
        ages = dict.fromkeys(times, max_age * 1e9)
    stop = min((times[name][-1] + age for name, age in ages.items()), default=np.inf)
    clock, slack = max(times.values(), key=len), 0.0
    if fps is not None:
        slack = _TOLERANCE * 1e9 / fps
        count = int((last - start) * fps / 1e9 + _TOLERANCE) + 1
        clock = start + np.round(np.arange(count) * (1e9 / fps)).astype(np.int64)
    kept = clock[(clock >= start) & (clock <= start + max(0.0, stop - start - slack))]
    taken = {n: np.searchsorted(t, kept + int(slack), side="right") - 1 for n, t in times.items()}
    before = int((start - first) * fps / 1e9) if fps else int((clock < start).sum())
    after = int((clock > kept[-1]).sum()) if len(kept) else 0
    return Rows(kept, taken, {n: kept - times[n][taken[n]] for n in times}, (before, after))


def timing(track: Track, taken: Array) -> tuple[str, str]:
    """Counts of a track, of which the values `taken` are used, and its gaps; empty: none."""
    seconds = np.diff(track.times) / 1e9
    text = f"{len(track.values)} messages, {len(track.values) - len(np.unique(taken))} unused"
    if not len(seconds):
        return text, ""
    median = float(np.median(seconds))
    is_gap = seconds > _GAP * median
    jitter = float(np.std(seconds[~is_gap])) * 1000
    gaps = f"{is_gap.sum()} gaps, the longest {seconds.max():.3g} s" if is_gap.any() else ""
    return f"{text}, every {median * 1000:.4g} ms, jitter {jitter:.1f} ms", gaps
