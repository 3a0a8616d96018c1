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

_EQUAL = 1e-6  # share by which equal rates may differ


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
        poses = f", poses lose up to {1000 * self.meters:.2g} mm and {self.degrees:.2g} degrees"
        has_poses = self.meters > 0 or self.degrees > 0
        return f"images are up to {1000 * self.image_s:.3g} ms off{poses if has_poses else ''}"


def at_rate(
    episode: Episode, fps: float, actions: Collection[str] = ()
) -> tuple[Episode, RateError | None]:
    """The episode at `fps` frames per second, and its errors; None: it has that rate.

    Numbers are interpolated linearly, rotations of pose groups along the shortest turn; images,
    integers and texts are those of the nearest frame. `actions` are fields of commands: a step gets
    the last one of its time, which decides where the robot is at its end.
    """
    if abs(episode.fps - fps) <= _EQUAL * fps or not episode.num_frames:
        return episode, None
    count = int(np.floor((episode.num_frames - 1) * fps / episode.fps + _EQUAL)) + 1
    times = np.round(np.arange(count) * episode.fps / fps, 9)
    times = np.minimum(times, episode.num_frames - 1)
    rows = _nearest(times)
    rotations = {
        key
        for group in episode.pose_groups
        for key in (group.rotation_key, reference_keys(group)[1])
    }
    last = np.clip(times + episode.fps / fps - 1, 0, episode.num_frames - 1)
    lowdim = {
        name: (_turned if name in rotations else _between)(
            values, last if name in actions else times
        )
        for name, values in episode.lowdim.items()
    }

    def images(sources: Mapping[str, FrameSource]) -> dict[str, FrameSource]:
        return {name: NearestFrames(source, rows) for name, source in sources.items()}

    changed = replace(
        episode,
        fps=fps,
        num_frames=count,
        cameras=images(episode.cameras),
        depth=images(episode.depth),
        labels=images(episode.labels),
        lowdim=lowdim,
        language_spans=tuple(_spans(episode.language_spans, rows)),
        calibration={name: _at(rows, known) for name, known in episode.calibration.items()},
        frame_metadata={
            name: [values[row] for row in rows] for name, values in episode.frame_metadata.items()
        },
    )
    offset = float(np.abs(times - rows).max()) / episode.fps
    groups = [group for group in episode.pose_groups if group.position_key not in actions]
    return changed, RateError(offset, *_pose_errors(episode, changed, groups))


def command_fields(
    actions: Sequence[str],
    observed: Sequence[str],
    groups: Sequence[PoseGroup],
    fields: Collection[str],
) -> tuple[str, ...]:
    """Those of the stored fields that action fields, also relative ones, are made of."""
    commands = {stored_from(name, fields) for name in actions}
    for group in groups:
        pose = {group.position_key, group.rotation_key}
        commands |= pose if pose & commands else set()
    for group in groups:  # a measured pose belongs to its frame
        commands -= {*reference_keys(group)}
    return tuple(sorted(commands - {*observed}))


def _nearest(times: Array) -> Array:
    return np.floor(times + 0.5).astype(int)


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

    try:
        matrices = Rotation.from_matrix(matrix_from_rot6d(rot6d))
    except ValueError as error:  # zeros, or numbers that are not finite
        raise DataError(
            f"a rotation cannot be interpolated: {str(error).partition(chr(10))[0]}",
            hint="leave the episode out, or repair the recording",
            code="data.broken",
        ) from None
    turns = Slerp(np.arange(len(rot6d)), matrices)
    return rot6d_from_matrix(turns(times).as_matrix()).astype(rot6d.dtype)


def _spans(spans: Sequence[LanguageSpan], rows: Array) -> Iterator[LanguageSpan]:
    for span in spans:
        first = int(np.searchsorted(rows, span.first, "left"))
        last = int(np.searchsorted(rows, span.last, "right")) - 1
        if first <= last:
            yield replace(span, first=first, last=last)


def _at(rows: Array, known: Calibration) -> Calibration:
    """Calibration of the frames; what holds for the whole episode as it is."""
    parts: dict[str, Any] = {
        name: values[rows] if values is not None and values.ndim == 3 else values
        for name, values in vars(known).items()
    }
    return Calibration(**parts)


def _pose_errors(
    episode: Episode, changed: Episode, groups: Sequence[PoseGroup]
) -> tuple[float, float]:
    """Largest error of the positions, and of the rotations in degrees."""
    times = np.arange(episode.num_frames) * changed.fps / episode.fps
    is_inside = times <= changed.num_frames - 1
    position = angle = 0.0
    for group in groups:
        for key, interpolate in ((group.position_key, _between), (group.rotation_key, _turned)):
            there = interpolate(changed.lowdim[key].astype(np.float64), times[is_inside])
            here = episode.lowdim[key][is_inside]
            if key == group.position_key:
                position = max(position, float(np.abs(there - here).max()))
            else:
                angles = angle_between(matrix_from_rot6d(there), matrix_from_rot6d(here))
                angle = max(angle, float(angles.max()))
    return position, float(np.degrees(angle))
