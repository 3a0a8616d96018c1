"""Cameras of the world: ideal pinholes with the names, ids and sizes of a real station.

In a camera frame, x points right and y down in the image, z into the scene.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlatool.world.scene import FloatArray, Scene

CameraCount = Literal[2, 4, 6]
SizeName = Literal["small", "medium", "large", "published"]
Size = tuple[int, int]

SQUARE_SIZES: dict[SizeName, Size] = {
    "small": (64, 64),
    "medium": (96, 96),
    "large": (128, 128),
}

LEFT_ARM_POSITION = np.array([-0.15, 0.75, 0.35])


@dataclass(frozen=True)
class Camera:
    """Pose and focal length of a camera."""

    name: str  # semantic name
    id: str  # hardware id, which names its arrays in raw Spartan episodes
    # In the base frame, or relative to the fingertips for a camera on the hand [3].
    position: tuple[float, float, float]
    looks_at: tuple[float, float, float]  # point in the same frame as `position`
    focal: float  # focal length in image heights
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)  # direction that points up in the image

    @property
    def on_hand(self) -> bool:
        """True if the camera moves with the right hand."""
        return self.name.startswith("wrist_right")

    def size(self, name: SizeName) -> Size:
        """(height, width) in pixels; `published` is the size of the real camera."""
        published = (480, 640) if self.name.startswith("scene") else (600, 960)
        return SQUARE_SIZES.get(name, published)

    def rotation(self) -> FloatArray:
        """Axes of the camera as columns, base_R_camera [3, 3]; constant, the hand never turns."""
        forward = np.subtract(self.looks_at, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right /= np.linalg.norm(right)
        return np.column_stack([right, np.cross(forward, right), forward])

    def center(self, scene: Scene) -> FloatArray:
        """Position in the base frame [3]."""
        offset = scene.gripper[:3] if self.on_hand else np.zeros(3)
        return offset + np.asarray(self.position)

    def extrinsics(self, scene: Scene) -> FloatArray:
        """base_T_camera [4, 4]."""
        transform = np.eye(4)
        transform[:3, :3] = self.rotation()
        transform[:3, 3] = self.center(scene)
        return transform

    def intrinsics(self, size: Size) -> FloatArray:
        """Pinhole matrix [3, 3] in pixels of an image of `size` (height, width)."""
        height, width = size
        focal = self.focal * height
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


_UPRIGHT = (0.0, 0.0, 1.0)
_TIPS = (0.0, 0.0, 0.0)
# Half of the visible width of the hand camera is 0.12 + 0.9 z (measured to be learnable).
_HAND_FOCAL = 0.5 / 0.9
_HAND_HEIGHT = 0.12 / 0.9

_CAMERAS = (
    Camera("scene_right_0", "6CD146030E99", (0.56, 0.36, 1.6), (0.5, 0.5, 0.0), 1.42),
    Camera("scene_left_0", "6CD146031C25", (0.1, -0.45, 1.1), (0.5, 0.47, 0.0), 1.15, _UPRIGHT),
    Camera(
        "wrist_left_minus", "BFS_23595718", (-0.15, 0.65, 0.5), (0.42, 0.48, 0.0), 0.55, _UPRIGHT
    ),
    Camera("wrist_left_plus", "BFS_23595721", (-0.15, 0.85, 0.75), (0.5, 0.5, 0.0), 0.72, _UPRIGHT),
    Camera("wrist_right_minus", "BFS_23595722", (0.0, 0.0, _HAND_HEIGHT), _TIPS, _HAND_FOCAL),
    Camera("wrist_right_plus", "BFS_23595725", (0.0, -0.09, 0.15), (0.0, 0.02, 0.0), _HAND_FOCAL),
)
CAMERAS = {camera.name: camera for camera in _CAMERAS}

# Four: cameras of both published stations. Source: formats/lbm-preprocessing 3.2.
_STATIONS: dict[CameraCount, tuple[str, ...]] = {
    2: ("scene_right_0", "wrist_right_minus"),
    4: ("scene_right_0", "scene_left_0", "wrist_left_plus", "wrist_right_minus"),
    6: tuple(CAMERAS),
}


def cameras_for(count: CameraCount) -> tuple[Camera, ...]:
    """Cameras of the station with `count` cameras, in order."""
    return tuple(CAMERAS[name] for name in _STATIONS[count])
