"""Pictures on a page: small, inside the file, with drawings over them."""

import base64
import io

import numpy as np
from PIL import Image

from vlatool.episode import UInt8Array
from vlatool.pages.layout import escape

THUMBNAIL_WIDTH = 200
_QUALITY = 80
# A picture of more pixels is not unpacked; no robot has such a camera.
_MOST_PIXELS = 2**26


class UnreadablePictureError(ValueError):
    """Bytes that are no picture, or too large a one."""


def open_picture(data: bytes) -> Image.Image:
    """A JPEG or PNG, decoded as RGB.

    Raises:
        UnreadablePictureError: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise UnreadablePictureError(f"{picture.width} x {picture.height} is too large")
            if picture.mode.startswith("I"):
                return _values_as_grey(picture)
            return picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePictureError(str(error)) from None


def _values_as_grey(picture: Image.Image) -> Image.Image:
    """Depth or labels of 16 bits, stretched over the greys that a screen has; 0 stays black."""
    values = np.asarray(picture, np.float64)
    there = values[values > 0]
    if not there.size:
        return Image.new("RGB", picture.size)
    low, high = there.min(), there.max()
    grey = 60 + 195 * (values - low) / max(high - low, 1)
    return Image.fromarray(np.where(values > 0, grey, 0).astype(np.uint8)).convert("RGB")


def frame_picture(frame: UInt8Array) -> Image.Image:
    """The picture of a decoded frame uint8 [H, W, 3]."""
    return Image.fromarray(frame)


def thumbnail(picture: Image.Image, description: str, drawing: str = "") -> str:
    """A picture of at most 200 pixels' width.

    Args:
        picture: RGB.
        description: Text for those who do not see it.
        drawing: SVG elements over it, in pixels of `picture`, whose corner is (0, 0).
    """
    width, height = picture.size
    small = picture
    if width > THUMBNAIL_WIDTH:
        size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
        small = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    overlay = f'<svg viewBox="0 0 {width} {height}">{drawing}</svg>' if drawing else ""
    return (
        f'<span class="picture"><img alt="{escape(description)}" width="{small.width}" '
        f'height="{small.height}" src="data:image/jpeg;base64,{data}">{overlay}</span>'
    )


def lost_picture(reason: str) -> str:
    """What stands where a picture should be."""
    return f'<span class="picture lost">{escape(reason)}</span>'


def figure(content: str, caption: str) -> str:
    """A picture with text below."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"
