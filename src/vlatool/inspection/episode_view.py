"""What a page shows of an episode: recorded, or put together again from a tar of its samples.

Whatever is broken becomes a sentence. Legend of shapes: S recorded positions (all frames, or the
anchors that have a sample), T steps of a window, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.artifacts.dimensions import Names, recorded_names
from vlatool.artifacts.shard import OpenShard
from vlatool.episode import Array, Episode
from vlatool.errors import DataError
from vlatool.inspection.fields import lowdim_columns, policy_fields
from vlatool.inspection.projection import (
    EndEffectorTrack,
    FrameView,
    frame_shot,
    pose_tracks,
    position_fields,
    stored_shot,
)
from vlatool.inspection.report import listed
from vlatool.inspection.sample_view import chosen_fields, rate
from vlatool.transforms.relative import actual_field

_STRIP_FRAMES = 8
_USUAL_RATE = 10.0
_FIELD_KEYS = ("action_fields", "proprioception_fields")


@dataclass(frozen=True)
class EpisodeView:
    """What is shown of an episode.

    Attributes:
        name: Its id.
        facts: Name to value, shown as labels.
        fps: Frames per second.
        frames: Frame number of each position, int [S].
        shown: Positions in the strip, ascending.
        cameras: Camera to one shot per shown position.
        actions: Action field to values [S, C].
        proprioception: Proprioception field to values [S, C].
        tracks: End effectors over the positions.
        language: Kind of annotation to sentences.
        problems: What could not be shown, and why.
        names: Of the channels of fields, where they are recorded.
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
    """A raw episode; the pictures of its strip are decoded."""
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
        cameras={name: _shots(episode, name, shown) for name in episode.cameras},
        actions=actions,
        proprioception=proprioception,
        tracks=pose_tracks(numbers, _pose_fields(episode)),
        language=episode.language,
        problems=[finding.message for finding in episode.findings],
        names=episode.dimension_names,
    )


def view_episode_tar(tar: OpenShard, options: Mapping[str, Any]) -> EpisodeView | None:
    """The episode whose samples these are; None where they are not of one episode.

    Args:
        tar: The samples.
        options: preprocessing_config.yaml; empty when unknown.
    """
    found = _one_episode(tar)
    if found is None:
        return None
    problems: list[str] = []
    rows = _anchor_rows(tar, found, problems)
    if not rows:
        return None
    anchors = sorted(rows)
    keys = [found[anchor] for anchor in anchors]
    numbers = _columns([rows[anchor] for anchor in anchors])
    with tar.reading(keys[0]) as first:
        metadata, language = first.metadata(), first.language()
    absolute = {kind: _absolute(listed(options, kind), numbers) for kind in _FIELD_KEYS}
    actions, proprioception = chosen_fields(numbers, absolute)
    shown = _shown_positions(len(anchors))
    fps = rate(metadata, options)
    if fps is None:
        problems.append(f"the rate is not recorded; times are those of {_USUAL_RATE:g} fps")
    return EpisodeView(
        name=str(metadata.get("episode_id")),
        info={
            "task": metadata.get("task"),
            "samples": len(anchors),
            "episode length": metadata.get("original_episode_length"),
            "fps": "" if fps is None else f"{fps:g}",
        },
        fps=fps or _USUAL_RATE,
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
    """Positions for the strip: the first, the last, and evenly between."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(_STRIP_FRAMES, count)).tolist()})


def _pose_fields(episode: Episode) -> dict[str, str]:
    """EvalResult position field to measured rotation field."""
    groups = {
        actual_field(group.position_key) or group.position_key: actual_field(group.rotation_key)
        or group.rotation_key
        for group in episode.pose_groups
    }
    return groups or position_fields(episode.lowdim)


def _shots(episode: Episode, camera: str, shown: Sequence[int]) -> list[FrameView]:
    calibration = episode.calibration.get(camera)
    intrinsics = None if calibration is None else calibration.intrinsics
    extrinsics = None if calibration is None else calibration.extrinsics
    try:
        images = episode.cameras[camera].read(shown)
    except DataError as error:
        return [FrameView(None, problem=error.message)] * len(shown)
    return [
        frame_shot(image, intrinsics, extrinsics, frame)
        for frame, image in zip(shown, images, strict=True)
    ]


def _one_episode(tar: OpenShard) -> dict[int, str] | None:
    """Anchor frame to key, when all samples with readable metadata are of one episode."""
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
    """Anchor frame to the row of each field at the anchor; broken samples become problems."""
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
    """Fields [S, C] that all rows have, equally wide."""
    return {
        name: np.stack([row[name] for row in rows])
        for name, first in rows[0].items()
        if all(name in row and row[name].shape == first.shape for row in rows)
    }


def _absolute(names: Sequence[object], known: Mapping[str, Array]) -> list[str]:
    """Configured fields; of those relative to an anchor, what they were made from."""
    plain = ((name, name.removesuffix("_relative")) for name in map(str, names))
    return [base if base in known else name for name, base in plain]


def _strips(tar: OpenShard, keys: Sequence[str]) -> dict[str, list[FrameView]]:
    """Camera to its picture nearest to the anchor of each sample."""
    strips: dict[str, list[FrameView]] = {}
    with tar.reading(keys[0]) as first:
        views = first.image_suffixes()
    for camera in dict.fromkeys(camera for camera, _ in views):
        offset = min((at for name, at in views if name == camera), key=abs)
        strips[camera] = [_stored(tar, key, (camera, offset)) for key in keys]
    return strips


def _stored(tar: OpenShard, key: str, view: tuple[str, int]) -> FrameView:
    with tar.reading(key) as sample:
        wanted = (f"rescaled_intrinsics.{view[0]}", f"extrinsics.{view[0]}")
        arrays = sample.arrays([name for name in sample.array_headers() if name in wanted])
        step = sample.metadata().get("anchor_relative_idx", 0)
        return stored_shot(sample, view, arrays, step + view[1])
