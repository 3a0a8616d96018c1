"""Cards of an episode and of a training sample: images, and charts over one axis.

Legend of shapes: S positions (all frames, or the anchors that have a sample), C dimensions of a
field.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.artifacts.shards.dimensions import Names, dimension_names
from vlatool.episode import Array
from vlatool.inspection.episode_view import EpisodeView
from vlatool.inspection.projection import FrameView
from vlatool.inspection.sample_view import SampleView
from vlatool.pages.images import (
    THUMBNAIL_WIDTH,
    draw_poses,
    figure,
    image_placeholder,
    pose_legend,
    thumbnail,
)
from vlatool.pages.layout import (
    Section,
    code,
    details,
    escape,
    heading,
    label_with_unit,
    note,
    sentences,
    table,
    tags,
)
from vlatool.pages.plots import (
    Axis,
    Lines,
    axis_chart,
    cells,
    field_lines,
    legend,
    line_chart,
)

# Length of a trail before and after an image, in columns of the strip.
_TRAIL_COLUMNS = 1.5
_CHART_WIDTH = 560.0
# Width of the numbers at the left of a sample's chart, in its pixels.
_GUTTER = 48.0
_TICKS = 16
# Maximum number of images per row.
_ROW = 8


def episode_section(view: EpisodeView, *, is_under: bool = True) -> Section:
    """Card of an episode: strips of its cameras and charts over time."""
    axis = _time_axis(view)
    rows = [
        *(_strip(view, name, images) for name, images in view.cameras.items()),
        _charts("Actions", axis, view, view.actions),
        _charts("Proprioception", axis, view, view.proprioception),
    ]
    is_calibrated = any(image.camera for images in view.cameras.values() for image in images)
    times = ((position, float(view.seconds[position])) for position in view.shown)
    ticks = [(time, f"{time:.2f}{'' if position else ' s'}") for position, time in times]
    body = (
        tags(view.info)
        + "".join(map(note, view.problems))
        + heading("Language", sentences(view.language))
        + heading("Recording", pose_legend(view.tracks if is_calibrated else ()) or " ")
        + f'<div class="time" data-low="{axis.low:.6g}" data-high="{axis.high:.6g}">'
        + "".join(rows)
        + axis_chart(axis, ticks)
        + "</div>"
    )
    return Section(view.name, body, is_under=is_under)


def sample_section(view: SampleView) -> Section:
    """Card of a sample: its images, its window with padding, its masks."""
    is_calibrated = any(image.camera for image in view.images.values())
    body = (
        tags(view.info)
        + f'<div class="small quiet">{code(view.key)}</div>'
        + heading("Language", sentences(view.language))
        + heading("Images", _images(view))
        + (pose_legend(view.tracks) if is_calibrated else "")
        + _window(view)
        + details("Metadata", _metadata(view.metadata))
    )
    return Section(view.name, body, is_under=True)


def _chart(axis: Axis, field: str, lines: Lines, *, dots: bool = False) -> str:
    """Chart of a field under its name, its unit and the names of its lines."""
    label = f'<div class="label">{label_with_unit(field)} &ensp;{legend(lines)}</div>'
    return label + line_chart(axis, lines, dots=dots)


def _lines(field: str, positions: Array, values: Array, names: Names) -> Lines:
    """Lines of a field [S, C]."""
    return field_lines(positions, values, dimension_names(field, values.shape[1], names))


def _time_axis(view: EpisodeView) -> Axis:
    """Time axis on which each mark is under the center of its image."""
    times = view.seconds[list(view.shown)]
    first, last = float(times[0]), float(times[-1])
    half = (last - first) / (len(times) - 1) / 2 if len(times) > 1 else 0.5 / view.fps
    return Axis(first - half, last + half, marks=tuple(times.tolist()))


def _strip(view: EpisodeView, name: str, images: Sequence[FrameView]) -> str:
    step = (view.shown[-1] - view.shown[0]) / max(len(view.shown) - 1, 1)
    reach = max(1, round(_TRAIL_COLUMNS * step))
    strip = "".join(
        _frame_figure(view, name, position, image, reach)
        for position, image in zip(view.shown, images, strict=True)
    )
    sizes = {shown.image.size for shown in images if shown.image}
    size = ", ".join(f"{width} x {height} px" for width, height in sorted(sizes))
    label = f'{escape(name)} <span class="quiet">{size}</span>'
    return f'<div class="label">{label}</div><div class="strip">{strip}</div>'


def _frame_figure(
    view: EpisodeView, name: str, position: int, frame_view: FrameView, reach: int
) -> str:
    frame = int(view.frames[position])
    if frame_view.image is None:
        content = image_placeholder(frame_view.problem)
    else:
        camera = frame_view.camera
        drawing = draw_poses(view.tracks, position, camera, reach) if camera else ""
        content = thumbnail(frame_view.image, f"{name}, frame {frame}", drawing)
    return figure(content, f"frame {frame}")


def _charts(title: str, axis: Axis, view: EpisodeView, fields: Mapping[str, Array]) -> str:
    charts = (
        _chart(axis, name, _lines(name, view.seconds, values, view.names))
        for name, values in fields.items()
    )
    return heading(title, "".join(charts))


def _images(view: SampleView) -> str:
    """Cameras in rows of equal length, with the images of each side by side."""
    cameras = list(dict.fromkeys(camera for camera, _ in view.images))
    offsets = sorted({offset for _, offset in view.images})
    if not cameras:
        return ""
    rows = -(-len(cameras) // max(1, _ROW // len(offsets)))
    blocks = "".join(
        f'<div><div class="label">{escape(camera)}</div>'
        '<div class="strip">'
        f"{''.join(_offset_figure(view, camera, offset) for offset in offsets)}</div></div>"
        for camera in cameras
    )
    widest = THUMBNAIL_WIDTH * len(offsets)
    columns = f"repeat({-(-len(cameras) // rows)}, minmax(0, {widest}px))"
    return f'<div class="grid" style="grid-template-columns: {columns}">{blocks}</div>'


def _offset_figure(view: SampleView, camera: str, offset: int) -> str:
    caption = f"{offset:+d}" if offset else "anchor"
    if offset in view.frames:
        caption += f", frame {view.frames[offset]}"
    stored = view.images.get((camera, offset))
    if stored is None:
        return figure(image_placeholder("not in the sample"), caption)
    if stored.image is None:
        return figure(image_placeholder(stored.problem), caption)
    # The image of a padded step is that of the first or last frame.
    real = np.flatnonzero(view.past_mask | view.future_mask)
    step = int(np.clip(view.anchor + offset, real[0], real[-1])) if len(real) else view.anchor
    drawing = draw_poses(view.tracks, step, stored.camera, view.length) if stored.camera else ""
    return figure(thumbnail(stored.image, f"{camera}, {caption}", drawing), caption)


def _window(view: SampleView) -> str:
    axis = _step_axis(view)
    left = _column("Actions", axis, view, view.actions)
    right = _column("Proprioception", axis, view, view.proprioception)
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def _step_axis(view: SampleView) -> Axis:
    """Axis of steps from the anchor; padding is shaded."""
    steps = np.arange(view.length) - view.anchor
    gutter = view.length * _GUTTER / (_CHART_WIDTH - _GUTTER)
    padded = steps[~(view.past_mask | view.future_mask)].tolist()
    return Axis(
        float(steps[0]) - 0.5 - gutter,
        float(steps[-1]) + 0.5,
        anchor=0.0,
        shaded=tuple((step - 0.5, step + 0.5) for step in padded),
        width=_CHART_WIDTH,
    )


def _column(title: str, axis: Axis, view: SampleView, fields: Mapping[str, Array]) -> str:
    """Charts of fields, then the masks, all on one axis."""
    if not fields:
        return ""
    steps = np.arange(view.length) - view.anchor
    charts = (
        _chart(axis, name, _lines(name, steps, values, view.names), dots=True)
        for name, values in fields.items()
    )
    masks = cells(axis, steps, view.past_mask, "past") + cells(
        axis, steps, view.future_mask, "future"
    )
    seconds = f" of {1 / view.fps:.3g} s" if view.fps else ""
    caption = f"masks of the steps{seconds} from the anchor; shaded above: padding"
    return (
        heading(title, "".join(charts))
        + f'<div class="label quiet">{caption}</div>{masks}{axis_chart(axis, _ticks(view))}'
    )


def _ticks(view: SampleView) -> list[tuple[float, str]]:
    stride = max(1, -(-view.length // _TICKS))
    first = -(view.anchor // stride) * stride
    steps = range(first, view.length - view.anchor, stride)
    return [(float(step), f"{step:+d}" if step else "0") for step in steps]


def _metadata(metadata: Mapping[str, Any]) -> str:
    texts = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in metadata.items()
    }
    return table(("key", "value"), [(name, code(text)) for name, text in texts.items()])
