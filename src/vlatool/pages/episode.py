"""Card of an episode: strips of its cameras, and charts of its fields over time.

Legend of shapes: S positions (all frames, or the anchors that have a sample), C dimensions of a
field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.pages.images import FrameView, frame_figure, strip
from vlatool.pages.layout import Section, escape, heading, note, sentences, tags
from vlatool.pages.plots import Axis, FieldValues, axis_chart, field_chart
from vlatool.pages.poses import EndEffectorTrack, draw_poses, pose_legend

_STRIP_FRAMES = 8
# Length of a trail before and after an image, in columns of the strip.
_TRAIL_COLUMNS = 1.5


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
        actions: Action fields over the positions.
        proprioception: Proprioception fields over the positions.
        tracks: End effectors over the positions.
        language: Map from kind of annotation to sentences.
        problems: Messages about contents that cannot be shown.
    """

    name: str
    info: Mapping[str, object]
    fps: float
    frames: Array
    shown: Sequence[int]
    cameras: Mapping[str, Sequence[FrameView]]
    actions: Sequence[FieldValues]
    proprioception: Sequence[FieldValues]
    tracks: Sequence[EndEffectorTrack]
    language: Mapping[str, Sequence[str]]
    problems: Sequence[str] = ()

    @property
    def seconds(self) -> Array:
        """Time of each position [S]."""
        return self.frames / self.fps


def shown_positions(count: int) -> list[int]:
    """Positions in the strip: the first, the last, and evenly spaced ones between."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(_STRIP_FRAMES, count)).tolist()})


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


def _time_axis(view: EpisodeView) -> Axis:
    """Time axis on which each mark is under the center of its image."""
    times = view.seconds[list(view.shown)]
    first, last = float(times[0]), float(times[-1])
    half = (last - first) / (len(times) - 1) / 2 if len(times) > 1 else 0.5 / view.fps
    return Axis(first - half, last + half, marks=tuple(times.tolist()))


def _strip(view: EpisodeView, name: str, images: Sequence[FrameView]) -> str:
    step = (view.shown[-1] - view.shown[0]) / max(len(view.shown) - 1, 1)
    reach = max(1, round(_TRAIL_COLUMNS * step))
    figures = (
        _frame_figure(view, name, position, image, reach)
        for position, image in zip(view.shown, images, strict=True)
    )
    sizes = {shown.image.size for shown in images if shown.image}
    size = ", ".join(f"{width} x {height} px" for width, height in sorted(sizes))
    return strip(f'{escape(name)} <span class="quiet">{size}</span>', figures)


def _frame_figure(view: EpisodeView, name: str, position: int, image: FrameView, reach: int) -> str:
    caption = f"frame {int(view.frames[position])}"
    drawing = draw_poses(view.tracks, position, image.camera, reach) if image.camera else ""
    return frame_figure(image, f"{name}, {caption}", caption, drawing)


def _charts(title: str, axis: Axis, view: EpisodeView, fields: Sequence[FieldValues]) -> str:
    return heading(title, "".join(field_chart(axis, view.seconds, field) for field in fields))
