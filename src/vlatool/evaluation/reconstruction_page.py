"""HTML page of `tokenizer eval`: metrics, and reconstructions with their originals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlatool.episode import UInt8Array
from vlatool.pages.images import THUMBNAIL_WIDTH, figure, thumbnail
from vlatool.pages.layout import Section, escape, note, page, table
from vlatool.storage.atomic import write_text

_GENERATOR = "vlatool tokenizer eval"
_GAIN = 2  # factor of differences


@dataclass(frozen=True)
class ReconstructionReport:
    """Contents of the page above the images.

    Attributes:
        title: Title of the page.
        num_images: Number of evaluated images.
        metrics: Names and values, in order.
        notes: Notes below the metrics.
    """

    title: str
    num_images: int
    metrics: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()


def write_tokenizer_page(
    path: Path,
    report: ReconstructionReport,
    groups: Mapping[str, Mapping[str, float]],
    images: Mapping[str, tuple[UInt8Array, UInt8Array]],
) -> None:
    """Writes the page.

    Args:
        path: HTML file.
        report: Contents above the images.
        groups: Best, median and worst images: name to PSNR in dB.
        images: Original and reconstruction uint8 [S, S, 3] by name.
    """
    rows = [
        Section(name.capitalize(), _group(keys, images), is_under=True)
        for name, keys in groups.items()
    ]
    caption = '<p class="quiet">from the top: original, reconstruction, difference times 2</p>'
    sections = [
        Section(
            "Metrics", table((), report.metrics, numbers=(1,)) + "".join(map(note, report.notes))
        ),
        Section("Images", caption, is_card=False),
        *rows,
    ]
    subtitle = f"{report.num_images:,} images and their reconstructions"
    write_text(path, page(report.title, subtitle, sections, generator=_GENERATOR))


def _group(keys: Mapping[str, float], images: Mapping[str, tuple[UInt8Array, UInt8Array]]) -> str:
    """Columns of original, reconstruction and difference, with the PSNR below."""
    columns = "".join(_column(key, keys[key], *images[key]) for key in keys if key in images)
    return f'<div class="strip">{columns}</div>' * bool(columns)


def _column(key: str, psnr: float, original: UInt8Array, reconstruction: UInt8Array) -> str:
    difference = np.abs(original.astype(np.int16) - reconstruction)
    shown = {
        "original": original,
        "reconstruction": reconstruction,
        "difference": np.minimum(_GAIN * difference, 255).astype(np.uint8),
    }
    stack = "".join(
        thumbnail(_enlarged(pixels), f"{key}, {label}") for label, pixels in shown.items()
    )
    return f'<div title="{escape(key)}">{figure(stack, f"{psnr:.1f} dB")}</div>'


def _enlarged(pixels: UInt8Array) -> Image.Image:
    """A small image enlarged without interpolation, so that JPEG changes it less."""
    image = Image.fromarray(pixels)
    factor = max(1, THUMBNAIL_WIDTH // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
