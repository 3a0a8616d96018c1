"""Card of a training sample: images, window with padding, masks, metadata.

Legend of shapes: T steps of the window, C dimensions of a field.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlatool.artifacts.field_summary import (
    lowdim_columns,
    policy_fields,
    pose_tracks,
    position_fields,
)
from vlatool.artifacts.fields import recorded_names
from vlatool.artifacts.frame_views import visible_image
from vlatool.artifacts.sample import StoredSample
from vlatool.artifacts.tar import OpenShard
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.pages.charts import Axis, FieldValues, field_charts, step_cells
from vlatool.pages.images import (
    CameraModel,
    EndEffectorTrack,
    FrameView,
    crop_drawing,
    draw_poses,
    frame_figure,
    pose_legend,
    step_text,
    strip,
)
from vlatool.pages.layout import (
    Section,
    card,
    code,
    details,
    escape,
    heading,
    note,
    sentences,
    table,
    tags,
)
from vlatool.pages.report import branch, listed
from vlatool.transforms.geometry import make_geometry

# Largest recorded side that is drawn, in pixels; smallest share that a crop leaves out.
_MAX_SIDE = 8192
_LEAST_SHARE = 0.01
# Most images of a camera that leave room for those of the next one beside them.
_BESIDE = 2


@dataclass(frozen=True)
class SampleWindow:
    """Window of a sample.

    Attributes:
        anchor: Index of the anchor.
        past_mask: Real steps before the anchor, bool [T].
        future_mask: Real steps from the anchor on, bool [T].
    """

    anchor: int
    past_mask: Array
    future_mask: Array

    @property
    def length(self) -> int:
        """T."""
        return len(self.past_mask)

    @property
    def is_padded(self) -> Array:
        """Steps that are padding, bool [T]."""
        return ~(self.past_mask | self.future_mask)

    @property
    def steps(self) -> Array:
        """Steps from the anchor, int [T]."""
        return np.arange(self.length) - self.anchor


def sample_card(tar: OpenShard, position: int, options: Mapping[str, Any]) -> Section:
    """Card of the sample at a position of a tar, or a card with the error.

    Args:
        tar: Shard.
        position: Number of the sample in the shard.
        options: preprocessing_config.yaml; empty if unknown.
    """
    name = tar.path.name
    if position >= len(tar.keys):
        reason = tar.damage or f"the shard has {counted(len(tar.keys), 'sample')}"
        text = f"{name}: there is no sample {position}: {reason}"
        return Section(f"{name}, sample {position}", note(text), is_under=True)
    key = tar.keys[position]
    return card(key, lambda: _section(tar, key, options))


def crop_figures(tar: OpenShard, options: Mapping[str, Any]) -> str:
    """Images of the first sample in the area that was recorded; empty if no crop left a part out.

    Args:
        tar: Shard with samples.
        options: preprocessing_config.yaml; empty if unknown.

    Raises:
        DataError: The sample is broken.
    """
    if str(options.get("image_resizing_method")).lower() != "center_crop" or not tar.keys:
        return ""
    with tar.reading(tar.keys[0]) as sample:
        recorded = branch(sample.metadata(), "original_image_sizes")
        views = {
            name: stored_view(sample, (name, at), {}, 0) for name, at in sample.image_suffixes()
        }
    figures = (_crop_figure(name, view.image, recorded.get(name)) for name, view in views.items())
    return strip("", list(filter(None, figures)))


def _crop_figure(camera: str, image: Image.Image | None, recorded: object) -> str:
    """A stored image in the area that was recorded; empty if it is all of that area.

    Args:
        camera: Name of the camera.
        image: Stored image.
        recorded: Recorded [width, height] by the metadata of the sample.
    """
    match (image, recorded):
        case Image.Image(), [int(width), int(height)] if 0 < width <= _MAX_SIDE >= height > 0:
            geometry = make_geometry(
                (height, width), (int(image.height), int(image.width)), "center_crop"
            )
        case _:
            return ""
    left, top, right, bottom = box = geometry.source_box
    share = 1 - (right - left) * (bottom - top) / (width * height)
    if share < _LEAST_SHARE:
        return ""
    area = Image.new("RGB", (width, height), "gray")
    size = (max(1, round(right - left)), max(1, round(bottom - top)))
    area.paste(image.resize(size), (round(left), round(top)))
    caption = f"{camera}: {share:.0%} of {width} x {height} left out"
    view = FrameView(area)
    return frame_figure(view, f"crop of {camera}", caption, crop_drawing(area.size, box))


def frame_rate(metadata: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """Frames per second from the sample or the data set; None if neither has a valid value."""
    for tree in (metadata, options):
        value = tree.get("fps")
        if isinstance(value, int | float) and 0 < value < np.inf:
            return float(value)
    return None


def stored_view(
    sample: StoredSample, view: tuple[str, int], arrays: Mapping[str, Array], row: int
) -> FrameView:
    """Stored image with the camera model at a row of the window.

    Args:
        sample: Sample of the image.
        view: Camera and image offset.
        arrays: Arrays of the sample, including those of the calibration.
        row: Step of the image in the window; a step outside gets the nearest row.
    """
    suffix = sample.image_suffixes().get(view)
    if suffix is None:
        return FrameView(None, problem="not in the sample")
    try:
        image = visible_image(sample.members[suffix])
    except (OSError, ValueError):
        return FrameView(None, problem=f"{suffix} cannot be decoded")
    intrinsics = arrays.get(f"rescaled_intrinsics.{view[0]}")
    extrinsics = arrays.get(f"extrinsics.{view[0]}")
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, max(row, 0), image.size))


def _section(shard: OpenShard, key: str, options: Mapping[str, Any]) -> Section:
    """Card of a sample; raises DataError if the sample is broken."""
    with shard.reading(key) as sample:
        arrays, metadata, language = sample.arrays(), sample.metadata(), sample.language()
        window = _read_window(arrays, metadata)
        images = {
            view: stored_view(sample, view, arrays, window.anchor + view[1])
            for view in sample.image_suffixes()
        }
    numbers = lowdim_columns(arrays, window.length)
    positions = {
        name: np.where(window.is_padded[:, None], np.nan, values)
        for name, values in numbers.items()
        if values.dtype.kind == "f"
    }
    tracks = pose_tracks(positions, position_fields(positions))
    fields = policy_fields(
        numbers,
        listed(options, "action_fields"),
        listed(options, "proprioception_fields"),
        recorded_names(options),
    )
    info = {
        "in": shard.path.name,
        "task": metadata.get("task"),
        "episode length": metadata.get("original_episode_length"),
        "steps": window.length,
        "padded": int(window.is_padded.sum()) or None,
    }
    frames = _image_frames(metadata, [offset for _, offset in images])
    is_calibrated = any(image.camera for image in images.values())
    body = (
        tags(info)
        + f'<div class="small quiet">{code(key)}</div>'
        + heading("Language", sentences(language))
        + heading("Images", _images(window, images, frames, tracks))
        + (pose_legend(tracks) if is_calibrated else "")
        + _charts(window, fields, frame_rate(metadata, options))
        + details("Metadata", _metadata(metadata))
    )
    return Section(_name(metadata, key), body, is_under=True)


def _name(metadata: Mapping[str, Any], key: str) -> str:
    """Episode and anchor of a sample, else its key."""
    episode, anchor = metadata.get("episode_id"), metadata.get("anchor_timestep")
    return key if episode is None or anchor is None else f"{episode}, frame {anchor}"


def _image_frames(metadata: Mapping[str, Any], offsets: Sequence[int]) -> dict[int, int]:
    """Map from image offset to its frame; empty if the frames are not recorded."""
    frames = metadata.get("image_timesteps")
    if not isinstance(frames, list):
        return {}
    return dict(zip(dict.fromkeys(offsets), frames, strict=False))


def _read_window(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> SampleWindow:
    """Window of a sample; without masks no step is padding.

    Raises:
        DataError: The sample has neither masks nor fields.
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
    return SampleWindow(min(max(anchor, 0), length - 1), past, future)


