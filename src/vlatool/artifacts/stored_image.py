"""Headers and integrity of encoded images.

Decides if a stored image can be copied unchanged, and if a tokenizer may be trained on it or encode
it.
"""

from dataclasses import dataclass, replace

import simplejpeg

from vlatool.artifacts.image import MAX_PIXELS, decode_rgb, decoded_size, open_image
from vlatool.artifacts.png import is_png, png_info
from vlatool.episode import UInt8Array

PNG, JPEG = "png", "jpeg"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# Pillow's gray modes with more than 8 bits; converted to RGB they would be white.
_NUMERIC_MODES = ("I", "F")


@dataclass(frozen=True)
class ImageInfo:
    """Format and size of an encoded image.

    Attributes:
        format: `png`, `jpeg`, or another name in lower case.
        height: In pixels.
        width: In pixels.
        is_plain: True if it is stored as 8-bit RGB and nothing else: every reader decodes the same
            pixels.
        frames: Number of frames; more than one in an animation.
    """

    format: str
    height: int
    width: int
    is_plain: bool
    frames: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def image_info(data: bytes) -> ImageInfo:
    """Format and size from the header; all checksums of a PNG are compared too.

    Raises:
        ValueError: The data is no image, truncated or damaged, has more than `MAX_PIXELS`, or
            values of more than 8 bits instead of colors, such as depth.
    """
    if is_png(data):
        info = _png_image_info(data)
    elif data.startswith(_JPEG_SIGNATURE):
        info = _jpeg_image_info(data)
    else:
        info = _pillow_image_info(data)
    if info.height * info.width > MAX_PIXELS:
        raise ValueError(f"{info.width} x {info.height} pixels; the limit is {MAX_PIXELS}")
    return info


class NotRgbError(ValueError):
    """An image is not stored as 8-bit RGB, or has several frames."""


def decode_plain(data: bytes, *, convert: bool = False) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of an image that all readers decode alike.

    Args:
        data: Bytes of the file.
        convert: Convert gray, palette and alpha images to RGB, and use the first of several frames.

    Raises:
        NotRgbError: The image would have to be converted.
        ValueError: As `image_info`, or the pixels cannot be decoded.
    """
    info = image_info(data)
    if not convert and info.frames > 1:
        raise NotRgbError("has several frames")
    if not convert and not info.is_plain:
        raise NotRgbError("is not stored as 8-bit RGB (gray, palette or alpha)")
    return decode_rgb(data)


def check_pixels(data: bytes) -> None:
    """Decodes an image; raises ValueError if that fails."""
    decoded_size(data)


def _png_image_info(data: bytes) -> ImageInfo:
    info = png_info(data)
    if not info.is_plain_rgb:
        return replace(_pillow_image_info(data), is_plain=False)
    return ImageInfo(PNG, *info.size, is_plain=True)


def _jpeg_image_info(data: bytes) -> ImageInfo:
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _pillow_image_info(data)
    return ImageInfo(JPEG, int(height), int(width), colors == "YCbCr")


def _pillow_image_info(data: bytes) -> ImageInfo:
    with open_image(data) as image:
        name = (image.format or "").lower()
        frames = int(getattr(image, "n_frames", 1))
        if image.mode.startswith(_NUMERIC_MODES):
            raise ValueError(f"values instead of colors (mode {image.mode!r}), such as depth")
        is_plain = image.mode == "RGB" and frames == 1
        return ImageInfo(name, image.height, image.width, is_plain, frames)
