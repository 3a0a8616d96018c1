"""View of an episode for a page: of a raw episode, or of one assembled from a tar of its samples.

Errors become sentences of the view. Legend of shapes: S positions (all frames, or the anchors that
have a sample), C dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.artifacts.shards.dimensions import Names, recorded_names
from vlatool.artifacts.tar import OpenShard
from vlatool.episode import Array, Episode
from vlatool.errors import DataError
from vlatool.inspection.fields import lowdim_columns, policy_fields
from vlatool.inspection.projection import (
    EndEffectorTrack,
    FrameView,
    frame_view,
    pose_tracks,
    position_fields,
    stored_view,
)
from vlatool.inspection.report import listed
from vlatool.inspection.sample_view import chosen_fields, rate
from vlatool.transforms.relative import actual_field

_STRIP_FRAMES = 8
_DEFAULT_FPS = 10.0
_FIELD_KEYS = ("action_fields", "proprioception_fields")


@dataclass(frozen=True)
class EpisodeView:
    """Contents of an episode to show.

    Attributes:
        name: Id of the episode.
        info: Map from name to value, shown as labels.
        fps: Frames per second.
        frames: Frame of each position, int [S].
        shown: Positions in the strip, ascending.
        cameras: Map from camera to one view per shown position.
        actions: Map from action field to values [S, C].
        proprioception: Map from proprioception field to values [S, C].
        tracks: End effectors over the positions.
        language: Map from kind of annotation to sentences.
        problems: Messages about contents that cannot be shown.
        names: Recorded names of the dimensions of fields.
    """

    name: str
    info: Mapping[str, object]
    fps: float
    frames: Array
    shown: Sequence[int]
    cameras: Mapping[str, Sequence[FrameView]]
    actions: Mapping[str, Array]
    proprioception: Mapping[str, Array]
    tracks: tuple[EndEffectorTrack, ...]
    language: Mapping[str, Sequence[str]]
    problems: Sequence[str] = ()
    names: Names = field(default_factory=dict[str, Sequence[str]])

    @property
    def seconds(self) -> Array:
        """Time of each position [S]."""
        return self.frames / self.fps


def view_episode(episode: Episode) -> EpisodeView:
    """View of a raw episode; decodes the images of its strip."""
    shown = _shown_positions(episode.num_frames)
    numbers = lowdim_columns(episode.lowdim, episode.num_frames)
    actions, proprioception = policy_fields(
        numbers, episode.action_fields, episode.proprioception_fields
    )
    return EpisodeView(
        name=episode.id,
        info={
            "task": episode.task,
            "frames": episode.num_frames,
            "seconds": f"{episode.num_frames / episode.fps:.1f}",
            "fps": f"{episode.fps:g}",
        },
        fps=episode.fps,
        frames=np.arange(episode.num_frames),
        shown=shown,
        cameras={name: _views(episode, name, shown) for name in episode.cameras},
        actions=actions,
        proprioception=proprioception,
        tracks=pose_tracks(numbers, _pose_fields(episode)),
        language=episode.language,
        problems=[finding.message for finding in episode.findings],
        names=episode.dimension_names,
    )


def view_episode_tar(tar: OpenShard, options: Mapping[str, Any]) -> EpisodeView | None:
    """View of the episode that the samples of a tar are from; None if they are from several.

    Args:
        tar: Samples.
        options: preprocessing_config.yaml; empty if unknown.
    """
    keys_by_anchor = _one_episode(tar)
    if keys_by_anchor is None:
        return None
    problems: list[str] = []
    rows = _anchor_rows(tar, keys_by_anchor, problems)
    if not rows:
        return None
    anchors = sorted(rows)
    keys = [keys_by_anchor[anchor] for anchor in anchors]
    numbers = _columns([rows[anchor] for anchor in anchors])
    with tar.reading(keys[0]) as first:
        metadata, language = first.metadata(), first.language()
    absolute = {kind: _absolute(listed(options, kind), numbers) for kind in _FIELD_KEYS}
    actions, proprioception = chosen_fields(numbers, absolute)
    shown = _shown_positions(len(anchors))
    fps = rate(metadata, options)
    if fps is None:
        problems.append(f"the frame rate is not recorded; times assume {_DEFAULT_FPS:g} fps")
    return EpisodeView(
        name=str(metadata.get("episode_id")),
        info={
            "task": metadata.get("task"),
            "samples": len(anchors),
            "episode length": metadata.get("original_episode_length"),
            "fps": "" if fps is None else f"{fps:g}",
        },
        fps=fps or _DEFAULT_FPS,
        frames=np.array(anchors),
        shown=shown,
        cameras=_strips(tar, [keys[position] for position in shown]),
        actions=actions,
        proprioception=proprioception,
        tracks=pose_tracks(numbers, position_fields(numbers)),
        language=language,
        problems=problems,
        names=recorded_names(options),
    )


def _shown_positions(count: int) -> list[int]:
    """Positions in the strip: the first, the last, and evenly spaced ones between."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(_STRIP_FRAMES, count)).tolist()})


