"""An episode or a training sample as a card: pictures and numbers over one axis.

Legend of shapes: S recorded positions (all frames, or the anchors that have a sample), T steps of
the window, C channels.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.artifacts.dimensions import Names, dimension_names
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

# Trails reach this many columns of an episode's strip back and ahead.
_TRAIL_COLUMNS = 1.5
_CHART_WIDTH = 560.0
# Room for the numbers at the left of a sample's chart, in its pixels.
_GUTTER = 48.0
_TICKS = 16
# Up to so many pictures stand side by side.
_ROW = 8


def episode_section(view: EpisodeView, *, is_under: bool = True) -> Section:
    """The card of an episode: strips of its cameras and charts over time."""
    axis = _time_axis(view)
    rows = [
        *(_strip(view, name, shots) for name, shots in view.cameras.items()),
        _charts("Actions", axis, view, view.actions),
        _charts("Proprioception", axis, view, view.proprioception),
    ]
    has_lens = any(shot.camera for shots in view.cameras.values() for shot in shots)
    times = ((at, float(view.seconds[at])) for at in view.shown)
    ticks = [(time, f"{time:.2f}{'' if at else ' s'}") for at, time in times]
    body = (
        tags(view.info)
        + "".join(map(note, view.problems))
        + heading("Language", sentences(view.language))
        + heading("Recording", pose_legend(view.tracks if has_lens else ()) or " ")
        + f'<div class="time" data-low="{axis.low:.6g}" data-high="{axis.high:.6g}">'
        + "".join(rows)
        + axis_chart(axis, ticks)
        + "</div>"
    )
    return Section(view.name, body, is_under=is_under)


def sample_section(view: SampleView) -> Section:
    """The card of a sample: its pictures, its window with the padding, its masks."""
    has_lens = any(shot.camera for shot in view.images.values())
    body = (
        tags(view.info)
        + f'<div class="small quiet">{code(view.key)}</div>'
        + heading("Language", sentences(view.language))
        + heading("Pictures", _images(view))
        + (pose_legend(view.tracks) if has_lens else "")
        + _window(view)
        + details("Metadata", _metadata(view.metadata))
    )
    return Section(view.name, body, is_under=True)


def _chart(axis: Axis, field: str, lines: Lines, *, dots: bool = False) -> str:
    """A field under its name, its unit and the names of its lines."""
    label = f'<div class="label">{label_with_unit(field)} &ensp;{legend(lines)}</div>'
    return label + line_chart(axis, lines, dots=dots)


def _lines(field: str, positions: Array, values: Array, names: Names) -> Lines:
    """The lines of a field [S, C]."""
    return field_lines(positions, values, dimension_names(field, values.shape[1], names))


def _time_axis(view: EpisodeView) -> Axis:
    """Time, laid out so that each mark is under the middle of its picture."""
    times = view.seconds[list(view.shown)]
    first, last = float(times[0]), float(times[-1])
    half = (last - first) / (len(times) - 1) / 2 if len(times) > 1 else 0.5 / view.fps
    return Axis(first - half, last + half, marks=tuple(times.tolist()))


def _strip(view: EpisodeView, name: str, shots: Sequence[FrameView]) -> str:
    step = (view.shown[-1] - view.shown[0]) / max(len(view.shown) - 1, 1)
    reach = max(1, round(_TRAIL_COLUMNS * step))
    images = "".join(
        _shot(view, name, position, shot, reach)
        for position, shot in zip(view.shown, shots, strict=True)
    )
    sizes = {shot.image.size for shot in shots if shot.image}
    size = ", ".join(f"{width} x {height} px" for width, height in sorted(sizes))
    label = f'{escape(name)} <span class="quiet">{size}</span>'
    return f'<div class="label">{label}</div><div class="strip">{images}</div>'


def _shot(view: EpisodeView, name: str, position: int, shot: FrameView, reach: int) -> str:
    frame = int(view.frames[position])
    if shot.image is None:
        content = image_placeholder(shot.problem)
    else:
        drawing = draw_poses(view.tracks, position, shot.camera, reach) if shot.camera else ""
        content = thumbnail(shot.image, f"{name}, frame {frame}", drawing)
    return figure(content, f"frame {frame}")


def _charts(title: str, axis: Axis, view: EpisodeView, fields: Mapping[str, Array]) -> str:
    charts = (
        _chart(axis, name, _lines(name, view.seconds, values, view.names))
        for name, values in fields.items()
    )
    return heading(title, "".join(charts))


def _images(view: SampleView) -> str:
    """Cameras in rows of equal length, the offsets of each side by side."""
    cameras = list(dict.fromkeys(camera for camera, _ in view.images))
    offsets = sorted({offset for _, offset in view.images})
    if not cameras:
        return ""
    rows = -(-len(cameras) // max(1, _ROW // len(offsets)))
    blocks = "".join(
        f'<div><div class="label">{escape(camera)}</div>'
        f'<div class="strip">{"".join(_image(view, camera, at) for at in offsets)}</div></div>'
        for camera in cameras
    )
    widest = THUMBNAIL_WIDTH * len(offsets)
    columns = f"repeat({-(-len(cameras) // rows)}, minmax(0, {widest}px))"
    return f'<div class="grid" style="grid-template-columns: {columns}">{blocks}</div>'


def _image(view: SampleView, camera: str, offset: int) -> str:
    caption = f"{offset:+d}" if offset else "anchor"
    if offset in view.frames:
        caption += f", frame {view.frames[offset]}"
    shot = view.images.get((camera, offset))
    if shot is None:
        return figure(image_placeholder("not in the sample"), caption)
    if shot.image is None:
        return figure(image_placeholder(shot.problem), caption)
    # A picture from outside the episode is that of its first or last frame.
    real = np.flatnonzero(view.past_mask | view.future_mask)
    step = int(np.clip(view.anchor + offset, real[0], real[-1])) if len(real) else view.anchor
    drawing = draw_poses(view.tracks, step, shot.camera, view.length) if shot.camera else ""
    return figure(thumbnail(shot.image, f"{camera}, {caption}", drawing), caption)


def _window(view: SampleView) -> str:
    axis = _step_axis(view)
    left = _column("Actions", axis, view, view.actions)
    right = _column("Proprioception", axis, view, view.proprioception)
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def _step_axis(view: SampleView) -> Axis:
    """Steps from the anchor; padding lies in the shade."""
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
    """The charts of some fields over the masks, all on one axis."""
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
    caption = f"masks over steps{seconds} from the anchor; shaded above: padding"
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
