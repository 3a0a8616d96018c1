"""Images on a page: thumbnails inside the file, and strips of them."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from vlatool.episode import Array, UInt8Array
from vlatool.pages.layout import escape
from vlatool.pages.poses import CameraModel

THUMBNAIL_SIZE = 240
_QUALITY = 78
# Longer strips have smaller images, and more in a row.
_FEW = 10
_SMALL_SIZE = 160


@dataclass(frozen=True)
class FrameView:
    """Image of a camera at one position in time."""

    image: Image.Image | None  # recorded image, RGB; None if it cannot be shown
    camera: CameraModel | None = None  # camera model; None without calibration
    problem: str = ""  # reason for a missing image


def frame_view(
    frame: UInt8Array, intrinsics: Array | None, extrinsics: Array | None, row: int
) -> FrameView:
    """Decoded image uint8 [H, W, 3] with the camera model at a row of the matrices."""
    image = Image.fromarray(frame)
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, row, image.size))


def thumbnail(
    image: Image.Image, description: str, drawing: str = "", largest: int = THUMBNAIL_SIZE
) -> str:
    """HTML of an image; `drawing`: SVG elements over the image, in its pixels, whose corner is (0,
    0); `largest`: largest width and height in the file, in pixels.
    """
    width, height = image.size
    small = image
    if (scale := largest / max(width, height)) < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    overlay = f'<svg viewBox="0 0 {width} {height}">{drawing}</svg>' if drawing else ""
    return (
        f'<span class="image"><img alt="{escape(description)}" width="{small.width}" '
        f'height="{small.height}" src="data:image/jpeg;base64,{data}">{overlay}</span>'
    )


def image_placeholder(reason: str) -> str:
    """Text in place of a missing image."""
    return f'<span class="image missing">{escape(reason)}</span>'


def figure(content: str, caption: str) -> str:
    """Image with a caption below."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def frame_figure(
    view: FrameView,  # image
    description: str,  # alternative text
    caption: str,  # text below
    drawing: str = "",  # SVG elements over the image
    largest: int = THUMBNAIL_SIZE,  # largest width and height in the file, in pixels
) -> str:
    """Image with a caption below, or the reason why it is missing."""
    if view.image is None:
        return figure(image_placeholder(view.problem), caption)
    return figure(thumbnail(view.image, description, drawing, largest), caption)


def tile(view: FrameView, name: str, lines: Iterable[str], anchor: str) -> str:
    """Link to a part of the page: an image over its name and lines of text."""
    image = image_placeholder(view.problem)
    if view.image is not None:
        image = thumbnail(view.image, name, largest=_SMALL_SIZE)
    below = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
    return f'<a href="#{anchor}">{image}<b>{escape(name)}</b>{below}</a>'


def gallery(tiles: Iterable[str]) -> str:
    """Grid of tiles."""
    return f'<div class="gallery">{"".join(tiles)}</div>'


def crop_drawing(size: tuple[int, int], inner: tuple[float, float, float, float]) -> str:
    """SVG over an image that darkens what a crop leaves out; `size`: (width, height) of the image
    in pixels.
    """
    (width, height), (left, top, right, bottom) = size, inner
    outside = f"M0 0H{width}V{height}H0Z"
    inside = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"
    return (
        f'<path fill="#000" fill-opacity=".55" fill-rule="evenodd" d="{outside}{inside}"/>'
        f'<path fill="none" stroke="#ffd34d" stroke-width="{width / 120:.1f}" '
        f'stroke-dasharray="{width / 40:.1f}" d="{inside}"/>'
    )


def strip(label: str, figures: Iterable[str], *, size: str = "") -> str:
    """Rows of figures; `label`: HTML above them; may be empty."""
    shown = list(figures)
    size = size or ("" if len(shown) <= _FEW else "many")
    head = f'<div class="label">{label}</div>' if label else ""
    style = f"strip {size}".strip()
    return f'{head}<div class="{style}">{"".join(shown)}</div>' if shown else ""


def camera_strips(cameras: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """Row of images per camera, captioned with their steps from `first` on."""
    return "".join(
        strip(
            escape(camera),
            (
                frame_figure(
                    view,
                    f"{camera}, {step_text(step)}",
                    step_text(step),
                    largest=THUMBNAIL_SIZE if len(views) <= _FEW else _SMALL_SIZE,
                )
                for step, view in enumerate(views, first)
            ),
        )
        for camera, views in cameras.items()
    )


def step_text(step: int) -> str:
    """Step relative to the anchor as text."""
    return f"{step:+d}" if step else "anchor"
