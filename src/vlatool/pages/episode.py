"""Card of an episode: strips of its cameras, and charts of its fields over time.

Legend of shapes: S positions (all frames, or the anchors that have a sample), C dimensions of a
field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.events import counted
from vlatool.pages.charts import Axis, FieldValues, field_charts
from vlatool.pages.images import (
    THUMBNAIL_SIZE,
    EndEffectorTrack,
    FrameView,
    draw_poses,
    frame_figure,
    pose_legend,
    strip,
    tile,
)
from vlatool.pages.layout import Section, escape, heading, note, sentences, tags

_STRIP_FRAMES = 8
_BRIEF_FRAMES = 4
_BRIEF_SIZE = 160
# Length of a trail before and after an image, in columns of the strip.
_TRAIL_COLUMNS = 1.5


@dataclass(frozen=True)
class EpisodeView:
    """Contents of an episode to show."""

    name: str  # id of the episode
    info: Mapping[str, object]  # map from name to value, shown as labels
    fps: float  # frames per second
    frames: Array  # frame of each position, int [S]
    shown: Sequence[int]  # positions in the strip, ascending
    cameras: Mapping[str, Sequence[FrameView]]  # map from camera to one view per shown position
    actions: Sequence[FieldValues]  # action fields over the positions
    proprioception: Sequence[FieldValues]  # proprioception fields over the positions
    tracks: Sequence[EndEffectorTrack]  # end effectors over the positions
    language: Mapping[str, Sequence[str]]  # map from kind of annotation to sentences
    problems: Sequence[str] = ()  # messages about contents that cannot be shown
    is_brief: bool = False  # True if it has the first camera only

    @property
    def seconds(self) -> Array:
        """Time of each position [S]."""
        return self.frames / self.fps


def shown_positions(count: int, *, is_brief: bool = False) -> list[int]:
    """Positions in the strip: the first, the last, and evenly spaced ones between."""
    most = min(_BRIEF_FRAMES if is_brief else _STRIP_FRAMES, count)
    return sorted({round(i) for i in np.linspace(0, count - 1, most).tolist()})


def episode_tile(view: EpisodeView, anchor: str) -> str:
    """Link to a card of an episode: an image of its first camera, name, length, instruction."""
    views = next(iter(view.cameras.values()), ())
    text = next((text for texts in view.language.values() for text in texts), "")
    image = views[len(views) // 2] if views else FrameView(None, problem="no camera")
    return tile(image, view.name, [counted(len(view.frames), "frame"), text], anchor)


def brief_card(view: EpisodeView, anchor: str, hint: str) -> str:
    """Small card of an episode: its strips in small images and the charts of its actions."""
    axis = _time_axis(view)
    strips = (_strip(view, name, images, _BRIEF_SIZE) for name, images in view.cameras.items())
    return (
        f'<div class="brief" id="{anchor}">{heading(view.name, tags(view.info))}'
        + "".join(map(note, view.problems))
        + sentences(view.language, limit=1)
        + "".join(strips)
        + field_charts(axis, view.seconds, view.actions)
        + f'<p class="small quiet">{escape(hint)}</p></div>'
    )


def episode_section(view: EpisodeView, *, is_under: bool = True, anchor: str = "") -> Section:
    """Card of an episode: strips of its cameras and charts over time."""
    axis = _time_axis(view)
    strips = [_strip(view, name, images) for name, images in view.cameras.items()]
    is_calibrated = any(image.camera for images in view.cameras.values() for image in images)
    body = (
        tags(view.info)
        + "".join(map(note, view.problems))
        + heading("Language", sentences(view.language))
        + heading("Recording", pose_legend(view.tracks if is_calibrated else ()) or " ")
        + "".join(strips)
        + f'<div class="time" data-low="{axis.low:.6g}" data-high="{axis.high:.6g}">'
        + heading("Actions", field_charts(axis, view.seconds, view.actions))
        + heading("Proprioception", field_charts(axis, view.seconds, view.proprioception))
        + "</div>"
    )
    return Section(view.name, body, is_under=is_under, anchor=anchor)


def _time_axis(view: EpisodeView) -> Axis:
    """Time axis with a mark for each image of the strips."""
    first, last = float(view.seconds[0]), float(view.seconds[-1])
    if first == last:
        last = first + 1 / view.fps
    return Axis(first, last, marks=tuple(view.seconds[list(view.shown)].tolist()))


def _strip(
    view: EpisodeView, name: str, images: Sequence[FrameView], largest: int = THUMBNAIL_SIZE
) -> str:
    step = (view.shown[-1] - view.shown[0]) / max(len(view.shown) - 1, 1)
    reach = max(1, round(_TRAIL_COLUMNS * step))
    figures = (
        _frame_figure(view, name, position, image, reach, largest)
        for position, image in zip(view.shown, images, strict=True)
    )
    sizes = {shown.image.size for shown in images if shown.image}
    size = ", ".join(f"{width} x {height} px" for width, height in sorted(sizes))
    return strip(f'{escape(name)} <span class="quiet">{size}</span>', figures)


def _frame_figure(
    view: EpisodeView, name: str, position: int, image: FrameView, reach: int, largest: int
) -> str:
    caption = f"frame {int(view.frames[position])}"
    drawing = draw_poses(view.tracks, position, image.camera, reach) if image.camera else ""
    return frame_figure(image, f"{name}, {caption}", caption, drawing, largest)
