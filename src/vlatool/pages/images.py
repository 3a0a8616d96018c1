"""Images on a page, strips of them with end effectors, and the card of an episode.

Legend of shapes: S positions in time (frames of an episode, anchors, steps of a window), C
dimensions of a field.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlatool.episode import Array, LanguageSpan, UInt8Array
from vlatool.events import counted
from vlatool.pages.charts import Axis, FieldValues, field_charts, span_charts
from vlatool.pages.layout import Section, escape, heading, note, sentences, tags
from vlatool.storage.atomic import write_bytes
from vlatool.transforms.geometry import project
from vlatool.transforms.neighbors import spread
from vlatool.transforms.rotations import matrix_from_rot6d

# Drawn length of the gripper's axes in meters: about a hand.
_AXIS_LENGTH = 0.08
_AXIS_COLORS = ("#ff4d3d", "#19c37d", "#2f7bff")
_FADES = 5
# Trails end this many image sizes outside the image, so that coordinates stay small.
_MARGIN = 1.0


@dataclass(frozen=True)
class CameraModel:
    """Projection into an image."""

    intrinsics: Array  # [3, 3] in pixels of the image
    extrinsics: Array  # base_T_camera [4, 4]
    size: tuple[int, int]  # (width, height) of the image in pixels

    @classmethod
    def at(
        cls, intrinsics: Array | None, extrinsics: Array | None, row: int, size: tuple[int, int]
    ) -> "CameraModel | None":
        """Camera model at a row of static or per-row matrices; None if they are not usable."""
        matrices: list[Array] = []
        for values, width in ((intrinsics, 3), (extrinsics, 4)):
            if values is None or values.dtype.kind != "f" or values.shape[-2:] != (width, width):
                return None
            matrix = values if values.ndim == 2 else values[min(row, len(values) - 1)]
            if matrix.shape != (width, width) or not np.isfinite(matrix).all():
                return None
            matrices.append(matrix)
        return cls(matrices[0], matrices[1], size)


@dataclass(frozen=True)
class EndEffectorTrack:
    """Poses of one end effector over time."""

    arm: str
    color: int
    xyz: Array  # positions [S, 3] in the base frame
    rot6d: Array | None  # rotations [S, 6]; None if unknown


def pose_legend(tracks: Sequence[EndEffectorTrack]) -> str:
    """Legend of the drawn end effectors; empty without tracks."""
    arms = "".join(
        f'<span class="key"><i style="border-color:var(--arm{track.color})"></i>'
        f"{escape(track.arm)}</span>"
        for track in tracks
    )
    axes = "".join(
        f'<span class="key"><i style="border-color:{color}"></i>{name}</span>'
        for name, color in zip("xyz", _AXIS_COLORS, strict=True)
    )
    return (
        f'<p class="legend quiet">End effector, projected: {arms} ring: current frame; line: '
        f"before; dotted: after; short axes: {axes}</p>" * bool(tracks)
    )


def draw_poses(
    tracks: Sequence[EndEffectorTrack], position: int, camera: CameraModel, reach: int
) -> str:
    """SVG of end effectors over an image, in its pixels."""
    unit = camera.size[0] / 140
    return "".join(_draw(track, position, camera, reach, unit) for track in tracks)


def _draw(
    track: EndEffectorTrack, position: int, camera: CameraModel, reach: int, unit: float
) -> str:
    first = max(position - reach, 0)
    last = min(position + reach, len(track.xyz) - 1)
    points = _image_points(track.xyz[first : last + 1], camera)
    color = f"var(--arm{track.color})"
    before = _trail(points[: position - first + 1][::-1], color, unit, dotted=False)
    after = _trail(points[position - first :], color, unit, dotted=True)
    return before + after + _pose(track, position, camera, color, unit)


def _image_points(xyz: Array, camera: CameraModel) -> Array:
    """Points [N, 2] in the drawing, in pixels from its corner; NaN if they cannot be drawn."""
    pixels, _ = project(xyz, camera.intrinsics, camera.extrinsics)
    points = pixels + 0.5
    size = np.array(camera.size)
    with np.errstate(invalid="ignore"):
        far = (points < -_MARGIN * size) | (points > (1 + _MARGIN) * size)
    points[far.any(axis=1)] = np.nan
    return points


def _trail(points: Array, color: str, unit: float, *, dotted: bool) -> str:
    """Line through points [N, 2] that fades with the distance from the first."""
    steps = len(points) - 1
    segments: list[str] = []
    for fade in range(_FADES):
        start = fade * steps // _FADES
        stop = (fade + 1) * steps // _FADES
        text = _svg_points(points[start : stop + 1])
        if text:
            segments.append(
                f'<polyline points="{text}" style="opacity:{1 - fade / (_FADES + 0.5):.2f}"/>'
            )
    if not segments:
        return ""
    dash = f' stroke-dasharray="{0.1 * unit:.2f} {5 * unit:.1f}"' if dotted else ""
    line = f'stroke-linecap="round" stroke-linejoin="round"{dash}'
    body = "".join(segments)
    return (
        f'<g fill="none" stroke="#000" stroke-opacity=".35" {line} '
        f'style="stroke-width:{3.8 * unit:.2f}px" class="trail">{body}</g>'
        f'<g fill="none" stroke="{color}" {line} '
        f'style="stroke-width:{2.6 * unit:.2f}px" class="trail">{body}</g>'
    )


def _svg_points(points: Array) -> str:
    """Finite points [N, 2] as SVG text; empty if they do not make a visible line."""
    finite = points[np.isfinite(points).all(axis=1)]
    if len(finite) < 2 or np.ptp(finite, axis=0).max() < 0.05:
        return ""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in finite)


def _pose(
    track: EndEffectorTrack, position: int, camera: CameraModel, color: str, unit: float
) -> str:
    """Ring at an end effector, with its axes if the rotation is known."""
    origin = track.xyz[position]
    xyz = [origin]
    if track.rot6d is not None and np.isfinite(track.rot6d[position]).all():
        # The columns of the rotation are the gripper's axes in the base frame.
        xyz += list(origin + _AXIS_LENGTH * matrix_from_rot6d(track.rot6d[position]).T)
    points = _image_points(np.array(xyz, np.float64), camera)
    if not np.isfinite(points[0]).all():
        return ""
    x, y = points[0]
    axes = "".join(
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{tip_x:.1f}" y2="{tip_y:.1f}" stroke="{axis}" '
        f'stroke-width="{2.2 * unit:.2f}" stroke-linecap="round"/>'
        for (tip_x, tip_y), axis in zip(points[1:], _AXIS_COLORS, strict=False)
        if np.isfinite([tip_x, tip_y]).all()
    )
    ring = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4.2 * unit:.2f}" fill="none" '
        f'stroke="{{}}" stroke-width="{{:.2f}}"/>'
    )
    return axes + ring.format("#000", 3.2 * unit) + ring.format(color, 1.9 * unit)


THUMBNAIL_SIZE = 240
_QUALITY = 78
# Longer strips have smaller images, and more in a row.
_FEW = 10
_SMALL_SIZE = 160


@dataclass(frozen=True)
class FrameView:
    """Image of a camera at one position in time."""

    image: Image.Image | None  # recorded image, RGB; None if it cannot be shown
    camera: CameraModel | None = None  # camera model; None without calibration
    problem: str = ""  # reason for a missing image


def frame_view(
    frame: UInt8Array, intrinsics: Array | None, extrinsics: Array | None, row: int
) -> FrameView:
    """Decoded image uint8 [H, W, 3] with the camera model at a row of the matrices."""
    image = Image.fromarray(frame)
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, row, image.size))


def thumbnail(
    image: Image.Image, description: str, drawing: str = "", largest: int = THUMBNAIL_SIZE
) -> str:
    """HTML of an image, at most `largest` px wide and high; `drawing` is SVG in its pixels."""
    width, height = image.size
    small = image
    if (scale := largest / max(width, height)) < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    overlay = f'<svg viewBox="0 0 {width} {height}">{drawing}</svg>' if drawing else ""
    return (
        f'<span class="image"><img alt="{escape(description)}" width="{small.width}" '
        f'height="{small.height}" src="data:image/jpeg;base64,{data}">{overlay}</span>'
    )


def video(source: str | bytes, caption: str) -> str:
    """Figure of an mp4: the file itself, embedded, or its path relative to the page."""
    if isinstance(source, bytes):
        source = f"data:video/mp4;base64,{base64.b64encode(source).decode()}"
    shown = f'<video controls muted loop playsinline preload="metadata" src="{escape(source)}">'
    return figure(f"{shown}</video>", caption)


# Videos on a page; further ones are files beside it.
MAX_VIDEO_BYTES = 50 * 10**6


class PageVideos:
    """Videos of one page: embedded up to 50 MB in all, further ones in a folder beside it."""

    def __init__(self, page: Path) -> None:
        self._folder = page.with_name(f"{page.stem}_files")
        self._left = MAX_VIDEO_BYTES
        self._files: set[str] = set()

    def figure(self, name: str, data: bytes, caption: str) -> str:
        """Figure of an mp4; `name`: stem of its file without `episode_`, unique on the page."""
        if len(data) <= self._left:
            self._left -= len(data)
            return video(data, caption)
        file = self._folder / f"episode_{name}.mp4"
        write_bytes(file, data)
        self._files.add(file.name)
        return video(f"{self._folder.name}/{file.name}", caption)

    def remove_others(self) -> None:
        """Removes videos of an earlier page of this name."""
        for file in self._folder.glob("episode_*.mp4"):
            if file.name not in self._files:
                file.unlink()


def image_placeholder(reason: str) -> str:
    return f'<span class="image missing">{escape(reason)}</span>'


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def frame_figure(
    view: FrameView,  # image
    description: str,  # alternative text
    caption: str,  # text below
    drawing: str = "",  # SVG elements over the image
    largest: int = THUMBNAIL_SIZE,  # largest width and height in the file, in pixels
) -> str:
    """Image with a caption below, or the reason why it is missing."""
    if view.image is None:
        return figure(image_placeholder(view.problem), caption)
    return figure(thumbnail(view.image, description, drawing, largest), caption)


def tile(view: FrameView, number: int, name: str, lines: Sequence[str], anchor: str) -> str:
    """Link to a part of the page: an image over the number, the name and lines of text."""
    image = image_placeholder(view.problem)
    if view.image is not None:
        image = thumbnail(view.image, name, largest=_SMALL_SIZE)
    below = "".join(f"<span>{escape(line)}</span>" for line in (name, *lines) if line)
    return f'<a href="#{anchor}">{image}<b>{number}</b>{below}</a>'


def gallery(tiles: Sequence[str]) -> str:
    """Tiles side by side; many have a box that shows those with a text, and one that sorts them."""
    boxes = '<input class="filter" type="search" placeholder="filter: name, instruction, length">'
    keys = enumerate(("number", "name", "length", "instruction"))
    choices = "".join(f'<option value="{index}">by {key}</option>' for index, key in keys)
    boxes += f' <select class="filter" aria-label="sort">{choices}</select>'
    shown = f"<div>{boxes}</div>" * (len(tiles) > _FEW)
    return f'{shown}<div class="gallery">{"".join(tiles)}</div>'


def crop_drawing(size: tuple[int, int], inner: tuple[float, float, float, float]) -> str:
    """SVG that darkens what a crop leaves out of an image of `size` (width, height) px."""
    (width, height), (left, top, right, bottom) = size, inner
    outside = f"M0 0H{width}V{height}H0Z"
    inside = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"
    return (
        f'<path fill="#000" fill-opacity=".55" fill-rule="evenodd" d="{outside}{inside}"/>'
        f'<path fill="none" stroke="#ffd34d" stroke-width="{width / 120:.1f}" '
        f'stroke-dasharray="{width / 40:.1f}" d="{inside}"/>'
    )


def strip(label: str, figures: Iterable[str], *, size: str = "") -> str:
    """Rows of figures; `label`: HTML above them; may be empty."""
    shown = list(figures)
    size = size or ("" if len(shown) <= _FEW else "many")
    head = f'<div class="label">{label}</div>' if label else ""
    style = f"strip {size}".strip()
    return f'{head}<div class="{style}">{"".join(shown)}</div>' if shown else ""


def camera_strips(cameras: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """Row of images per camera, captioned with their steps from `first` on."""
    return "".join(
        strip(
            escape(camera),
            (
                frame_figure(
                    view,
                    f"{camera}, {step_text(step)}",
                    step_text(step),
                    largest=THUMBNAIL_SIZE if len(views) <= _FEW else _SMALL_SIZE,
                )
                for step, view in enumerate(views, first)
            ),
        )
        for camera, views in cameras.items()
    )


def step_text(step: int) -> str:
    """Step relative to the anchor as text."""
    return f"{step:+d}" if step else "anchor"


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
    spans: Sequence[LanguageSpan] = ()  # texts of some of the frames
    problems: Sequence[str] = ()  # messages about contents that cannot be shown
    videos: Sequence[str] = ()  # a figure per camera
    video_fps: float = 1.0  # frames per second of the videos
    is_brief: bool = False  # True if it has the first camera only

    @property
    def seconds(self) -> Array:
        """Time of each position [S]."""
        return self.frames / self.fps


def shown_positions(count: int, *, is_brief: bool = False) -> list[int]:
    """Positions in the strip: the first, the last, and evenly spaced ones between."""
    return spread(count, _BRIEF_FRAMES if is_brief else _STRIP_FRAMES)


def episode_tile(view: EpisodeView, number: int, anchor: str) -> str:
    """Link to a card of an episode: an image of its first camera, number, name, length, text."""
    views = next(iter(view.cameras.values()), ())
    text = next((text for texts in view.language.values() for text in texts), "")
    image = views[len(views) // 2] if views else FrameView(None, problem="no camera")
    return tile(image, number, view.name, [counted(len(view.frames), "frame"), text], anchor)


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
        + f'<div class="time" data-low="{axis.low:.6g}" data-high="{axis.high:.6g}" '
        + f'data-speed="{view.video_fps / view.fps:.6g}">'
        + heading("Videos", strip("", view.videos))
        + heading("Texts over time", span_charts(axis, view.fps, view.spans))
        + heading("Actions", field_charts(axis, view.seconds, view.actions))
        + heading("Proprioception", field_charts(axis, view.seconds, view.proprioception))
        + "</div>"
    )
    return Section(view.name, body, is_under=is_under, anchor=anchor)


def _time_axis(view: EpisodeView) -> Axis:
    """Time axis with a mark for each image of the strips."""
    first = float(view.seconds[0])
    last = float(view.seconds[-1])
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
