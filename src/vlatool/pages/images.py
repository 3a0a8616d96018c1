"""Images on a page: thumbnails inside the file, and strips of them."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from vlatool.episode import Array, UInt8Array
from vlatool.pages.layout import escape
from vlatool.pages.poses import CameraModel

THUMBNAIL_WIDTH = 200
_QUALITY = 80


@dataclass(frozen=True)
class FrameView:
    """Image of a camera at one position in time.

    Attributes:
        image: Recorded image, RGB; None if it cannot be shown.
        camera: Camera model; None without calibration.
        problem: Reason for a missing image.
    """

    image: Image.Image | None
    camera: CameraModel | None = None
    problem: str = ""


def frame_view(
    frame: UInt8Array, intrinsics: Array | None, extrinsics: Array | None, row: int
) -> FrameView:
    """Decoded image uint8 [H, W, 3] with the camera model at a row of the matrices."""
    image = Image.fromarray(frame)
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, row, image.size))


def thumbnail(image: Image.Image, description: str, drawing: str = "") -> str:
    """HTML of an image, at most 200 pixels wide.

    Args:
        image: RGB.
        description: Alternative text.
        drawing: SVG elements over the image, in its pixels, whose corner is (0, 0).
    """
    width, height = image.size
    small = image
    if width > THUMBNAIL_WIDTH:
        size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
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


def frame_figure(view: FrameView, description: str, caption: str, drawing: str = "") -> str:
    """Image with a caption below, or the reason why it is missing.

    Args:
        view: Image.
        description: Alternative text.
        caption: Text below.
        drawing: SVG elements over the image.
    """
    if view.image is None:
        return figure(image_placeholder(view.problem), caption)
    return figure(thumbnail(view.image, description, drawing), caption)


def strip(label: str, figures: Iterable[str]) -> str:
    """Row of figures under a label, which is HTML."""
    return f'<div class="label">{label}</div><div class="strip">{"".join(figures)}</div>'


def camera_strips(cameras: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """Row of images per camera, captioned with their steps from `first` on."""
    return "".join(
        strip(
            escape(camera),
            (
                frame_figure(view, f"{camera}, {step_text(step)}", step_text(step))
                for step, view in enumerate(views, first)
            ),
        )
        for camera, views in cameras.items()
    )


def step_text(step: int) -> str:
    """Step relative to the anchor as text."""
    return f"{step:+d}" if step else "anchor"
