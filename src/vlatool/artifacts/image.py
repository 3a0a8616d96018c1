"""A JPEG or PNG: how it is written, and the one way it is read.

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

# A picture of more is not unpacked; no robot has such a camera.
MAX_PIXELS = 2**26
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_JPEG = b"\xff\xd8\xff"
# What Pillow says of contents that are no picture; the warning where warnings are errors.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

# Pixels of colour per pixel of brightness: all of them, or one of four.
Subsampling = Literal["4:4:4", "4:2:0"]


def encode_jpeg(pixels: UInt8Array, quality: int, subsampling: Subsampling = "4:2:0") -> bytes:
    """A JPEG of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return buffer.getvalue()


def encode_png(values: Array) -> bytes:
    """A PNG of uint16 [H, W] or uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_rgb(data: bytes, buffer: UInt8Array | None = None) -> UInt8Array:
    """Pixels uint8 [H, W, 3].

    Args:
        data: The file.
        buffer: Room for them, uint8 [K], which is used where it fits.

    Raises:
        ValueError: It cannot be decoded, or has more than `MAX_PIXELS`.
    """
    pixels = _decode_valid_jpeg(data, buffer)
    if pixels is not None:
        return pixels
    with open_image(data) as image:
        return np.asarray(image.convert("RGB"))


def image_mode(data: bytes) -> str:
    """How a picture stores colours, in Pillow's words (`RGB`, `L`, `RGBA`); its header is read.

    Raises:
        ValueError: It is no picture, or has more than `MAX_PIXELS`.
    """
    with open_image(data) as image:
        return image.mode


def decoded_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture that can be decoded; ValueError of one that cannot."""
    pixels = _decode_valid_jpeg(data)
    if pixels is not None:
        return pixels.shape[1], pixels.shape[0]
    with open_image(data) as image:
        image.load()
        return image.size


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """The picture, whose pixels are decoded when they are asked for.

    Raises:
        ValueError: As `decode_rgb`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.width, image.height)
            yield image
    except Image.UnidentifiedImageError:
        raise ValueError(f"not a picture: {data[:8].hex(' ') or 'empty'}") from None
    except _BROKEN as error:
        raise ValueError(str(error)) from None


def _decode_valid_jpeg(data: bytes, buffer: UInt8Array | None = None) -> UInt8Array | None:
    """Pixels of a JPEG without a flaw, the same as Pillow's in two thirds of the time.

    None leaves the verdict to Pillow, which reads on over some flaws.
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