def _images(
    window: SampleWindow,
    images: Mapping[tuple[str, int], FrameView],
    frames: Mapping[int, int],
    tracks: Sequence[EndEffectorTrack],
) -> str:
    """Cameras in rows of equal length, with the images of each side by side.

    Args:
        window: Window of the sample.
        images: (camera, image offset) to the stored image.
        frames: Map from image offset to its frame in the episode.
        tracks: End effectors over the window; NaN for padding.
    """
    cameras = list(dict.fromkeys(camera for camera, _ in images))
    offsets = sorted({offset for _, offset in images})
    if not cameras:
        return ""

    def offset_figure(camera: str, offset: int, prefix: str = "") -> str:
        caption = step_text(offset) + (f", frame {frames[offset]}" if offset in frames else "")
        image = images.get((camera, offset), FrameView(None, problem="not in the sample"))
        drawing = ""
        if image.camera is not None:
            step = _shown_step(window, offset)
            drawing = draw_poses(tracks, step, image.camera, window.length)
        return frame_figure(image, f"{camera}, {caption}", prefix + caption, drawing)

    if len(offsets) > _BESIDE:
        return "".join(
            strip(escape(camera), [offset_figure(camera, offset) for offset in offsets])
            for camera in cameras
        )
    return strip(
        "",
        [offset_figure(camera, offset, f"{camera} ") for camera in cameras for offset in offsets],
    )


def _shown_step(window: SampleWindow, offset: int) -> int:
    """Step of an image; of a padded step, that of the first or last frame."""
    real = np.flatnonzero(~window.is_padded)
    return int(np.clip(window.anchor + offset, real[0], real[-1])) if len(real) else window.anchor


def _charts(
    window: SampleWindow,
    fields: tuple[Sequence[FieldValues], Sequence[FieldValues]],
    fps: float | None,
) -> str:
    """Charts of actions and proprioception, and the masks of their steps."""
    steps = window.steps
    padded = steps[window.is_padded].tolist()
    axis = Axis(
        float(steps[0]) - 0.5,
        float(steps[-1]) + 0.5,
        f"steps of {1 / fps:.3g} s" if fps else "steps",
        whole=True,
        anchor=0.0,
        shaded=tuple((step - 0.5, step + 0.5) for step in padded),
    )
    masks = {"past": window.past_mask, "future": window.future_mask}
    charts = "".join(
        heading(title, field_charts(axis, steps, group, dots=True))
        for title, group in zip(("Actions", "Proprioception"), fields, strict=True)
    )
    return charts + heading(
        "Masks of the steps; padding is shaded above", step_cells(axis, steps, masks)
    )


def _metadata(metadata: Mapping[str, Any]) -> str:
    texts = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in metadata.items()
    }
    return table(("key", "value"), [(name, code(text)) for name, text in texts.items()])
