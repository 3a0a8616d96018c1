"""Geometry of a scene as colored quadrilaterals, without rendering."""

from dataclasses import dataclass

import numpy as np

from vlatool.world.scene import BIN_HALF, BIN_WALL, BLOCK_HALF, FloatArray, Scene

BLOCK_LABELS = (1, 2, 3)
BIN_LABEL = 4
HAND_LABEL = 5

_BLOCK_COLORS = ((214, 48, 44), (46, 164, 72), (48, 96, 216))
_BIN_COLOR = (122, 112, 138)
_BIN_FLOOR = (58, 52, 70)
_FINGER_COLOR = (245, 196, 60)
_PALM_COLOR = (232, 234, 238)
_SHADOW = (30, 22, 14)
_BIN_HEIGHT = 0.05
_FINGER_HALF = (0.008, 0.016, 0.035)
_PALM_HALF = (0.062, 0.022, 0.014)
_PALM_HEIGHT = 0.082

# Normals of the faces of a box, and the light of each face.
_FACE_NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
_FACE_LIGHT = (0.72, 0.86, 0.66, 0.78, 1.0, 0.4)


@dataclass(frozen=True)
class Face:
    """Flat quadrilateral [4, 3] with its color (RGB), opacity and label."""

    corners: FloatArray
    color: tuple[float, float, float]
    label: int
    opacity: float = 1.0


def _unit_faces() -> FloatArray:
    """Corners of the six faces of the cube from -1 to 1, in order around each [6, 4, 3]."""
    faces: list[FloatArray] = []
    for normal in _FACE_NORMALS:
        axis = int(np.abs(normal).argmax())
        across, along = np.roll(np.eye(3), 1, axis=0)[axis], np.roll(np.eye(3), 2, axis=0)[axis]
        faces.append(
            normal + np.array([across + along, across - along, -across - along, along - across])
        )
    return np.array(faces)


_UNIT_FACES = _unit_faces()


def visible_faces(scene: Scene, eye: FloatArray, *, with_palm: bool) -> list[Face]:
    """Faces that are visible from `eye` [3], farthest first."""
    boxes = [*_bin_walls(scene), *_blocks(scene), *_hand(scene, with_palm=with_palm)]
    boxes.sort(key=lambda box: -float(np.linalg.norm(box.center - eye)))
    faces = [*_shadows(scene), _bin_floor(scene)]
    for box in boxes:
        faces.extend(box.faces(eye))
    return faces


@dataclass(frozen=True)
class _Box:
    center: FloatArray
    half: FloatArray
    color: tuple[int, int, int]
    label: int

    def faces(self, eye: FloatArray) -> list[Face]:
        """Faces that point towards `eye`, at most three."""
        beyond = (eye - self.center) / self.half
        visible = np.flatnonzero(_FACE_NORMALS @ beyond > 1.0)
        corners = self.center + _UNIT_FACES[visible] * self.half
        return [
            Face(corner, _shaded(self.color, _FACE_LIGHT[face]), self.label)
            for corner, face in zip(corners, visible, strict=True)
        ]


def _shaded(color: tuple[int, int, int], light: float) -> tuple[float, float, float]:
    red, green, blue = color
    return (red * light, green * light, blue * light)


def _blocks(scene: Scene) -> list[_Box]:
    half = np.full(3, BLOCK_HALF)
    return [
        _Box(center, half, color, label)
        for center, color, label in zip(scene.blocks, _BLOCK_COLORS, BLOCK_LABELS, strict=True)
    ]


def _bin_walls(scene: Scene) -> list[_Box]:
    x, y = scene.bin
    reach, thin, tall = BIN_HALF - BIN_WALL / 2, BIN_WALL / 2, _BIN_HEIGHT / 2
    beside, before = np.array([thin, BIN_HALF, tall]), np.array([BIN_HALF - BIN_WALL, thin, tall])
    walls = [
        (x - reach, y, beside),
        (x + reach, y, beside),
        (x, y - reach, before),
        (x, y + reach, before),
    ]
    return [_Box(np.array([u, v, tall]), half, _BIN_COLOR, BIN_LABEL) for u, v, half in walls]


def _bin_floor(scene: Scene) -> Face:
    return Face(_flat(scene.bin, (BIN_HALF, BIN_HALF)), _BIN_FLOOR, BIN_LABEL)


def _hand(scene: Scene, *, with_palm: bool) -> list[_Box]:
    x, y, z, opening = scene.gripper
    reach = opening / 2 + _FINGER_HALF[0]
    half = np.array(_FINGER_HALF)
    fingers = [
        _Box(np.array([x + side * reach, y, z + half[2]]), half, _FINGER_COLOR, HAND_LABEL)
        for side in (-1, 1)
    ]
    if not with_palm:
        return fingers
    palm = np.array([x, y, z + _PALM_HEIGHT])
    return [*fingers, _Box(palm, np.array(_PALM_HALF), _PALM_COLOR, HAND_LABEL)]


def _shadows(scene: Scene) -> list[Face]:
    """Shadows of the hand, then of the blocks, away from the light."""
    blocks = [(block, (BLOCK_HALF, BLOCK_HALF)) for block in scene.blocks]
    return [
        Face(
            _flat(position[:2] + np.array([0.3, 0.2]) * position[2], half), _SHADOW, 0, opacity=0.35
        )
        for position, half in [(scene.gripper[:3], _PALM_HALF[:2]), *blocks]
    ]


def _flat(center: FloatArray, half: tuple[float, float]) -> FloatArray:
    """Corners of a rectangle on the table [4, 3]."""
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    return np.column_stack([center + signs * half, np.zeros(4)])
