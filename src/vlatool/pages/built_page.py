"""The page of built samples: what they are, and some with their pictures, codes and actions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlatool.artifacts.built_folder import BuiltFolder
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.built import BuiltReport, BuiltView, view_built
from vlatool.inspection.report import branch, listed
from vlatool.inspection.shots import Shot
from vlatool.pages.html_page import PageRequest, spread
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
from vlatool.pages.pictures import figure, lost_picture, thumbnail
from vlatool.pages.plots import Axis, axis_chart, channels, histogram, legend, line_chart
from vlatool.storage.atomic import write_text
from vlatool.storage.tree import size_text


def write_built_page(report: BuiltReport, location: Path, path: Path, request: PageRequest) -> None:
    """Writes to `path` the page of the built samples at a location."""
    folder = BuiltFolder.open(location)
    names = [str(one) for one in listed(branch(folder.document, "profile"), "dimensions")]
    samples = [_sample(folder, at, names) for at in spread(len(folder), request.samples)]
    title = f"Samples ({len(samples)} of {len(folder)})"
    above = Section(title, '<p class="quiet">evenly chosen</p>', is_card=False)
    sections = [*_overview(report), above, *samples]
    write_text(path, page(request.title, report.headline(), sections))


def _overview(report: BuiltReport) -> list[Section]:
    ids = report.action_ids
    facts = {
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
        Section("Overview", tiles(facts) + findings + tags({**report.origin, **report.shape})),
        Section("Action ids", histogram(lengths, "action ids of a window", counted="windows")),
        Section("Tasks", table(("task", "samples"), report.tasks.items(), numbers=(1,))),
    ]


def _sample(folder: BuiltFolder, number: int, names: Sequence[str]) -> Section:
    try:
        view = view_built(folder, number)
    except DataError as error:
        return Section(f"Sample {number}", note(error.message), is_under=True)
    ids = " ".join(map(str, view.sample.said.action_ids))
    body = (
        tags(view.facts)
        + heading("Pictures that are seen", _strips(view.seen, 1 - _steps(view.seen)))
        + heading("Actions", _actions(view, names))
        + heading("Action ids", f'<p class="small">{code(ids)}</p>')
        + heading("Pictures to come", _strips(view.future, 1))
        + details("Codes of the pictures to come", _codes(view.sample.said.codes))
    )
    return Section(view.name, body, is_under=True)


def _steps(cameras: Mapping[str, Sequence[Shot]]) -> int:
    return max(map(len, cameras.values()), default=0)


def _strips(cameras: Mapping[str, Sequence[Shot]], first: int) -> str:
    """A row of pictures per camera, under which stands the step; the first has the number given."""
    rows: list[str] = []
    for camera, shots in cameras.items():
        pictures = "".join(_figure(camera, at, shot) for at, shot in enumerate(shots, first))
        rows.append(f'<div class="label">{escape(camera)}</div><div class="strip">{pictures}</div>')
    return "".join(rows)


def _figure(camera: str, step: int, shot: Shot) -> str:
    caption = f"{step:+d}" if step else "now"
    if shot.picture is None:
        return figure(lost_picture(shot.problem), caption)
    return figure(thumbnail(shot.picture, f"{camera}, {caption}"), caption)


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
