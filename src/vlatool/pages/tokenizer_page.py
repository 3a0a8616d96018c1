"""The page of `tokenizer eval`: figures, and reconstructions beside their originals."""

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
_GAIN = 2  # differences are shown so many times as large


@dataclass(frozen=True)
class ReconstructionReport:
    """What stands above the pictures.

    Attributes:
        title: Of the page.
        pictures: How many were measured.
        figures: Names and values, in order.
        notes: What else is to be said.
    """

    title: str
    num_images: int
    metrics: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()


def write_tokenizer_page(
    path: Path,
    report: ReconstructionReport,
    groups: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, tuple[UInt8Array, UInt8Array]],
) -> None:
    """Writes the page.

    Args:
        path: HTML file.
        report: What stands above the pictures.
        groups: Best, median and worst pictures: name to PSNR in dB.
        drawn: Original and reconstruction uint8 [S, S, 3] by name.
    """
    rows = [
        Section(name.capitalize(), _group(keys, drawn), is_under=True)
        for name, keys in groups.items()
    ]
    told = '<p class="quiet">from above: original, reconstruction, difference (twice as large)</p>'
    sections = [
        Section(
            "Figures", table((), report.metrics, numbers=(1,)) + "".join(map(note, report.notes))
        ),
        Section("Pictures", told, is_card=False),
        *rows,
    ]
    subtitle = f"{report.num_images:,} pictures drawn again from their codes"
    write_text(path, page(report.title, subtitle, sections, generator=_GENERATOR))


def _group(keys: Mapping[str, float], drawn: Mapping[str, tuple[UInt8Array, UInt8Array]]) -> str:
    """Columns of original, reconstruction and difference, with name and PSNR below."""
    columns = "".join(_column(key, keys[key], *drawn[key]) for key in keys if key in drawn)
    return f'<div class="strip">{columns}</div>' * bool(columns)


def _column(key: str, psnr: float, original: UInt8Array, made: UInt8Array) -> str:
    difference = np.abs(original.astype(np.int16) - made)
    shown = {
        "original": original,
        "reconstruction": made,
        "difference": np.minimum(_GAIN * difference, 255).astype(np.uint8),
    }
    stack = "".join(thumbnail(_enlarged(one), f"{key}, {what}") for what, one in shown.items())
    return f'<div title="{escape(key)}">{figure(stack, f"{psnr:.1f} dB")}</div>'


def _enlarged(pixels: UInt8Array) -> Image.Image:
    """A small picture with larger pixels, which the page's compression leaves as they are."""
    image = Image.fromarray(pixels)
    factor = max(1, THUMBNAIL_WIDTH // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
