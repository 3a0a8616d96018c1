"""Episodes at another rate: poses and numbers between frames, the nearest images.

Legend of shapes: F frames of the episode, R frames at the new rate, C dimensions.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vlatool.episode import (
    Array,
    Calibration,
    Episode,
    FrameSource,
    LanguageSpan,
    PoseGroup,
)
from vlatool.errors import DataError
from vlatool.transforms.relative import reference_keys, stored_from
from vlatool.transforms.rotations import angle_between, matrix_from_rot6d, rot6d_from_matrix

_EQUAL = 1e-6  # share that equal rates may differ


class NearestFrames(FrameSource):
    """Frames of a camera at another rate."""

    def __init__(self, source: FrameSource, rows: Array) -> None:
        self._source = source
        self.rows = rows  # stored frame of each frame, ascending [R]
        self.is_prepared = source.is_prepared

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> tuple[int, int]:
        return self._source.size

    def read(self, indices: Sequence[int]) -> Array:
        stored, order = np.unique(self.rows[list(indices)], return_inverse=True)
        return self._source.read(stored.tolist())[order]

    def encoded(self, index: int) -> bytes | None:
        return self._source.encoded(int(self.rows[index]))


class RateError(NamedTuple):
    """Largest errors of an episode at another rate.

    The error of poses is what is left when the new frames are interpolated back.
    """

    image_s: float  # time between an image and its frame
    meters: float
    degrees: float

    @property
    def text(self) -> str:
        text = f"images are up to {1000 * self.image_s:.3g} ms off"
        if self.meters > 0 or self.degrees > 0:
            text += f", poses lose up to {1000 * self.meters:.2g} mm and {self.degrees:.2g} degrees"
        return text


def at_rate(
    episode: Episode, fps: float, actions: Collection[str] = ()
) -> tuple[Episode, RateError | None]:
    """The episode at `fps` frames per second, and its errors; None: it has that rate.

    Numbers are interpolated linearly, rotations of pose groups along the shortest turn; images,
    integers and texts come from the nearest frame. `actions` are fields of commands: a step gets
    the last one of its time, which decides where the robot is at its end.
    """
    if abs(episode.fps - fps) <= _EQUAL * fps or not episode.num_frames:
        return episode, None
    last_frame = episode.num_frames - 1
    count = int(np.floor(last_frame * fps / episode.fps + _EQUAL)) + 1
    # Times of the new frames in recorded frames, the nearest of these, and the end of each step.
    times = np.round(np.arange(count) * episode.fps / fps, 9)
    times = np.minimum(times, last_frame)
    rows = _nearest(times)
    ends = np.clip(times + episode.fps / fps - 1, 0, last_frame)

    rotations: set[str] = set()
    for group in episode.pose_groups:
        rotations.update((group.rotation_key, reference_keys(group)[1]))
    lowdim: dict[str, Array] = {}
    for name, values in episode.lowdim.items():
        new_times = ends if name in actions else times
        if name in rotations:
            lowdim[name] = _turned(values, new_times)
        else:
            lowdim[name] = _between(values, new_times)
    frame_metadata: dict[str, list[Any]] = {}
    for name, values in episode.frame_metadata.items():
        frame_metadata[name] = [values[row] for row in rows]
    changed = replace(
        episode,
        fps=fps,
        num_frames=count,
        cameras=_nearest_images(episode.cameras, rows),
        depth=_nearest_images(episode.depth, rows),
        labels=_nearest_images(episode.labels, rows),
        lowdim=lowdim,
        language_spans=tuple(_spans(episode.language_spans, rows)),
        calibration={
            name: _calibration_at(rows, stored) for name, stored in episode.calibration.items()
        },
        frame_metadata=frame_metadata,
    )
    measured = [group for group in episode.pose_groups if group.position_key not in actions]
    meters, degrees = _pose_errors(episode, changed, measured)
    image_s = float(np.abs(times - rows).max()) / episode.fps
    return changed, RateError(image_s, meters, degrees)


def command_fields(
    actions: Sequence[str],
    observed: Sequence[str],
    groups: Sequence[PoseGroup],
    fields: Collection[str],
) -> tuple[str, ...]:
    """Returns the stored fields that action fields, including relative ones, are made of."""
    commands = {stored_from(name, fields) for name in actions}
    for group in groups:
        pose = {group.position_key, group.rotation_key}
        if pose & commands:
            commands |= pose
    for group in groups:  # a measured pose belongs to its frame
        commands -= {*reference_keys(group)}
    return tuple(sorted(commands - {*observed}))


def _nearest(times: Array) -> Array:
    return np.floor(times + 0.5).astype(int)


def _nearest_images(sources: Mapping[str, FrameSource], rows: Array) -> dict[str, FrameSource]:
    return {name: NearestFrames(source, rows) for name, source in sources.items()}


def _between(values: Array, times: Array) -> Array:
    """Values [R, ...] at times in frames."""
    if values.dtype.kind != "f":
        return values[_nearest(times)]
    before = np.floor(times).astype(int)
    after = np.minimum(before + 1, len(values) - 1)
    share = (times - before).reshape(-1, *[1] * (values.ndim - 1))
    # Exactly the stored value at a stored frame, also beside one that is not finite.
    mixed = np.where(share > 0, (1 - share) * values[before] + share * values[after], 0)
    return np.where(share > 0, mixed, values[before]).astype(values.dtype)


def _turned(rot6d: Array, times: Array) -> Array:
    """6D rotations [R, 6] at times in frames."""
    if len(rot6d) < 2:
        return rot6d[np.zeros(len(times), int)]
    from scipy.spatial.transform import Rotation, Slerp

    matrices = matrix_from_rot6d(rot6d)
    if not (np.linalg.det(matrices) > 0.5).all():
        raise DataError(
            "a rotation cannot be interpolated: it is zeros, or has numbers that are not finite",
            hint="leave the episode out with --exclude",
            code="data.broken",
        )
    turns = Slerp(np.arange(len(rot6d)), Rotation.from_matrix(matrices))(times)
    return rot6d_from_matrix(turns.as_matrix()).astype(rot6d.dtype)


def _spans(spans: Sequence[LanguageSpan], rows: Array) -> Iterator[LanguageSpan]:
    for span in spans:
        first = int(np.searchsorted(rows, span.first, "left"))
        last = int(np.searchsorted(rows, span.last, "right")) - 1
        if first <= last:
            yield replace(span, first=first, last=last)


def _calibration_at(rows: Array, stored: Calibration) -> Calibration:
    """Calibration of the frames; what holds for the whole episode as it is."""
    per_frame: dict[str, Any] = {}
    for name, values in vars(stored).items():
        if values is not None and values.ndim == 3:
            per_frame[name] = values[rows]
    return replace(stored, **per_frame)


def _pose_errors(
    episode: Episode, changed: Episode, groups: Sequence[PoseGroup]
) -> tuple[float, float]:
    """Largest error of the positions, and of the rotations in degrees."""
    times = np.arange(episode.num_frames) * changed.fps / episode.fps
    is_inside = times <= changed.num_frames - 1
    largest_offset = 0.0
    largest_angle = 0.0
    for group in groups:
        stored = changed.lowdim[group.position_key].astype(np.float64)
        back = _between(stored, times[is_inside])
        offsets = np.abs(back - episode.lowdim[group.position_key][is_inside])
        largest_offset = max(largest_offset, float(offsets.max()))

        stored = changed.lowdim[group.rotation_key].astype(np.float64)
        back = matrix_from_rot6d(_turned(stored, times[is_inside]))
        recorded = matrix_from_rot6d(episode.lowdim[group.rotation_key][is_inside])
        largest_angle = max(largest_angle, float(angle_between(back, recorded).max()))
    return largest_offset, float(np.degrees(largest_angle))