def _pose_fields(episode: Episode) -> dict[str, str]:
    """Map from measured position field to measured rotation field."""
    groups = {
        actual_field(group.position_key) or group.position_key: actual_field(group.rotation_key)
        or group.rotation_key
        for group in episode.pose_groups
    }
    return groups or position_fields(episode.lowdim)


def _views(episode: Episode, camera: str, shown: Sequence[int]) -> list[FrameView]:
    calibration = episode.calibration.get(camera)
    intrinsics = None if calibration is None else calibration.intrinsics
    extrinsics = None if calibration is None else calibration.extrinsics
    try:
        images = episode.cameras[camera].read(shown)
    except DataError as error:
        return [FrameView(None, problem=error.message)] * len(shown)
    return [
        frame_view(image, intrinsics, extrinsics, frame)
        for frame, image in zip(shown, images, strict=True)
    ]


def _one_episode(tar: OpenShard) -> dict[int, str] | None:
    """Map from anchor to key; None unless samples with readable metadata are of one episode."""
    anchors: dict[int, str] = {}
    episodes: set[str] = set()
    for key in tar.keys:
        try:
            with tar.reading(key) as sample:
                metadata = sample.metadata()
        except DataError:
            continue
        anchor, episode = metadata.get("anchor_timestep"), metadata.get("episode_id")
        if not isinstance(anchor, int) or not isinstance(episode, str) or anchor in anchors:
            return None
        episodes.add(episode)
        if len(episodes) > 1:
            return None
        anchors[anchor] = key
    return anchors if len(anchors) > 1 else None


def _anchor_rows(
    tar: OpenShard, keys: Mapping[int, str], problems: list[str]
) -> dict[int, dict[str, Array]]:
    """Map from anchor to its row of each field; broken samples are added to `problems`."""
    rows: dict[int, dict[str, Array]] = {}
    for frame, key in keys.items():
        try:
            with tar.reading(key) as sample:
                step, arrays = sample.metadata().get("anchor_relative_idx", 0), sample.arrays()
        except DataError as error:
            problems.append(error.message)
            continue
        length = len(arrays["past_mask"]) if "past_mask" in arrays else step + 1
        fields = lowdim_columns(arrays, length)
        rows[frame] = {name: values[min(step, length - 1)] for name, values in fields.items()}
    return rows


def _columns(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Fields [S, C] that all rows have with the same width."""
    return {
        name: np.stack([row[name] for row in rows])
        for name, first in rows[0].items()
        if all(name in row and row[name].shape == first.shape for row in rows)
    }


def _absolute(names: Sequence[object], known: Mapping[str, Array]) -> list[str]:
    """Configured fields; for a relative one its absolute field, if that is in `known`."""
    pairs = ((name, name.removesuffix("_relative")) for name in map(str, names))
    return [absolute if absolute in known else name for name, absolute in pairs]


def _strips(tar: OpenShard, keys: Sequence[str]) -> dict[str, list[FrameView]]:
    """Map from camera to the image nearest to the anchor of each sample."""
    strips: dict[str, list[FrameView]] = {}
    with tar.reading(keys[0]) as first:
        views = first.image_suffixes()
    for camera in dict.fromkeys(camera for camera, _ in views):
        offset = min((offset for name, offset in views if name == camera), key=abs)
        strips[camera] = [_stored(tar, key, (camera, offset)) for key in keys]
    return strips


def _stored(tar: OpenShard, key: str, view: tuple[str, int]) -> FrameView:
    with tar.reading(key) as sample:
        names = (f"rescaled_intrinsics.{view[0]}", f"extrinsics.{view[0]}")
        arrays = sample.arrays([name for name in sample.array_headers() if name in names])
        step = sample.metadata().get("anchor_relative_idx", 0)
        return stored_view(sample, view, arrays, step + view[1])
