"""Stored images as views of a page."""

from pathlib import Path

import numpy as np
from PIL import Image

from vlatool.artifacts.images import decode_rgb, open_image
from vlatool.pages.images import FrameView
from vlatool.storage.byte_ranges import read_file


def file_view(path: Path) -> FrameView:
    """Image of a file."""
    try:
        return FrameView(visible_image(read_file(path)))
    except FileNotFoundError:
        return FrameView(None, problem="is missing")
    except (OSError, ValueError):
        return FrameView(None, problem="cannot be decoded")


def visible_image(data: bytes) -> Image.Image:
    """Decodes a JPEG or PNG as RGB; depth and labels of 16 bits as gray values."""
    with open_image(data) as image:
        if image.mode.startswith("I"):
            return _values_as_gray(image)
    return Image.fromarray(decode_rgb(data))


def _values_as_gray(image: Image.Image) -> Image.Image:
    """Depth or labels of 16 bits, scaled to visible gray values; 0 stays black."""
    values = np.asarray(image, np.float64)
    positive = values[values > 0]
    if not positive.size:
        return Image.new("RGB", image.size)
    low, high = positive.min(), positive.max()
    gray = 60 + 195 * (values - low) / max(high - low, 1)
    return Image.fromarray(np.where(values > 0, gray, 0).astype(np.uint8)).convert("RGB")
