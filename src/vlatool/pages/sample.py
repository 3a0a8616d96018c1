"""A training sample as a card: its pictures, its window with the padding, its masks.

Legend of shapes: T steps of the window, C channels.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.inspection.sample_view import SampleView
from vlatool.pages.episode import labelled_chart
from vlatool.pages.fields import channel_names
from vlatool.pages.layout import (
    Section,
    code,
    details,
    escape,
    heading,
    sentences,
    table,
    tags,
)
from vlatool.pages.pictures import (
    THUMBNAIL_WIDTH,
    draw_poses,
    figure,
    lost_picture,
    pose_legend,
    thumbnail,
)
from vlatool.pages.plots import Axis, axis_chart, cells, channels, line_chart

_CHART_WIDTH = 560.0
# Room for the numbers at the left of a chart, in its pixels.
_GUTTER = 48.0
_TICKS = 16
# Up to so many pictures stand side by side.
_ROW = 8


def sample_section(view: SampleView) -> Section:
    """The card."""
    has_lens = any(shot.lens for shot in view.pictures.values())
    body = (
        tags(view.facts)
        + f'<div class="small quiet">{code(view.key)}</div>'
        + heading("Language", sentences(view.language))
        + heading("Pictures", _pictures(view))
        + (pose_legend(view.tracks) if has_lens else "")
        + _window(view)
        + details("Metadata", _metadata(view.metadata))
    )
    return Section(view.name, body, is_under=True)


def _pictures(view: SampleView) -> str:
    """Cameras in rows of equal length, the offsets of each side by side."""
    cameras = list(dict.fromkeys(camera for camera, _ in view.pictures))
    offsets = sorted({offset for _, offset in view.pictures})
    if not cameras:
        return ""
    rows = -(-len(cameras) // max(1, _ROW // len(offsets)))
    blocks = "".join(
        f'<div><div class="label">{escape(camera)}</div>'
        f'<div class="strip">{"".join(_picture(view, camera, at) for at in offsets)}</div></div>'
        for camera in cameras
    )
    widest = THUMBNAIL_WIDTH * len(offsets)
    columns = f"repeat({-(-len(cameras) // rows)}, minmax(0, {widest}px))"
    return f'<div class="grid" style="grid-template-columns: {columns}">{blocks}</div>'


def _picture(view: SampleView, camera: str, offset: int) -> str:
    caption = f"{offset:+d}" if offset else "anchor"
    if offset in view.frames:
        caption += f", frame {view.frames[offset]}"
    shot = view.pictures.get((camera, offset))
    if shot is None:
        return figure(lost_picture("not in the sample"), caption)
    if shot.picture is None:
        return figure(lost_picture(shot.problem), caption)
    # A picture from outside the episode is that of its first or last frame.
    real = np.flatnonzero(view.past_mask | view.future_mask)
    step = int(np.clip(view.anchor + offset, real[0], real[-1])) if len(real) else view.anchor
    drawing = draw_poses(view.tracks, step, shot.lens, view.length) if shot.lens else ""
    return figure(thumbnail(shot.picture, f"{camera}, {caption}", drawing), caption)


def _window(view: SampleView) -> str:
    axis = _axis(view)
    left = _column("Actions", axis, view, view.actions)
    right = _column("Proprioception", axis, view, view.proprioception)
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def _axis(view: SampleView) -> Axis:
    """Steps from the anchor; padding lies in the shade."""
    steps = np.arange(view.length) - view.anchor
    gutter = view.length * _GUTTER / (_CHART_WIDTH - _GUTTER)
    padded = steps[~(view.past_mask | view.future_mask)].tolist()
    return Axis(
        float(steps[0]) - 0.5 - gutter,
        float(steps[-1]) + 0.5,
        now=0.0,
        shaded=tuple((step - 0.5, step + 0.5) for step in padded),
        width=_CHART_WIDTH,
    )


def _column(title: str, axis: Axis, view: SampleView, fields: Mapping[str, Array]) -> str:
    """The charts of some fields over the masks, all on one axis."""
    if not fields:
        return ""
    steps = np.arange(view.length) - view.anchor
    charts: list[str] = []
    for name, values in fields.items():
        lines = channels(steps, values, channel_names(name, values.shape[1]))
        charts.append(labelled_chart(name, lines, line_chart(axis, lines, dots=True)))
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
    rows = [
        (name, code(json.dumps(value, ensure_ascii=False) if _is_tree(value) else value))
        for name, value in metadata.items()
    ]
    return table(("key", "value"), rows)


def _is_tree(value: object) -> bool:
    return isinstance(value, dict | list)
