"""What a page shows of an episode or a sample, read from where it is.

Whatever is broken becomes a sentence on the page. Legend of shapes: F frames, T steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.episode import Array, Calibration, Episode
from vlatool.errors import DataError
from vlatool.inspection.samples import TarIndex
from vlatool.pages.episode import EpisodeView, Shot, shown_positions
from vlatool.pages.fields import as_columns, is_lowdim, policy_fields
from vlatool.pages.pictures import UnreadablePictureError, frame_picture, open_picture
from vlatool.pages.poses import Lens, pose_tracks, position_fields
from vlatool.pages.sample import SampleView
from vlatool.transforms.relative import actual_field


def view_episode(episode: Episode) -> EpisodeView:
    """A raw episode; the pictures of its strip are decoded."""
    shown = shown_positions(episode.num_frames)
    numbers = as_columns(
        {
            name: values
            for name, values in episode.lowdim.items()
            if is_lowdim(name, values, episode.num_frames)
        }
    )
    actions, proprioception = policy_fields(
        numbers, episode.action_fields, episode.proprioception_fields
    )
    return EpisodeView(
        name=episode.id,
        facts={
            "task": episode.task,
            "frames": episode.num_frames,
            "seconds": f"{episode.num_frames / episode.fps:.1f}",
            "fps": f"{episode.fps:g}",
        },
        fps=episode.fps,
        frames=np.arange(episode.num_frames),
        shown=shown,
        cameras={name: _shots(episode, name, shown) for name in episode.cameras},
        actions={name: numbers[name] for name in actions},
        proprioception={name: numbers[name] for name in proprioception},
        tracks=pose_tracks(numbers, _pose_fields(episode)),
        language=episode.language,
        problems=[one.message for one in episode.findings],
    )


def _pose_fields(episode: Episode) -> dict[str, str]:
    """Measured position field to measured rotation field."""
    groups = {
        actual_field(group.position_key) or group.position_key: actual_field(group.rotation_key)
        or group.rotation_key
        for group in episode.pose_groups
    }
    return groups or position_fields(episode.lowdim)


def _shots(episode: Episode, camera: str, shown: Sequence[int]) -> list[Shot]:
    calibration = episode.calibration.get(camera)
    try:
        pictures = episode.cameras[camera].read(shown)
    except DataError as error:
        return [Shot(None, problem=error.message)] * len(shown)
    height, width = pictures.shape[1:3]
    return [
        Shot(frame_picture(picture), _frame_lens(calibration, frame, (width, height)))
        for frame, picture in zip(shown, pictures, strict=True)
    ]


def _frame_lens(calibration: Calibration | None, frame: int, size: tuple[int, int]) -> Lens | None:
    if calibration is None:
        return None
    return _lens(calibration.intrinsics, calibration.extrinsics, frame, size)


def _lens(
    intrinsics: Array | None, extrinsics: Array | None, row: int, size: tuple[int, int]
) -> Lens | None:
    """The projection at a row of static or per-row matrices; None where it is not usable."""
    matrices: list[Array] = []
    for values, width in ((intrinsics, 3), (extrinsics, 4)):
        if values is None or values.dtype.kind != "f" or values.shape[-2:] != (width, width):
            return None
        matrix = values if values.ndim == 2 else values[min(row, len(values) - 1)]
        if matrix.shape != (width, width) or not np.isfinite(matrix).all():
            return None
        matrices.append(matrix)
    return Lens(matrices[0], matrices[1], size)


def view_sample(tar: TarIndex, key: str, options: Mapping[str, Any]) -> SampleView:
    """A sample.

    Args:
        tar: Where it is.
        key: Which one.
        options: preprocessing_config.yaml; empty when unknown.

    Raises:
        DataError: It is broken.
    """
    arrays = tar.arrays(key)
    metadata = tar.metadata(key)
    past, future, anchor = _masks(arrays, metadata)
    numbers = as_columns(
        {name: values for name, values in arrays.items() if is_lowdim(name, values, len(past))}
    )
    actions, proprioception = chosen_fields(numbers, options)
    padding = ~(past | future)
    positions = {
        name: np.where(padding[:, None], np.nan, values)
        for name, values in numbers.items()
        if values.dtype.kind == "f"
    }
    views = tar.pictures(key)
    return SampleView(
        name=sample_name(metadata, key),
        key=key,
        facts={
            "in": tar.path.name,
            "task": metadata.get("task"),
            "episode length": metadata.get("original_episode_length"),
            "steps": len(past),
            "padded": int(padding.sum()) or None,
        },
        anchor=anchor,
        past_mask=past,
        future_mask=future,
        fps=rate(metadata, options),
        pictures={view: stored_shot(tar, key, view, arrays, anchor + view[1]) for view in views},
        frames=_image_frames(metadata, [offset for _, offset in views]),
        actions={name: numbers[name] for name in actions},
        proprioception={name: numbers[name] for name in proprioception},
        tracks=pose_tracks(positions, position_fields(positions)),
        language=tar.language(key),
        metadata=metadata,
    )


def _image_frames(metadata: Mapping[str, Any], offsets: Sequence[int]) -> dict[int, int]:
    """Image offset to its frame; empty where that was not recorded."""
    frames = metadata.get("image_timesteps")
    if not isinstance(frames, list):
        return {}
    return dict(zip(dict.fromkeys(offsets), frames, strict=False))


def sample_name(metadata: Mapping[str, Any], key: str) -> str:
    """Episode and anchor of a sample, else its key."""
    episode, anchor = metadata.get("episode_id"), metadata.get("anchor_timestep")
    return key if episode is None or anchor is None else f"{episode}, frame {anchor}"


def chosen_fields(
    numbers: Mapping[str, Array], options: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Action and proprioception fields to draw: the configured ones, else by name."""
    configured = [options.get(f"{kind}_fields") for kind in ("action", "proprioception")]
    lists = [value if isinstance(value, list) else [] for value in configured]
    return policy_fields(numbers, lists[0], lists[1])


