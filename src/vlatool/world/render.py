"""Renderer of scenes: antialiased quadrilaterals over a textured table, in numpy."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlatool.episode import UInt8Array
from vlatool.world.cameras import Camera, Size
from vlatool.world.scene import FloatArray, Scene
from vlatool.world.solids import Face, visible_faces

_TEXELS_PER_METRE = 640
_TEXTURE_MARGIN = 0.4
_FLOOR = np.array([92.0, 98.0, 106.0])
_WOOD = np.array([205.0, 180.0, 146.0])
_USUAL_HAND_HEIGHT = 0.15
_NEAR = 0.02
_FAR = 20.0


@dataclass(frozen=True)
class Measurement:
    """Depth and label maps of an image."""

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
            face, window = patch.face, patch.window
            if face.opacity == 1.0:
                covered = patch.coverage() > 0.5
                depth[window][covered] = _plane_depth(face, center, rays[window][covered])
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
        return max(1, round(_TEXELS_PER_METRE / pixels_per_meter))

    @property
    def _texels_per_meter(self) -> float:
        return _TEXELS_PER_METRE / self._shrink

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
        """Faces in the image, farthest first."""
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
        """Blends the face into the image, in place."""
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


def _plane_depth(face: Face, center: FloatArray, rays: FloatArray) -> FloatArray:
    """Depth [N] at which rays [N, 3] from `center` meet the plane of a face."""
    first, second, third = face.corners[:3] - center
    normal = np.cross(second - first, third - first)
    return (normal @ first) / (rays @ normal)


@lru_cache(maxsize=16)
def _texture(shrink: int) -> UInt8Array:
    """Table and floor from above, uint8 [S, S, 3], averaged over `shrink` x `shrink` texels."""
    full = _full_texture()
    side = full.shape[0] // shrink
    cut = full[: side * shrink, : side * shrink].astype(np.float32)
    return cut.reshape(side, shrink, side, shrink, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _full_texture() -> UInt8Array:
    """Planks with a soft grain on a tiled floor [S, S, 3]; row and column grow with y and x."""
    span = np.arange(-_TEXTURE_MARGIN, 1 + _TEXTURE_MARGIN, 1 / _TEXELS_PER_METRE)
    y, x = span[:, None], span[None, :]
    plank = np.floor(y * 8)
    grain = np.sin(34 * y + 2.5 * np.sin(5 * x + 2.1 * plank)) + 0.6 * np.sin(11 * x + 4.3 * plank)
    tone = 1 + 0.035 * grain + 0.05 * np.sin(12.9 * plank) - 0.12 * _seam(y * 8)
    to_edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    on_table = np.clip(to_edge / 0.004 + 0.5, 0, 1)[..., None]
    # Tiles fade towards the border of the texture, whose texels repeat over the floor beyond it.
    fade = np.clip((to_edge + _TEXTURE_MARGIN) / _TEXTURE_MARGIN, 0, 1)
    checks = 1 + 0.05 * fade * np.sign(np.sin(16 * x) * np.sin(16 * y))
    colors = on_table * _WOOD * tone[..., None] + (1 - on_table) * _FLOOR * checks[..., None]
    return np.clip(colors, 0, 255).astype(np.uint8)


def _seam(planks: FloatArray) -> FloatArray:
    """1 where two planks meet, 0 elsewhere."""
    distance = np.abs(planks - np.round(planks))
    return np.clip(1 - distance / 0.04, 0, 1)
