"""Encoding and decoding of JPEG and PNG images.

Source: formats/lbm-preprocessing 2.4.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from vlatool.episode import Array, UInt8Array

# Larger images are not decoded; no robot has such a camera.
MAX_PIXELS = 2**26
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_JPEG = b"\xff\xd8\xff"
# Errors of Pillow for data that is no image; the warning is raised where warnings are errors.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

# Chroma subsampling: full resolution, or one chroma sample per 2 x 2 pixels.
Subsampling = Literal["4:4:4", "4:2:0"]


def encode_jpeg(pixels: UInt8Array, quality: int, subsampling: Subsampling = "4:2:0") -> bytes:
    """JPEG of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return buffer.getvalue()


def encode_png(values: Array) -> bytes:
    """PNG of uint16 [H, W] or uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_rgb(data: bytes, buffer: UInt8Array | None = None) -> UInt8Array:
    """Pixels uint8 [H, W, 3].

    Args:
        data: Bytes of the file.
        buffer: uint8 [K], used for the result if it is large enough.

    Raises:
        ValueError: It cannot be decoded, or has more than `MAX_PIXELS`.
    """
    pixels = _decode_valid_jpeg(data, buffer)
    if pixels is not None:
        return pixels
    with open_image(data) as image:
        return np.asarray(image.convert("RGB"))


def decoded_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an image after decoding it; raises ValueError if it cannot be decoded."""
    pixels = _decode_valid_jpeg(data)
    if pixels is not None:
        return pixels.shape[1], pixels.shape[0]
    with open_image(data) as image:
        image.load()
        return image.size


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """The image; its pixels are decoded lazily.

    Raises:
        ValueError: As `decode_rgb`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.width, image.height)
            yield image
    except Image.UnidentifiedImageError:
        raise ValueError(f"not an image: {data[:8].hex(' ') or 'empty'}") from None
    except _BROKEN as error:
        raise ValueError(str(error)) from None


def _decode_valid_jpeg(data: bytes, buffer: UInt8Array | None = None) -> UInt8Array | None:
    """Pixels of a valid JPEG, equal to Pillow's in two thirds of the time.

    None for other data, which Pillow decodes: it tolerates some errors.
    """
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(height), int(width)
        _check_size(width, height)
        if colors not in ("YCbCr", "Gray"):
            return None
        if buffer is None or buffer.size < height * width * 3:
            return simplejpeg.decode_jpeg(data)
        return simplejpeg.decode_jpeg(data, buffer=buffer)
    except ValueError:
        return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; the limit is {MAX_PIXELS}")
