"""Renderer of scenes: antialiased quadrilaterals over a textured table, in numpy."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlatool.episode import UInt8Array
from vlatool.world.scene import BIN_HALF, BIN_WALL, BLOCK_HALF, FloatArray, Scene

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


def plain_name(camera: str) -> str:
    """Name of a camera in folders of plain files, whose names people choose."""
    return {"scene_right_0": "front", "wrist_right_minus": "wrist"}.get(camera, camera)


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
        across = np.roll(np.eye(3), 1, axis=0)[axis]
        along = np.roll(np.eye(3), 2, axis=0)[axis]
        faces.append(
            normal + np.array([across + along, across - along, -across - along, along - across])
        )
    return np.array(faces)


_UNIT_FACES = _unit_faces()


def visible_faces(scene: Scene, eye: FloatArray, *, with_palm: bool) -> list[Face]:
    """Faces that are visible from `eye` [3], farthest first."""
    boxes = [*_bin_walls(scene), *_blocks(scene), *_hand(scene, with_palm=with_palm)]
    boxes.sort(key=lambda box: -float(np.linalg.norm(box.center - eye)))
    faces = [*_shadows(scene), Face(_flat(scene.bin, (BIN_HALF, BIN_HALF)), _BIN_FLOOR, BIN_LABEL)]
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
    reach = BIN_HALF - BIN_WALL / 2
    thin = BIN_WALL / 2
    tall = _BIN_HEIGHT / 2
    beside = np.array([thin, BIN_HALF, tall])
    before = np.array([BIN_HALF - BIN_WALL, thin, tall])
    walls = [
        (x - reach, y, beside),
        (x + reach, y, beside),
        (x, y - reach, before),
        (x, y + reach, before),
    ]
    return [_Box(np.array([u, v, tall]), half, _BIN_COLOR, BIN_LABEL) for u, v, half in walls]


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


_TEXELS_PER_METER = 640
_TEXTURE_MARGIN = 0.4
_FLOOR = np.array([92.0, 98.0, 106.0])
_WOOD = np.array([205.0, 180.0, 146.0])
_USUAL_HAND_HEIGHT = 0.15
_NEAR = 0.02
_FAR = 20.0


@dataclass(frozen=True)
class Measurement:
    depth: NDArray[np.uint16]  # distance along the optical axis in millimeters, uint16 [H, W]
    labels: NDArray[np.int16]  # 0 table and floor, 1 to 3 blocks, 4 bin, 5 hand; int16 [H, W]


@dataclass(frozen=True)
class View:
    """Camera with an image size; caches what does not depend on the scene."""

    camera: Camera
    size: Size  # (height, width) in pixels

    def draw(self, scene: Scene) -> UInt8Array:
        """Image of a scene, uint8 [H, W, 3]; 64 x 64 takes about 1 ms."""
        image = self._table(scene)
        for patch in self._patches(scene):
            patch.paint(image)
        return image

    def measure(self, scene: Scene) -> Measurement:
        """Depth and labels of the same image."""
        center = self.camera.center(scene)
        rays = self._rays
        depth = np.where(rays[..., 2] < 0, center[2] / np.maximum(-rays[..., 2], 1e-6), _FAR)
        labels = np.zeros(self.size, np.int16)
        for patch in self._patches(scene):
            face = patch.face
            window = patch.window
            if face.opacity == 1.0:
                covered = patch.coverage() > 0.5
                # Depth [N] at which rays [N, 3] from `center` meet the plane of a face.
                first, second, third = face.corners[:3] - center
                normal = np.cross(second - first, third - first)
                depth[window][covered] = (normal @ first) / (rays[window][covered] @ normal)
                labels[window][covered] = face.label
        return Measurement(np.minimum(depth * 1000, 65535).astype(np.uint16), labels)

    @cached_property
    def intrinsics(self) -> FloatArray:
        """Pinhole matrix [3, 3] in pixels."""
        return self.camera.intrinsics(self.size)

    @cached_property
    def _rays(self) -> FloatArray:
        """Direction of each pixel in the base frame, 1 long along the optical axis [H, W, 3]."""
        rows, columns = np.indices(self.size)
        pixels = np.stack([columns, rows, np.ones(self.size)], axis=-1)
        to_base = self.camera.rotation() @ np.linalg.inv(self.intrinsics)
        return pixels @ to_base.T

    @cached_property
    def _slopes(self) -> NDArray[np.float32]:
        """Texels from below the camera to the point of a pixel, per meter of height [2, H, W]."""
        rays = self._rays
        down = np.maximum(-rays[..., 2], 1e-3)
        return (
            (self._texels_per_meter * rays[..., :2] / down[..., None])
            .transpose(2, 0, 1)
            .astype("f4")
        )

    @cached_property
    def _shrink(self) -> int:
        """Ratio of pixel size to texel size, to average fine grain."""
        height = self.camera.position[2] + (_USUAL_HAND_HEIGHT if self.camera.on_hand else 0.0)
        pixels_per_meter = self.camera.focal * self.size[0] / height
        return max(1, round(_TEXELS_PER_METER / pixels_per_meter))

    @property
    def _texels_per_meter(self) -> float:
        return _TEXELS_PER_METER / self._shrink

    @cached_property
    def _fixed_table(self) -> UInt8Array:
        return self._render_table(np.asarray(self.camera.position))

    def _table(self, scene: Scene) -> UInt8Array:
        if self.camera.on_hand:
            return self._render_table(self.camera.center(scene))
        return self._fixed_table.copy()

    def _render_table(self, center: FloatArray) -> UInt8Array:
        """Image of the empty table from `center` [3]."""
        texture = _texture(self._shrink)
        edge = texture.shape[0] - 1
        start = (center[:2] + _TEXTURE_MARGIN) * self._texels_per_meter
        texels = self._slopes * np.float32(center[2]) + start[:, None, None].astype("f4")
        x, y = np.clip(texels, 0, edge, out=texels).astype(np.int32)
        return texture.reshape(-1, 3).take(y * texture.shape[0] + x, axis=0)

    def _patches(self, scene: Scene) -> "list[_Patch]":
        center = self.camera.center(scene)
        faces = visible_faces(scene, center, with_palm=not self.camera.on_hand)
        corners = np.array([face.corners for face in faces]) - center
        projected = corners @ (self.intrinsics @ self.camera.rotation().T).T
        depth = projected[..., 2:]
        pixels = projected[..., :2] / np.maximum(depth, _NEAR)
        in_front = (depth[..., 0] > _NEAR).all(axis=1)
        limits = np.array([self.size[1], self.size[0]])
        in_image = (pixels.max(axis=1) > -0.5) & (pixels.min(axis=1) < limits - 0.5)
        visible = np.flatnonzero(in_front & in_image.all(axis=1))
        return _patches([faces[index] for index in visible], pixels[visible], limits)


class _Patch(NamedTuple):
    """Position of a face in the image."""

    face: Face
    window: tuple[slice, slice]  # rows and columns around it
    # (a, b, c) per side; a * column + b * row + c is the distance to the side in pixels plus 0.5,
    # positive inside [4, 3].
    edges: NDArray[np.float32]

    def coverage(self) -> NDArray[np.float32]:
        """Fraction of each pixel of the window that the face covers, 0 to 1 [h, w]."""
        rows, columns = self.window
        across = self.edges[:, :1] * np.arange(columns.start, columns.stop, dtype=np.float32)
        along = self.edges[:, 1:2] * np.arange(rows.start, rows.stop, dtype=np.float32)
        inside = (along + self.edges[:, 2:])[:, :, None] + across[:, None, :]
        return inside.min(axis=0).clip(0.0, 1.0)

    def paint(self, image: UInt8Array) -> None:
        under = image[self.window].astype(np.float32)
        weight = (self.coverage() * np.float32(self.face.opacity))[..., None]
        color = np.array(self.face.color, np.float32)
        image[self.window] = under + weight * (color - under) + np.float32(0.5)


def _patches(faces: list[Face], outlines: FloatArray, limits: NDArray[np.int_]) -> list[_Patch]:
    """Patches for faces with corners in pixels [N, 4, 2]; `limits` is (width, height)."""
    lows = np.maximum(np.floor(outlines.min(axis=1)).astype(int), 0)
    highs = np.minimum(np.ceil(outlines.max(axis=1)).astype(int) + 1, limits)
    sides = outlines[:, [1, 2, 3, 0]] - outlines
    normals = np.stack([-sides[..., 1], sides[..., 0]], axis=-1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    inwards = ((outlines[:, [2, 3, 0, 1]] - outlines) * normals).sum(axis=-1, keepdims=True)
    normals *= np.where(inwards < 0, -1.0, 1.0)
    offsets = 0.5 - (normals * outlines).sum(axis=-1, keepdims=True)
    edges = np.concatenate([normals, offsets], axis=-1).astype(np.float32)
    windows = [
        (slice(low[1], high[1]), slice(low[0], high[0]))
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True)
    ]
    return [_Patch(*parts) for parts in zip(faces, windows, edges, strict=True)]


@lru_cache(maxsize=16)
def _texture(shrink: int) -> UInt8Array:
    """Table and floor from above, uint8 [S, S, 3], averaged over `shrink` x `shrink` texels."""
    # Planks with a soft grain on a tiled floor [S, S, 3]; row and column grow with y and x.
    span = np.arange(-_TEXTURE_MARGIN, 1 + _TEXTURE_MARGIN, 1 / _TEXELS_PER_METER)
    y = span[:, None]
    x = span[None, :]
    plank = np.floor(y * 8)
    grain = np.sin(34 * y + 2.5 * np.sin(5 * x + 2.1 * plank)) + 0.6 * np.sin(11 * x + 4.3 * plank)
    tone = 1 + 0.035 * grain + 0.05 * np.sin(12.9 * plank) - 0.12 * _seam(y * 8)
    to_edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    on_table = np.clip(to_edge / 0.004 + 0.5, 0, 1)[..., None]
    # Tiles fade towards the border of the texture, whose texels repeat over the floor beyond it.
    fade = np.clip((to_edge + _TEXTURE_MARGIN) / _TEXTURE_MARGIN, 0, 1)
    checks = 1 + 0.05 * fade * np.sign(np.sin(16 * x) * np.sin(16 * y))
    colors = on_table * _WOOD * tone[..., None] + (1 - on_table) * _FLOOR * checks[..., None]
    full = np.clip(colors, 0, 255).astype(np.uint8)
    side = full.shape[0] // shrink
    cut = full[: side * shrink, : side * shrink].astype(np.float32)
    return cut.reshape(side, shrink, side, shrink, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _seam(planks: FloatArray) -> FloatArray:
    """1 where two planks meet, 0 elsewhere."""
    distance = np.abs(planks - np.round(planks))
    return np.clip(1 - distance / 0.04, 0, 1)
