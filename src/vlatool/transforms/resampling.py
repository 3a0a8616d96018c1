"""Resampling of images by the filters of libvips and Pillow. Sizes are (height, width)."""

from types import ModuleType
from typing import Literal

import numpy as np
from PIL import Image

from vlatool.episode import Array, UInt8Array
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
        top, left = -offset[0], -offset[1]
        canvas[top : top + scaled[0], left : left + scaled[1]] = resampled(
            image, scaled, (0, 0), scaled, resize_filter
        )
        return canvas
    if resize_filter != "lanczos_vips":
        return _by_pillow(image, scaled, offset, target, Image.Resampling[resize_filter.upper()])
    if scaled[0] > image.shape[0] or scaled[1] > image.shape[1]:
        # To enlarge images, libvips uses another filter.
        return _by_pillow(image, scaled, offset, target, Image.Resampling.LANCZOS)
    return _by_libvips(image, scaled, offset, target)


def _by_pillow(
    image: Array,
    scaled: tuple[int, int],
    offset: tuple[int, int],
    target: tuple[int, int],
    resample: Image.Resampling,
) -> Array:
    scale_y, scale_x = scaled[0] / image.shape[0], scaled[1] / image.shape[1]
    top, left = offset
    box = (
        left / scale_x,
        top / scale_y,
        (left + target[1]) / scale_x,
        (top + target[0]) / scale_y,
    )
    return np.asarray(Image.fromarray(image).resize((target[1], target[0]), resample, box=box))


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
    (top, left), (rows, columns) = offset, target
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
