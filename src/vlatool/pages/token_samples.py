"""HTML page of samples for a language model: an overview, and some with images, codes, actions.

Legend of shapes: Q future images, K codes of an image, S side of an image in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlatool.artifacts.samples.format import SamplesFolder
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.inspection.projection import FrameView
from vlatool.inspection.report import branch, listed
from vlatool.inspection.token_samples import SamplesReport, TokenSampleView, view_token_sample
from vlatool.pages.html_page import PageRequest, evenly_spaced
from vlatool.pages.images import figure, image_placeholder, thumbnail
from vlatool.pages.layout import (
    Section,
    code,
    details,
    escape,
    heading,
    note,
    page,
    table,
    tags,
    tiles,
)
from vlatool.pages.plots import Axis, axis_chart, field_lines, histogram, legend, line_chart
from vlatool.storage.atomic import write_text
from vlatool.storage.tree import size_text

# Codes int64 [Q, K] to images uint8 [Q, S, S, 3].
Decoder = Callable[[Array], UInt8Array]


def write_samples_page(
    report: SamplesReport, location: Path, path: Path, request: PageRequest
) -> None:
    """Writes the page of the samples at a location to `path`."""
    folder = SamplesFolder.open(location)
    names = [str(name) for name in listed(branch(folder.document, "profile"), "dimensions")]
    decode = _decoder(folder, request.tokenizer)
    samples = [
        _sample(folder, index, names, decode)
        for index in evenly_spaced(len(folder), request.samples)
    ]
    title = f"Samples ({len(samples)} of {len(folder)})"
    header = Section(title, '<p class="quiet">evenly spaced</p>', is_card=False)
    sections = [*_overview(report), header, *samples]
    write_text(path, page(request.title, report.headline(), sections))


def _overview(report: SamplesReport) -> list[Section]:
    ids = report.action_ids
    info = {
        "samples": f"{report.samples:,}",
        **{f"of kind {kind}": f"{count:,}" for kind, count in report.kinds.items()},
        "episodes": f"{report.episodes:,}",
        "layout": report.layout,
        "action ids per window": f"{ids['mean']:.1f}" if "mean" in ids else "",
        "on disk": size_text(report.bytes),
    }
    findings = "".join(note(finding["message"]) for finding in report.findings)
    lengths = [int(n) for n, count in report.id_counts.items() for _ in range(count)]
    return [
        Section("Overview", tiles(info) + findings + tags({**report.origin, **report.shape})),
        Section("Action ids", histogram(lengths, "action ids of a window", counted="windows")),
        Section("Tasks", table(("task", "samples"), report.tasks.items(), numbers=(1,))),
    ]


def _decoder(folder: SamplesFolder, tokenizer: str) -> Decoder | None:
    """Function that decodes codes to images; None without a tokenizer.

    Raises:
        DataError: The tokenizer did not make the codes, or has no decoder.
    """
    if not tokenizer:
        return None
    from vlatool.tokens.decode import open_decoder

    return open_decoder(tokenizer, folder.path, branch(folder.document, "codes"))


def _sample(
    folder: SamplesFolder, number: int, names: Sequence[str], decode: Decoder | None
) -> Section:
    try:
        view = view_token_sample(folder, number)
    except DataError as error:
        return Section(f"Sample {number}", note(error.message), is_under=True)
    ids = " ".join(map(str, view.sample.conversation.action_ids))
    body = (
        tags(view.info)
        + heading("Past images", _strips(view.past, 1 - _steps(view.past)))
        + heading("Actions", _actions(view, names))
        + heading("Action ids", f'<p class="small">{code(ids)}</p>')
        + heading("Future images", _strips(view.future, 1))
        + (
            heading("Future images, reconstructed", _reconstructions(view, decode))
            if decode
            else ""
        )
        + details("Codes of the future images", _codes(view.sample.conversation.codes))
    )
    return Section(view.name, body, is_under=True)


def _reconstructions(view: TokenSampleView, decode: Decoder) -> str:
    """Images decoded from the codes, in a row per camera; codes alternate between cameras."""
    codes = view.sample.conversation.codes
    if not len(codes):
        return note("This kind of sample has no codes.")
    images = decode(codes.astype(np.int64))
    cameras = list(view.future or view.past)
    rows = {
        camera: [FrameView(Image.fromarray(image)) for image in images[index :: len(cameras)]]
        for index, camera in enumerate(cameras)
    }
    return _strips(rows, 1)


def _steps(cameras: Mapping[str, Sequence[FrameView]]) -> int:
    return max(map(len, cameras.values()), default=0)


def _strips(cameras: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """Row of images per camera, captioned with their steps from `first` on."""
    rows: list[str] = []
    for camera, views in cameras.items():
        images = "".join(_figure(camera, step, view) for step, view in enumerate(views, first))
        rows.append(f'<div class="label">{escape(camera)}</div><div class="strip">{images}</div>')
    return "".join(rows)


def _figure(camera: str, step: int, view: FrameView) -> str:
    caption = f"{step:+d}" if step else "anchor"
    if view.image is None:
        return figure(image_placeholder(view.problem), caption)
    return figure(thumbnail(view.image, f"{camera}, {caption}"), caption)


def _actions(view: TokenSampleView, names: Sequence[str]) -> str:
    """Chart of the actions of the window, or a note if the windows are missing."""
    if view.actions is None:
        return note("The folder of windows is missing, so the actions cannot be shown.")
    steps, width = view.actions.shape
    known = names if len(names) == width else [str(number) for number in range(width)]
    lines = field_lines(np.arange(steps), view.actions, known)
    axis = Axis(-1.5, steps - 0.5)
    ticks = [(float(step), f"+{step}") for step in range(steps)]
    label = f'<div class="label">not normalized &ensp;{legend(lines)}</div>'
    return label + line_chart(axis, lines, dots=True) + axis_chart(axis, ticks)


def _codes(codes: Array) -> str:
    rows = [(number, code(" ".join(map(str, row)))) for number, row in enumerate(codes.tolist())]
    return table(("image", "codes"), rows, numbers=(0,))
