"""Rotation, resize and crop of an image together with its calibration; pinhole projection.

`make_geometry` decides how images of one size become images of another, `ImageGeometry` applies it
to images and to calibration, and `resampled` does the work.

Sizes are (height, width); a pixel covers [i, i + 1], so the left edge of an image is at 0. Source:
formats/lbm-preprocessing 2.4, 2.5; calibration follows the exact transform of the pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from PIL import Image

from vlatool.episode import Array, FrameSource, UInt8Array
from vlatool.errors import EnvironmentProblem

# `lanczos_vips` is the filter of libvips; its result does not depend on vector instructions. The
# others are Pillow's. The PSNR between both lanczos filters is 50 dB.
ResizeFilter = Literal["lanczos_vips", "lanczos", "bicubic", "bilinear", "box", "nearest"]


def resampled(
    image: Array,  # uint8 [H, W, 3], or uint16 [H, W] for `nearest`
    scaled: tuple[int, int],  # size of the whole image after the resize
    offset: tuple[int, int],  # (top, left) of the crop in the resized image
    target: tuple[int, int],  # size of the result
    resize_filter: ResizeFilter,
) -> Array:
    """Crop of size `target` at `offset` of an image resized to `scaled`; black outside the image.

    Only the cropped part of the image is resized.
    """
    if scaled[0] < target[0] or scaled[1] < target[1]:
        canvas = np.zeros((*target, *image.shape[2:]), image.dtype)
        top = -offset[0]
        left = -offset[1]
        canvas[top : top + scaled[0], left : left + scaled[1]] = resampled(
            image, scaled, (0, 0), scaled, resize_filter
        )
        return canvas
    if resize_filter == "lanczos_vips":
        if scaled[0] <= image.shape[0] and scaled[1] <= image.shape[1]:
            return _by_libvips(image, scaled, offset, target)
        resize_filter = "lanczos"  # to enlarge images, libvips uses another filter
    scale_y = scaled[0] / image.shape[0]
    scale_x = scaled[1] / image.shape[1]
    top, left = offset
    rows, columns = target
    box = (left / scale_x, top / scale_y, (left + columns) / scale_x, (top + rows) / scale_y)
    pillow_filter = Image.Resampling[resize_filter.upper()]
    return np.asarray(Image.fromarray(image).resize((columns, rows), pillow_filter, box=box))


def _by_libvips(
    image: UInt8Array, scaled: tuple[int, int], offset: tuple[int, int], target: tuple[int, int]
) -> UInt8Array:
    """Resize by libvips in the calling thread: a region starts no threads, so workers may fork."""
    vips = _libvips()
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image)
    whole = vips.Image.new_from_memory(pixels.data, width, height, channels, "uchar")
    shrunk = whole.resize(scaled[1] / width, vscale=scaled[0] / height, kernel="lanczos3")
    assert (shrunk.height, shrunk.width) == scaled, "libvips rounds the exact ratio to whole pixels"
    top, left = offset
    rows, columns = target
    window = vips.Region.new(shrunk).fetch(left, top, columns, rows)
    return np.frombuffer(window, np.uint8).reshape(rows, columns, channels)


def _libvips() -> ModuleType:
    """pyvips, imported on first use: the import is slow, and most commands resize nothing."""
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise EnvironmentProblem(
            f"libvips cannot be loaded: {error}",
            hint="pip install pyvips pyvips-binary, or use Pillow: --image-resizing-filter lanczos",
            code="environment.missing_dependency",
            details={"package": "pyvips"},
        ) from error
    pyvips.cache_set_max(0)  # operations do not repeat
    return pyvips


ResizeMethod = Literal["center_crop", "resize_no_crop", "resize_fit"]

# Points nearer to the camera plane or farther from the base are not visible; meters.
_NEAR = 1e-3
_FAR = 1e9
# camera_T_rotated: axes of a camera whose image was rotated clockwise once.
_QUARTER_TURN = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class ImageGeometry:
    """Transform from images of one size to images of another."""

    original: tuple[int, int]  # size of the source, after the rotation
    scaled: tuple[int, int]  # size of the whole source after the resize
    # (top, left) of the target inside the scaled image; negative if the target is larger and gets
    # black bars
    offset: tuple[int, int]
    target: tuple[int, int]  # size of the result
    turns: int = 0  # quarter turns clockwise, applied first
    resample: ResizeFilter = "lanczos_vips"

    def apply(self, image: UInt8Array) -> UInt8Array:
        """Image of the target size from uint8 [H, W, 3] of the camera."""
        return self._transform(image, self.resample)

    def apply_to_values(self, values: Array) -> Array:
        """Like `apply` without interpolation, for uint16 [H, W]: depth, labels."""
        return self._transform(values, "nearest")

    def _transform(self, image: Array, resize_filter: ResizeFilter) -> Array:
        turned = rotate(image, self.turns)
        if self.target == self.original:
            return turned
        return resampled(turned, self.scaled, self.offset, self.target, resize_filter)

    @property
    def is_identity(self) -> bool:
        """True if images stay as they are."""
        return self.target == self.original and self.turns % 4 == 0

    @property
    def _scale(self) -> tuple[float, float]:
        return self.scaled[0] / self.original[0], self.scaled[1] / self.original[1]

    def rotated_intrinsics(self, matrix: Array) -> Array:
        """Pinhole matrices [..., 3, 3] of the rotated image, before any resize."""
        height, width = self.original if self.turns % 2 == 0 else self.original[::-1]
        for _ in range(self.turns % 4):
            rotation = np.array([[0.0, -1.0, height], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
            matrix = rotation @ matrix @ _QUARTER_TURN
            height, width = width, height
        return matrix

    def rotated_extrinsics(self, matrix: Array) -> Array:
        """base_T_camera [..., 4, 4] of the camera rotated with its image."""
        for _ in range(self.turns % 4):
            rotation = np.eye(4)
            rotation[:3, :3] = _QUARTER_TURN
            matrix = matrix @ rotation
        return matrix

    def intrinsics(self, matrix: Array) -> Array:
        """Returns pinhole matrices float64 [..., 3, 3] of the result, from the rotated image's.

        A resize scales by the ratio of whole pixel counts and a crop shifts by whole pixels, so
        the result is exact, unlike the published rule, which uses the untruncated size.
        """
        top, left = self.offset
        scale_y, scale_x = self._scale
        transform = np.array([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1]])
        return transform @ matrix.astype(np.float64)


def make_geometry(
    original: tuple[int, int],
    target: tuple[int, int] | None,
    method: ResizeMethod,
    turns: int = 0,
    resample: ResizeFilter = "lanczos_vips",
) -> ImageGeometry:
    """Geometry from the size of a camera to `target`; None keeps the size."""
    if turns % 2:
        original = (original[1], original[0])
    if target is None:
        target = original
        method = "resize_no_crop"
    if method == "resize_no_crop":
        return ImageGeometry(original, target, (0, 0), target, turns, resample)
    ratio_y = target[0] / original[0]
    ratio_x = target[1] / original[1]
    if method == "center_crop":
        scale = max(ratio_y, ratio_x)
        # Truncation may lose the last pixel and add a black line; a crop must cover the target.
        least = target
    else:
        scale = min(ratio_y, ratio_x)
        least = (1, 1)
    height = max(int(original[0] * scale), least[0])
    width = max(int(original[1] * scale), least[1])
    offset = (int((height - target[0]) / 2), int((width - target[1]) / 2))
    return ImageGeometry(original, (height, width), offset, target, turns, resample)


def resize(
    image: UInt8Array,
    size: tuple[int, int] | None,
    method: ResizeMethod,
    resample: ResizeFilter,
    turns: int = 0,
) -> UInt8Array:
    """Image uint8 [H, W, 3], rotated and resized to `size`; None keeps the size."""
    original = (image.shape[0], image.shape[1])
    return make_geometry(original, size, method, turns, resample).apply(image)


def published_intrinsics(matrix: Array, geometry: ImageGeometry, method: ResizeMethod) -> Array:
    """Intrinsics float64 [..., 3, 3] by the published rule, for `--compat`.

    It uses the untruncated size and a fractional crop and drops skew: off by up to half a pixel.
    Source: formats/lbm-preprocessing 2.5.
    """
    original_height, original_width = geometry.original
    height, width = geometry.target
    ratio_x = width / original_width
    ratio_y = height / original_height
    shift_x = 0.0
    shift_y = 0.0
    if method != "resize_no_crop":
        ratio = max(ratio_x, ratio_y) if method == "center_crop" else min(ratio_x, ratio_y)
        ratio_x = ratio
        ratio_y = ratio
        shift_x = (original_width * ratio - width) / 2
        shift_y = (original_height * ratio - height) / 2
    result = np.zeros(matrix.shape, np.float64)
    result[..., 0, 0] = matrix[..., 0, 0] * ratio_x
    result[..., 1, 1] = matrix[..., 1, 1] * ratio_y
    result[..., 0, 2] = matrix[..., 0, 2] * ratio_x - shift_x
    result[..., 1, 2] = matrix[..., 1, 2] * ratio_y - shift_y
    result[..., 2, 2] = 1.0
    return result


def quarter_turns(value: Mapping[str, int]) -> Mapping[str, int]:
    """Returns clockwise quarter turns by camera; a field validator."""
    for name, turns in value.items():
        if not 0 <= turns <= 3:
            raise ValueError(f"{name}: {turns} is not 0 to 3 quarter turns; 90 degrees are 1")
    return value


def rotate(image: Array, turns: int) -> Array:
    """Image rotated clockwise by quarter turns."""
    if turns % 4 == 0:
        return image
    return np.ascontiguousarray(np.rot90(image, -turns))  # `np.rot90` turns counterclockwise


def project(points: Array, intrinsics: Array, base_T_camera: Array) -> tuple[Array, Array]:  # noqa: N803 - frames of a transform
    """Projects points into an image.

    Args:
        points: Positions [N, 3] in the base frame, meters.
        intrinsics: Pinhole matrix [3, 3] in pixels; skew is kept.
        base_T_camera: Pose of the camera [4, 4], a rotation and a translation.

    Returns:
        Pixels float64 [N, 2] as (x, y), and bool [N], true for points in front of the camera.
        Integers are pixel centers. Pixels may be outside the image; pixels of points that are not
        visible are NaN.
    """
    rotation = base_T_camera[:3, :3]
    center = base_T_camera[:3, 3]
    finite = np.all(np.abs(points) < _FAR, axis=1)
    offsets = np.where(finite[:, None], points.astype(np.float64), 0.0) - center
    # The inverse of a rotation is its transpose, and rows times R are columns times R transposed.
    in_camera = offsets @ rotation
    visible = finite & (in_camera[:, 2] > _NEAR)
    depth = np.where(visible, in_camera[:, 2], 1.0)
    pixels = (in_camera / depth[:, None]) @ intrinsics[:2].astype(np.float64).T
    pixels[~visible] = np.nan
    return pixels, visible


class ResizedFrames(FrameSource):
    """Images of a camera in another size."""

    def __init__(
        self,
        frames: FrameSource,
        size: tuple[int, int],
        method: ResizeMethod,
        resample: ResizeFilter,
    ) -> None:
        """`size`: (height, width) of the images that are read."""
        self._frames = frames
        self._size = size
        self._method: ResizeMethod = method
        self._resample: ResizeFilter = resample

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int]) -> Array:
        images = self._frames.read(indices)
        resized = [resize(image, self._size, self._method, self._resample) for image in images]
        return np.stack(resized)

    def path_of(self, index: int) -> Path | None:
        return self._frames.path_of(index)
