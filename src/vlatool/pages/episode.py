"""An episode as a card: pictures and numbers over one time axis.

Legend of shapes: S recorded positions (all frames, or the anchors that have a sample), C channels.
"""

from collections.abc import Mapping, Sequence

from vlatool.episode import Array
from vlatool.inspection.episode_view import EpisodeView
from vlatool.inspection.shots import Shot
from vlatool.pages.fields import channel_names, field_label, unit
from vlatool.pages.layout import Section, escape, heading, note, sentences, tags
from vlatool.pages.pictures import draw_poses, figure, lost_picture, pose_legend, thumbnail
from vlatool.pages.plots import Axis, Channels, axis_chart, channels, legend, line_chart

# Trails reach this many columns of the strip back and ahead.
_TRAIL_COLUMNS = 1.5


def episode_section(view: EpisodeView, *, is_under: bool = True) -> Section:
    """The card."""
    axis = _axis(view)
    rows = [
        *(_strip(view, name, shots) for name, shots in view.cameras.items()),
        _charts("Actions", axis, view, view.actions),
        _charts("Proprioception", axis, view, view.proprioception),
    ]
    ticks = [
        (float(view.seconds[at]), f"{view.seconds[at]:.2f} s" if at == 0 else _seconds(view, at))
        for at in view.shown
    ]
    body = (
        tags(view.facts)
        + "".join(map(note, view.problems))
        + heading("Language", sentences(view.language))
        + heading("Recording", pose_legend(view.tracks if _has_lens(view) else ()) or " ")
        + f'<div class="time" data-low="{axis.low:.6g}" data-high="{axis.high:.6g}">'
        + "".join(rows)
        + axis_chart(axis, ticks)
        + "</div>"
    )
    return Section(view.name, body, is_under=is_under)


def labelled_chart(field: str, lines: Channels, chart: str) -> str:
    """A chart under the name, the unit and the lines of its field."""
    measure = unit(field)
    suffix = f' <span class="quiet">[{measure}]</span>' if measure else ""
    return f'<div class="label">{field_label(field)}{suffix} &ensp;{legend(lines)}</div>{chart}'


def _axis(view: EpisodeView) -> Axis:
    """Time, laid out so that each mark is under the middle of its picture."""
    times = view.seconds[list(view.shown)]
    first, last = float(times[0]), float(times[-1])
    half = (last - first) / (len(times) - 1) / 2 if len(times) > 1 else 0.5 / view.fps
    return Axis(first - half, last + half, marks=tuple(times.tolist()))


def _seconds(view: EpisodeView, position: int) -> str:
    return f"{view.seconds[position]:.2f}"


def _has_lens(view: EpisodeView) -> bool:
    return any(shot.lens for shots in view.cameras.values() for shot in shots)


def _strip(view: EpisodeView, name: str, shots: Sequence[Shot]) -> str:
    step = (view.shown[-1] - view.shown[0]) / max(len(view.shown) - 1, 1)
    reach = max(1, round(_TRAIL_COLUMNS * step))
    pictures = "".join(
        _shot(view, name, position, shot, reach)
        for position, shot in zip(view.shown, shots, strict=True)
    )
    sizes = {shot.picture.size for shot in shots if shot.picture}
    size = ", ".join(f"{width} x {height} px" for width, height in sorted(sizes))
    label = f'{escape(name)} <span class="quiet">{size}</span>'
    return f'<div class="label">{label}</div><div class="strip">{pictures}</div>'


def _shot(view: EpisodeView, name: str, position: int, shot: Shot, reach: int) -> str:
    frame = int(view.frames[position])
    if shot.picture is None:
        content = lost_picture(shot.problem)
    else:
        drawing = draw_poses(view.tracks, position, shot.lens, reach) if shot.lens else ""
        content = thumbnail(shot.picture, f"{name}, frame {frame}", drawing)
    return figure(content, f"frame {frame}")


def _charts(title: str, axis: Axis, view: EpisodeView, fields: Mapping[str, Array]) -> str:
    rows: list[str] = []
    for name, values in fields.items():
        lines = channels(view.seconds, values, channel_names(name, values.shape[1]))
        rows.append(labelled_chart(name, lines, line_chart(axis, lines)))
    return heading(title, "".join(rows))
