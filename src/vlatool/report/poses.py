"""Draws end effectors over an image, as SVG elements in its pixels.

Legend of shapes: S positions in time (frames of an episode, steps of a window).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.transforms.geometry import project
from vlatool.transforms.rotations import matrix_from_rot6d

# Drawn length of the gripper's axes in meters: about a hand.
_AXIS_LENGTH = 0.08
_AXIS_COLORS = ("#ff4d3d", "#19c37d", "#2f7bff")
_COLOR_NAMES = ("light blue", "orange", "purple")  # of --arm0 to --arm2 in page.html
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
        """Camera model at a row of static or per-row matrices; None if they cannot be used."""
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
    """What the drawn end effectors show; empty without tracks."""
    if not tracks:
        return ""
    arms = ", ".join(f"{track.arm} {_COLOR_NAMES[track.color]}" for track in tracks)
    return (
        f"End effector, projected: {arms}; ring: current frame; line: before; dotted: after; "
        "short axes: x red, y green, z blue"
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
