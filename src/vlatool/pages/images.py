"""Pictures on a page: small, inside the file, with end effectors drawn over them.

Legend of shapes: S positions in time (frames of an episode, steps of a window).
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlatool.episode import Array
from vlatool.inspection.projection import CameraModel, EndEffectorTrack
from vlatool.pages.layout import escape
from vlatool.transforms.geometry import project
from vlatool.transforms.rotations import matrix_from_rot6d

THUMBNAIL_WIDTH = 200
_QUALITY = 80
# Drawn length of the gripper's axes, in metres: about a hand.
_AXIS_LENGTH = 0.08
_AXIS_COLORS = ("#ff4d3d", "#19c37d", "#2f7bff")
_FADES = 5
# Trails end this many picture sizes outside, so that no coordinate is absurd.
_MARGIN = 1.0


def thumbnail(image: Image.Image, description: str, drawing: str = "") -> str:
    """A picture of at most 200 pixels' width.

    Args:
        image: RGB.
        description: Text for those who do not see it.
        drawing: SVG elements over it, in pixels of `image`, whose corner is (0, 0).
    """
    width, height = image.size
    small = image
    if width > THUMBNAIL_WIDTH:
        size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
        small = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    overlay = f'<svg viewBox="0 0 {width} {height}">{drawing}</svg>' if drawing else ""
    return (
        f'<span class="picture"><img alt="{escape(description)}" width="{small.width}" '
        f'height="{small.height}" src="data:image/jpeg;base64,{data}">{overlay}</span>'
    )


def image_placeholder(reason: str) -> str:
    """What stands where a picture should be."""
    return f'<span class="picture lost">{escape(reason)}</span>'


def figure(content: str, caption: str) -> str:
    """A picture with text below."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def pose_legend(tracks: Sequence[EndEffectorTrack]) -> str:
    """What the drawings mean."""
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
        f'<p class="legend quiet">End effector, projected: {arms} ring: now; line: before; '
        f"dotted: after; short axes: {axes}</p>" * bool(tracks)
    )


def draw_poses(tracks: Sequence[EndEffectorTrack], now: int, lens: CameraModel, reach: int) -> str:
    """SVG over a picture, in its pixels.

    Args:
        tracks: End effectors.
        now: Position in time of the picture.
        lens: Its projection.
        reach: How many positions the trails go back and ahead.
    """
    unit = lens.size[0] / 140
    return "".join(_draw(track, now, lens, reach, unit) for track in tracks)


def _draw(track: EndEffectorTrack, now: int, lens: CameraModel, reach: int, unit: float) -> str:
    first, last = max(now - reach, 0), min(now + reach, len(track.xyz) - 1)
    pixels = _pixels(track.xyz[first : last + 1], lens)
    color = f"var(--arm{track.color})"
    before = _trail(pixels[: now - first + 1][::-1], color, unit, dotted=False)
    after = _trail(pixels[now - first :], color, unit, dotted=True)
    return before + after + _now(track, now, lens, color, unit)


def _pixels(points: Array, lens: CameraModel) -> Array:
    """Places [N, 2] in the drawing, whose pixels are one wide; NaN where nothing can be drawn."""
    pixels, _ = project(points, lens.intrinsics, lens.extrinsics)
    places = pixels + 0.5
    size = np.array(lens.size)
    with np.errstate(invalid="ignore"):
        far = (places < -_MARGIN * size) | (places > (1 + _MARGIN) * size)
    places[far.any(axis=1)] = np.nan
    return places


def _trail(places: Array, color: str, unit: float, *, dotted: bool) -> str:
    """A line from now on outwards that fades; [N, 2]."""
    steps = len(places) - 1
    pieces: list[str] = []
    for fade in range(_FADES):
        start, stop = fade * steps // _FADES, (fade + 1) * steps // _FADES
        points = _points(places[start : stop + 1])
        if points:
            pieces.append(
                f'<polyline points="{points}" style="opacity:{1 - fade / (_FADES + 0.5):.2f}"/>'
            )
    if not pieces:
        return ""
    dash = f' stroke-dasharray="{0.1 * unit:.2f} {5 * unit:.1f}"' if dotted else ""
    line = f'stroke-linecap="round" stroke-linejoin="round"{dash}'
    body = "".join(pieces)
    return (
        f'<g fill="none" stroke="#000" stroke-opacity=".35" {line} '
        f'style="stroke-width:{3.8 * unit:.2f}px" class="trail">{body}</g>'
        f'<g fill="none" stroke="{color}" {line} '
        f'style="stroke-width:{2.6 * unit:.2f}px" class="trail">{body}</g>'
    )


def _points(places: Array) -> str:
    """The part of a piece that can be drawn, as SVG points; empty for less than a line."""
    finite = places[np.isfinite(places).all(axis=1)]
    if len(finite) < 2 or np.ptp(finite, axis=0).max() < 0.05:
        return ""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in finite)


def _now(track: EndEffectorTrack, now: int, lens: CameraModel, color: str, unit: float) -> str:
    origin = track.xyz[now]
    points = [origin]
    if track.rot6d is not None and np.isfinite(track.rot6d[now]).all():
        # The columns of the rotation are the gripper's axes in the base frame.
        points += list(origin + _AXIS_LENGTH * matrix_from_rot6d(track.rot6d[now]).T)
    places = _pixels(np.array(points, np.float64), lens)
    if not np.isfinite(places[0]).all():
        return ""
    x, y = places[0]
    axes = "".join(
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{tip_x:.1f}" y2="{tip_y:.1f}" stroke="{axis}" '
        f'stroke-width="{2.2 * unit:.2f}" stroke-linecap="round"/>'
        for (tip_x, tip_y), axis in zip(places[1:], _AXIS_COLORS, strict=False)
        if np.isfinite([tip_x, tip_y]).all()
    )
    ring = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4.2 * unit:.2f}" fill="none" '
        f'stroke="{{}}" stroke-width="{{:.2f}}"/>'
    )
    return axes + ring.format("#000", 3.2 * unit) + ring.format(color, 1.9 * unit)