def stored_shot(
    tar: TarIndex, key: str, view: tuple[str, int], arrays: Mapping[str, Array], row: int
) -> Shot:
    """A stored picture with the projection at a row of the window.

    Args:
        tar: Where the sample is.
        key: Which one.
        view: Camera and image offset.
        arrays: Arrays of the sample.
        row: Step of the window that the picture belongs to; outside, the nearest one counts.
    """
    suffix = tar.pictures(key)[view]
    try:
        picture = open_picture(tar.member(key, suffix) or b"")
    except UnreadablePictureError:
        return Shot(None, problem=f"{suffix} cannot be decoded")
    intrinsics = arrays.get(f"rescaled_intrinsics.{view[0]}")
    extrinsics = arrays.get(f"extrinsics.{view[0]}")
    return Shot(picture, _lens(intrinsics, extrinsics, max(row, 0), picture.size))


def rate(metadata: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """Frames per second as the sample or the data set tells."""
    for tree in (metadata, options):
        value = tree.get("fps")
        if isinstance(value, int | float) and 0 < value < np.inf:
            return float(value)
    return None


def _masks(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> tuple[Array, Array, int]:
    """past_mask and future_mask, bool [T], and the anchor; without masks nothing is padded.

    Raises:
        DataError: There is neither a mask nor any field.
    """
    anchor = metadata.get("anchor_relative_idx")
    anchor = anchor if isinstance(anchor, int) else 0
    past, future = arrays.get("past_mask"), arrays.get("future_mask")
    if past is not None and future is not None and past.ndim == 1 and past.shape == future.shape:
        length = len(past)
        past, future = past.astype(bool), future.astype(bool)
    else:
        length = max((len(values) for values in arrays.values() if values.ndim), default=0)
        past, future = np.arange(length) < anchor, np.arange(length) >= anchor
    if not length:
        raise DataError("the sample has no rows", code="data.broken_sample")
    return past, future, min(max(anchor, 0), length - 1)
