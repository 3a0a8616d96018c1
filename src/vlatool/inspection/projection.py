"""Images with their camera models, and the end effectors to project into them.

Legend of shapes: S positions in time (frames of an episode, steps of a window).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlatool.artifacts.image import decode_rgb, open_image
from vlatool.artifacts.sample import StoredSample
from vlatool.episode import Array, UInt8Array

_POSITION = re.compile(r"^robot__actual__poses__(?P<arm>.+)__xyz$")
_ARMS = 3


@dataclass(frozen=True)
class CameraModel:
    """Projection into an image.

    Attributes:
        intrinsics: [3, 3] in pixels of the image.
        extrinsics: base_T_camera [4, 4].
        size: (width, height) of the image in pixels.
    """

    intrinsics: Array
    extrinsics: Array
    size: tuple[int, int]

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
class FrameView:
    """Image of a camera at one position in time.

    Attributes:
        image: Recorded image, RGB; None if it cannot be shown.
        camera: Camera model; None without calibration.
        problem: Reason for a missing image.
    """

    image: Image.Image | None
    camera: CameraModel | None = None
    problem: str = ""


@dataclass(frozen=True)
class EndEffectorTrack:
    """Poses of one end effector over time.

    Attributes:
        arm: Name of the arm.
        color: Number of its color.
        xyz: Positions [S, 3] in the base frame.
        rot6d: Rotations [S, 6]; None if unknown.
    """

    arm: str
    color: int
    xyz: Array
    rot6d: Array | None


def position_fields(names: Iterable[str]) -> dict[str, str]:
    """Map from measured position field to measured rotation field, by their published names."""
    matches = filter(None, map(_POSITION.match, names))
    return {m.string: f"{m.string.removesuffix('xyz')}rot_6d" for m in matches}


def pose_tracks(
    fields: Mapping[str, Array], pairs: Mapping[str, str]
) -> tuple[EndEffectorTrack, ...]:
    """Tracks of the position fields that exist; rotations are optional.

    Args:
        fields: Map from field name to values [S, C].
        pairs: Map from position field to rotation field.
    """
    tracks: list[EndEffectorTrack] = []
    for position, rotation in pairs.items():
        xyz, rot6d = fields.get(position), fields.get(rotation)
        if xyz is None or xyz.shape[1:] != (3,) or xyz.dtype.kind != "f":
            continue
        has_rotation = rot6d is not None and rot6d.shape == (len(xyz), 6)
        match = _POSITION.match(position)
        arm = match["arm"] if match else position
        tracks.append(
            EndEffectorTrack(arm, len(tracks) % _ARMS, xyz, rot6d if has_rotation else None)
        )
    return tuple(tracks)


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
        image = _open_image(sample.members[suffix])
    except (OSError, ValueError):
        return FrameView(None, problem=f"{suffix} cannot be decoded")
    intrinsics = arrays.get(f"rescaled_intrinsics.{view[0]}")
    extrinsics = arrays.get(f"extrinsics.{view[0]}")
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, max(row, 0), image.size))


def file_view(path: Path) -> FrameView:
    """Image of a file."""
    try:
        return FrameView(_open_image(path.read_bytes()))
    except FileNotFoundError:
        return FrameView(None, problem="is missing")
    except (OSError, ValueError):
        return FrameView(None, problem="cannot be decoded")


def frame_view(
    frame: UInt8Array, intrinsics: Array | None, extrinsics: Array | None, row: int
) -> FrameView:
    """Decoded image uint8 [H, W, 3] with the camera model at a row of the matrices."""
    image = Image.fromarray(frame)
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, row, image.size))


def _open_image(data: bytes) -> Image.Image:
    """Decodes a JPEG or PNG as RGB."""
    with open_image(data) as image:
        if image.mode.startswith("I"):
            return _values_as_gray(image)
    return Image.fromarray(decode_rgb(data))


def _values_as_gray(image: Image.Image) -> Image.Image:
    """Depth or labels of 16 bits, scaled to visible gray values; 0 stays black."""
    values = np.asarray(image, np.float64)
    positive = values[values > 0]
    if not positive.size:
        return Image.new("RGB", image.size)
    low, high = positive.min(), positive.max()
    gray = 60 + 195 * (values - low) / max(high - low, 1)
    return Image.fromarray(np.where(values > 0, gray, 0).astype(np.uint8)).convert("RGB")
