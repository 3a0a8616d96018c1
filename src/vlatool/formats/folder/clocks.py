"""Times of the parts of an episode: their rate, and which rows belong to which frame.

Shapes: F frames, N rows of a part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.formats.propose import unit_of_times

_GAP = 1.8  # periods
_LARGEST_GAP = 3.0  # periods of the slower part
_EPOCH = 1e8  # seconds; greater times are since 1970
_COMMON = 0.5  # share of the shorter span that two clocks have in common if they are one clock


@dataclass(frozen=True)
class TimedPart:
    """A table, a video or a series of images.

    Attributes:
        rows: Number of rows N.
        seconds: Time of each row in seconds [N]; None: it has none that ascend.
        is_camera: True for images.
        is_measured: True if the times are stored as numbers; those of a video start at 0.
    """

    rows: int
    seconds: Array | None = None
    is_camera: bool = False
    is_measured: bool = False


def seconds_of(times: Array) -> Array | None:
    """Ascending times in seconds [N]; None if they do not ascend, or their unit is not usual."""
    unit = unit_of_times(times)
    return None if unit is None else times.astype(np.float64) / unit


def frame_rows(parts: Mapping[str, TimedPart], most_cut: int) -> dict[str, Array]:
    """Rows [F] of each part that belong to the frames, which the slowest camera has.

    Empty if rows and frames are paired by number: the numbers of rows differ by `most_cut` at most,
    and no two parts have measured times that say otherwise.

    Raises:
        ValueError: The numbers of rows differ, and times do not pair them.
    """
    counts = [part.rows for part in parts.values()]
    is_equal = max(counts) - min(counts) <= most_cut
    if max(counts) > min(counts) and all(part.seconds is not None for part in parts.values()):
        is_equal = is_equal and not any(_has_gap(part) for part in parts.values())
    measured = {name: part for name, part in parts.items() if part.is_measured}
    if is_equal and (len(measured) < 2 or _agree(measured)):
        return {}
    reference = min(parts, key=lambda name: (not parts[name].is_camera, parts[name].rows))
    frames = parts[reference].seconds
    paired: dict[str, Array] = {}
    first = 0
    stop = parts[reference].rows
    for name, part in parts.items():
        if name == reference:
            paired[name] = np.arange(part.rows)
            continue
        if part.seconds is None and part.rows == parts[reference].rows:
            paired[name] = np.arange(part.rows)
            continue
        if frames is None or part.seconds is None:
            raise ValueError(f"{name} has {part.rows} rows, {reference} {parts[reference].rows}")
        origin = _origin(part, parts)
        nearest, distance = _nearest(part, parts[reference], origin)
        reach = max(_period(part.seconds), _period(frames))
        near = np.flatnonzero(distance <= reach)
        if not len(near):
            raise ValueError(f"the times of {name} and {reference} have nothing in common")
        gap = int(distance[near[0] : near[-1] + 1].argmax()) + int(near[0])
        if distance[gap] > _LARGEST_GAP * reach:
            raise ValueError(
                f"{name} has no row within {distance[gap]:.2f} s of frame {gap} of {reference}"
            )
        spans = [float(times[-1] - times[0]) for times in (part.seconds, frames)]
        is_guess = not (part.is_measured and parts[reference].is_measured)
        if is_guess and abs(spans[0] - spans[1]) > (most_cut + 1) * _period(frames):
            raise ValueError(
                f"{name} has {part.rows} rows in {spans[0]:.2f} s, "
                f"{reference} {len(frames)} in {spans[1]:.2f} s"
            )
        first = max(first, int(near[0]))
        stop = min(stop, int(near[-1]) + 1)
        paired[name] = nearest
    if first >= stop:
        raise ValueError("the times of its parts have nothing in common")
    return {name: rows[first:stop] for name, rows in paired.items()}


def _has_gap(part: TimedPart) -> bool:
    """True if rows are missing somewhere, not at the end."""
    if part.seconds is None or not part.is_measured:
        return False
    steps = np.diff(part.seconds)
    return bool(steps.max(initial=0) > _GAP * np.median(steps))


def _agree(parts: Mapping[str, TimedPart]) -> bool:
    """True if rows of equal numbers are less than half a period apart."""
    seconds = [part.seconds for part in parts.values() if part.seconds is not None]
    count = min(len(times) for times in seconds)
    rows = np.stack([times[:count] for times in seconds])
    return bool(np.ptp(rows, axis=0).max(initial=0) <= _period(seconds[0]) / 2)


def _origin(part: TimedPart, parts: Mapping[str, TimedPart]) -> float:
    """Start of the measured times that overlap those of a part, its own among them."""
    own = part.seconds
    assert own is not None, "the caller has checked it"
    starts = [float(own[0])]
    for other in parts.values():
        times = other.seconds
        if not (part.is_measured and other.is_measured) or times is None:
            continue
        if min(own[-1], times[-1]) > max(own[0], times[0]):
            starts.append(float(times[0]))
    return min(starts)


def _nearest(part: TimedPart, reference: TimedPart, origin: float) -> tuple[Array, Array]:
    """Row of a part nearest in time to each frame, and the distance in seconds."""
    times = part.seconds
    frames = reference.seconds
    assert times is not None, "the caller has checked it"
    assert frames is not None, "the caller has checked it"
    common = min(times[-1], frames[-1]) - max(times[0], frames[0])
    shorter = min(times[-1] - times[0], frames[-1] - frames[0])
    is_measured = part.is_measured and reference.is_measured
    is_epoch = min(times[0], frames[0]) > _EPOCH
    is_one_clock = is_measured and (common >= _COMMON * shorter or (is_epoch and common > 0))
    if not is_one_clock:  # each counts from its own start, or from that of its clock
        times = times - origin
        frames = frames - frames[0]
    after = np.searchsorted(times, frames).clip(1, len(times) - 1)
    before = after - 1
    is_before = frames - times[before] <= times[after] - frames
    rows = np.where(is_before, before, after)
    return rows, np.abs(times[rows] - frames)


def _period(seconds: Array) -> float:
    return float(np.median(np.diff(seconds)))
