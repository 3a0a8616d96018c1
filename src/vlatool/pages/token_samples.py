"""The page of built samples: what they are, and some with their pictures, codes and actions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlatool.artifacts.samples_folder import SamplesFolder
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.inspection.projection import FrameView
from vlatool.inspection.report import branch, listed
from vlatool.inspection.token_samples import BuiltReport, BuiltView, view_built
from vlatool.pages.html_page import PageRequest, spread
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
from vlatool.pages.plots import Axis, axis_chart, channels, histogram, legend, line_chart
from vlatool.storage.atomic import write_text
from vlatool.storage.tree import size_text

# Codes int64 [Q, K] to pictures uint8 [Q, S, S, 3].
Draw = Callable[[Array], UInt8Array]


def write_built_page(report: BuiltReport, location: Path, path: Path, request: PageRequest) -> None:
    """Writes to `path` the page of the built samples at a location."""
    folder = SamplesFolder.open(location)
    names = [str(one) for one in listed(branch(folder.document, "profile"), "dimensions")]
    draw = _drawing(folder, request.tokenizer)
    samples = [_sample(folder, at, names, draw) for at in spread(len(folder), request.samples)]
    title = f"Samples ({len(samples)} of {len(folder)})"
    above = Section(title, '<p class="quiet">evenly chosen</p>', is_card=False)
    sections = [*_overview(report), above, *samples]
    write_text(path, page(request.title, report.headline(), sections))


def _overview(report: BuiltReport) -> list[Section]:
    ids = report.action_ids
    info = {
        "samples": f"{report.samples:,}",
        **{f"of kind {kind}": f"{count:,}" for kind, count in report.kinds.items()},
        "episodes": f"{report.episodes:,}",
        "layout": report.layout,
        "action ids per window": f"{ids['mean']:.1f}" if "mean" in ids else "",
        "on disk": size_text(report.bytes),
    }
    findings = "".join(note(one["message"]) for one in report.findings)
    lengths = [int(n) for n, count in report.id_counts.items() for _ in range(count)]
    return [
        Section("Overview", tiles(info) + findings + tags({**report.origin, **report.shape})),
        Section("Action ids", histogram(lengths, "action ids of a window", counted="windows")),
        Section("Tasks", table(("task", "samples"), report.tasks.items(), numbers=(1,))),
    ]


def _drawing(folder: SamplesFolder, tokenizer: str) -> Draw | None:
    """What draws pictures of codes; None without a tokenizer.

    Raises:
        DataError: It is another one than made the codes, or draws nothing.
    """
    if not tokenizer:
        return None
    from vlatool.evaluation.code_maker import open_code_maker, rank_device

    maker = open_code_maker(tokenizer, rank_device())
    maker.check_draws()
    maker.check_made(folder.path, branch(folder.document, "codes"))
    return maker.decode


def _sample(folder: SamplesFolder, number: int, names: Sequence[str], draw: Draw | None) -> Section:
    try:
        view = view_built(folder, number)
    except DataError as error:
        return Section(f"Sample {number}", note(error.message), is_under=True)
    ids = " ".join(map(str, view.sample.conversation.action_ids))
    body = (
        tags(view.info)
        + heading("Pictures that are seen", _strips(view.seen, 1 - _steps(view.seen)))
        + heading("Actions", _actions(view, names))
        + heading("Action ids", f'<p class="small">{code(ids)}</p>')
        + heading("Pictures to come", _strips(view.future, 1))
        + (heading("The same, drawn from their codes", _drawn(view, draw)) if draw else "")
        + details("Codes of the pictures to come", _codes(view.sample.conversation.codes))
    )
    return Section(view.name, body, is_under=True)


def _drawn(view: BuiltView, draw: Draw) -> str:
    """What is drawn of the codes, a row per camera; cameras take turns in them."""
    codes = view.sample.conversation.codes
    if not len(codes):
        return note("This kind of sample has no codes.")
    images = draw(codes.astype(np.int64))
    cameras = list(view.future or view.seen)
    rows = {
        camera: [FrameView(Image.fromarray(one)) for one in images[place :: len(cameras)]]
        for place, camera in enumerate(cameras)
    }
    return _strips(rows, 1)


def _steps(cameras: Mapping[str, Sequence[FrameView]]) -> int:
    return max(map(len, cameras.values()), default=0)


def _strips(cameras: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """A row of pictures per camera, under which stands the step; the first has the number given."""
    rows: list[str] = []
    for camera, shots in cameras.items():
        images = "".join(_figure(camera, at, shot) for at, shot in enumerate(shots, first))
        rows.append(f'<div class="label">{escape(camera)}</div><div class="strip">{images}</div>')
    return "".join(rows)


def _figure(camera: str, step: int, shot: FrameView) -> str:
    caption = f"{step:+d}" if step else "now"
    if shot.image is None:
        return figure(image_placeholder(shot.problem), caption)
    return figure(thumbnail(shot.image, f"{camera}, {caption}"), caption)


def _actions(view: BuiltView, names: Sequence[str]) -> str:
    """The actions of the window as curves, where they are at hand."""
    if view.actions is None:
        return note("The windows are not at hand; without the action tokenizer ids stay numbers.")
    steps, width = view.actions.shape
    known = names if len(names) == width else [str(number) for number in range(width)]
    lines = channels(np.arange(steps), view.actions, known)
    axis = Axis(-1.5, steps - 0.5)
    ticks = [(float(step), f"+{step}") for step in range(steps)]
    label = f'<div class="label">not normalised &ensp;{legend(lines)}</div>'
    return label + line_chart(axis, lines, dots=True) + axis_chart(axis, ticks)


def _codes(codes: Array) -> str:
    rows = [(number, code(" ".join(map(str, row)))) for number, row in enumerate(codes.tolist())]
    return table(("picture", "codes"), rows, numbers=(0,))
