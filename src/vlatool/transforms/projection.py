"""Where points of the robot's base frame are in a picture: the pinhole projection.

Legend of shapes: N points. Source: lbm-data 2.4.
"""

import numpy as np

from vlatool.episode import Array

# Points nearer to the camera's plane or farther from the base have no place in a picture; metres.
_NEAR = 1e-3
_FAR = 1e9


def project(points: Array, intrinsics: Array, base_T_camera: Array) -> tuple[Array, Array]:  # noqa: N803 - frames of a transform
    """Pixels float64 [N, 2] as (x, y), and which of them are in front of the camera, bool [N].

    A whole number is the centre of a pixel. Pixels may lie outside the picture; those that are
    not visible are NaN.

    Args:
        points: Positions [N, 3] in the base frame, metres.
        intrinsics: Pinhole matrix [3, 3] in pixels; skew is kept.
        base_T_camera: Pose of the camera [4, 4], a rotation and a translation.
    """
    rotation, centre = base_T_camera[:3, :3], base_T_camera[:3, 3]
    finite = np.all(np.abs(points) < _FAR, axis=1)
    offsets = np.where(finite[:, None], points.astype(np.float64), 0.0) - centre
    # The inverse of a rotation is its transpose, and rows times R are columns times R transposed.
    seen = offsets @ rotation
    visible = finite & (seen[:, 2] > _NEAR)
    depth = np.where(visible, seen[:, 2], 1.0)
    pixels = (seen / depth[:, None]) @ intrinsics[:2].astype(np.float64).T
    pixels[~visible] = np.nan
    return pixels, visible
