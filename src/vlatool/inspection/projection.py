"""Pictures with what projects into them, and the end effectors to project.

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
    """What projects into one picture.

    Attributes:
        intrinsics: [3, 3] in pixels of the picture.
        extrinsics: base_T_camera [4, 4].
        size: (width, height) of the picture in pixels.
    """

    intrinsics: Array
    extrinsics: Array
    size: tuple[int, int]

    @classmethod
    def at(
        cls, intrinsics: Array | None, extrinsics: Array | None, row: int, size: tuple[int, int]
    ) -> "CameraModel | None":
        """The projection at a row of static or per-row matrices; None where it is not usable."""
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
    """One picture.

    Attributes:
        picture: What was recorded, RGB; None where it cannot be shown.
        lens: How to project into it; None without calibration.
        problem: Why there is no picture.
    """

    image: Image.Image | None
    lens: CameraModel | None = None
    problem: str = ""


@dataclass(frozen=True)
class EndEffectorTrack:
    """Poses of one end effector over time.

    Attributes:
        arm: Its name.
        colour: Number of its colour.
        xyz: Positions [S, 3] in the base frame.
        rot6d: Rotations [S, 6]; None where they are not known.
    """

    arm: str
    color: int
    xyz: Array
    rot6d: Array | None


def position_fields(names: Iterable[str]) -> dict[str, str]:
    """EvalResult position field to measured rotation field, by their published names."""
    matches = filter(None, map(_POSITION.match, names))
    return {m.string: f"{m.string.removesuffix('xyz')}rot_6d" for m in matches}


def pose_tracks(
    fields: Mapping[str, Array], pairs: Mapping[str, str]
) -> tuple[EndEffectorTrack, ...]:
    """The tracks of those position fields that are there; rotations are optional.

    Args:
        fields: Field name to values [S, C].
        pairs: Position field to rotation field.
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


def stored_shot(
    sample: StoredSample, view: tuple[str, int], arrays: Mapping[str, Array], row: int
) -> FrameView:
    """A stored picture with the projection at a row of the window.

    Args:
        sample: Where it is.
        view: Camera and image offset.
        arrays: Arrays of the sample, those of the calibration among them.
        row: Step of the window that the picture belongs to; outside, the nearest one counts.
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


def file_shot(path: Path) -> FrameView:
    """A picture that is a file of its own."""
    try:
        return FrameView(_open_image(path.read_bytes()))
    except FileNotFoundError:
        return FrameView(None, problem="is missing")
    except (OSError, ValueError):
        return FrameView(None, problem="cannot be decoded")


def frame_shot(
    frame: UInt8Array, intrinsics: Array | None, extrinsics: Array | None, row: int
) -> FrameView:
    """A decoded frame uint8 [H, W, 3] with the projection at a row of the matrices."""
    image = Image.fromarray(frame)
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, row, image.size))


def _open_image(data: bytes) -> Image.Image:
    """A JPEG or PNG, decoded as RGB."""
    with open_image(data) as image:
        if image.mode.startswith("I"):
            return _values_as_gray(image)
    return Image.fromarray(decode_rgb(data))


def _values_as_gray(image: Image.Image) -> Image.Image:
    """Depth or labels of 16 bits, stretched over the greys that a screen has; 0 stays black."""
    values = np.asarray(image, np.float64)
    there = values[values > 0]
    if not there.size:
        return Image.new("RGB", image.size)
    low, high = there.min(), there.max()
    gray = 60 + 195 * (values - low) / max(high - low, 1)
    return Image.fromarray(np.where(values > 0, gray, 0).astype(np.uint8)).convert("RGB")
