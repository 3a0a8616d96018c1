"""Pairs the rows of the parts of an episode by their timestamps, if their numbers differ.

Shapes: F frames, N rows of a part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.recordings.propose import unit_of_times

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
        is_measured: True if the times are stored as numbers; False for a video, whose times start
            at 0.
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
    if is_equal and _agree(parts):
        return {}
    reference = min(parts, key=lambda name: (not parts[name].is_camera, parts[name].rows))
    rows_of_frames = parts[reference].rows
    paired: dict[str, Array] = {}
    first = 0
    stop = rows_of_frames
    for name, part in parts.items():
        if name == reference or (part.seconds is None and part.rows == rows_of_frames):
            paired[name] = np.arange(part.rows)
            continue
        if part.seconds is None or parts[reference].seconds is None:
            raise ValueError(f"{name} has {part.rows} rows, {reference} has {rows_of_frames}")
        paired[name], near = _nearest_rows(name, reference, parts, most_cut)
        first = max(first, int(near[0]))
        stop = min(stop, int(near[-1]) + 1)
    if first >= stop:
        raise ValueError("there is no time at which all parts have a row")
    return {name: rows[first:stop] for name, rows in paired.items()}


def _has_gap(part: TimedPart) -> bool:
    """True if rows are missing somewhere, not at the end."""
    if part.seconds is None or not part.is_measured:
        return False
    steps = np.diff(part.seconds)
    return bool(steps.max(initial=0) > _GAP * np.median(steps))


def _agree(parts: Mapping[str, TimedPart]) -> bool:
    """True if rows of equal numbers have measured times less than half a period apart."""
    measured: list[Array] = []
    for part in parts.values():
        if part.is_measured and part.seconds is not None:
            measured.append(part.seconds)
    if len(measured) < 2:
        return True
    count = min(len(times) for times in measured)
    rows = np.stack([times[:count] for times in measured])
    return bool(np.ptp(rows, axis=0).max(initial=0) <= _period(measured[0]) / 2)


def _nearest_rows(
    name: str, reference: str, parts: Mapping[str, TimedPart], most_cut: int
) -> tuple[Array, Array]:
    """Returns the row that is nearest in time to each frame [F], and the frames with a row near.

    Raises:
        ValueError: Frames in the middle have no row near them, or the lengths contradict.
    """
    part = parts[name]
    times = part.seconds
    frames = parts[reference].seconds
    assert times is not None, "the caller has checked it"
    assert frames is not None, "the caller has checked it"
    both_measured = part.is_measured and parts[reference].is_measured
    shared_times = times
    shared_frames = frames
    if not (both_measured and _are_of_one_clock(times, frames)):
        # Each counts from its own start, or from the start of its clock.
        shared_times = times - _origin(part, parts)
        shared_frames = frames - frames[0]
    after = np.searchsorted(shared_times, shared_frames).clip(1, len(times) - 1)
    before = after - 1
    is_before = shared_frames - shared_times[before] <= shared_times[after] - shared_frames
    rows = np.where(is_before, before, after)
    distance = np.abs(shared_times[rows] - shared_frames)

    reach = max(_period(times), _period(frames))
    near = np.flatnonzero(distance <= reach)
    if not len(near):
        raise ValueError(f"the timestamps of {name} and {reference} do not overlap")
    gap = int(distance[near[0] : near[-1] + 1].argmax()) + int(near[0])
    if distance[gap] > _LARGEST_GAP * reach:
        raise ValueError(
            f"{name} has no row within {distance[gap]:.2f} s of frame {gap} of {reference}"
        )
    span = float(times[-1] - times[0])
    frames_span = float(frames[-1] - frames[0])
    if not both_measured and abs(span - frames_span) > (most_cut + 1) * _period(frames):
        raise ValueError(
            f"{name} has {part.rows} rows in {span:.2f} s, "
            f"{reference} has {len(frames)} in {frames_span:.2f} s"
        )
    return rows, near


def _are_of_one_clock(times: Array, frames: Array) -> bool:
    """True if measured times overlap as if they come from the same clock."""
    common = min(times[-1], frames[-1]) - max(times[0], frames[0])
    shorter = min(times[-1] - times[0], frames[-1] - frames[0])
    is_epoch = min(times[0], frames[0]) > _EPOCH
    return bool(common >= _COMMON * shorter or (is_epoch and common > 0))


def _origin(part: TimedPart, parts: Mapping[str, TimedPart]) -> float:
    """Returns the earliest measured time of all parts that overlap a part in time."""
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


def _period(seconds: Array) -> float:
    return float(np.median(np.diff(seconds)))
