"""HTML page of a folder of windows: images, actions and future images of some windows."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.artifacts.windows.folder import lines_files
from vlatool.inspection.projection import FrameView
from vlatool.inspection.windows import WindowsReport, WindowView, view_window
from vlatool.pages.html_page import PageRequest, card, evenly_spaced, group
from vlatool.pages.images import figure, image_placeholder, thumbnail
from vlatool.pages.layout import (
    Section,
    escape,
    heading,
    note,
    page,
    sentences,
    table,
    tags,
    tiles,
)
from vlatool.pages.plots import Axis, axis_chart, field_lines, legend, line_chart
from vlatool.storage.atomic import write_text

_TICKS = 16


def write_windows_page(
    report: WindowsReport, location: Path, path: Path, request: PageRequest
) -> None:
    """Writes the page of the folder of windows at a location to `path`.

    Raises:
        StorageError: The page cannot be written.
    """
    files = lines_files(location)
    cards: list[Section] = []
    for order, index in enumerate(_episode_indices(len(files), request.samples)):
        # Position of the window in its episode: of the first window 0, of the last 1.
        part = order / max(request.samples - 1, 1)
        view = partial(view_window, location, report, files[index], part)
        cards.append(card(files[index].stem, lambda view=view: _section(view())))
    count = "" if report.samples is None else f" of {report.samples}"
    sections = [_overview(report), *group(f"Windows ({len(cards)}{count})", cards)]
    write_text(path, page(request.title, report.headline(), sections))


def _episode_indices(episodes: int, windows: int) -> list[int]:
    """Evenly spaced indices of episodes; repeated if there are fewer than windows to show."""
    if episodes >= windows:
        return evenly_spaced(episodes, windows)
    return sorted(number % episodes for number in range(windows))


def _overview(report: WindowsReport) -> Section:
    info = report.summary()
    shown = {"windows": report.samples, "episodes": report.episodes}
    rows = [(name, ", ".join(v) if isinstance(v, tuple) else v) for name, v in info.items()]
    findings = "".join(note(finding["message"]) for finding in report.findings)
    body = tiles(shown) + findings + table((), rows)
    return Section("Overview", body + heading("Tasks", sentences({"task": report.tasks})))


def _section(view: WindowView) -> Section:
    steps = len(next(iter(view.past.values())))
    target = {"target": "the actions" if view.kind == "vla" else "the future images"}
    body = (
        tags(target)
        + heading("Instruction", sentences({"task": [view.task]}))
        + heading(f"Past images: {steps} steps up to the anchor", _strips(view.past, 1 - steps))
        + heading("Actions", _chart(view))
        + heading(f"Future images: {len(view.actions)} steps", _strips(view.future, 1))
    )
    return Section(view.name, body, is_under=True)


def _strips(views: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """Row of images per camera, captioned with their steps."""
    rows: list[str] = []
    for camera, frames in views.items():
        images = "".join(
            figure(_image(frame, f"{camera}, step {step:+d}"), _step(step))
            for step, frame in enumerate(frames, first)
        )
        label = f'<div class="label">{escape(camera)}</div>'
        rows.append(f'{label}<div class="strip">{images}</div>')
    return "".join(rows)


def _image(view: FrameView, description: str) -> str:
    if view.image is None:
        return image_placeholder(view.problem)
    return thumbnail(view.image, description)


def _chart(view: WindowView) -> str:
    """Chart of the actions with a line per dimension; padding is shaded."""
    steps = len(view.actions)
    padding = ((view.num_recorded - 0.5, steps - 0.5),) if view.num_recorded < steps else ()
    axis = Axis(-0.5, steps - 0.5, anchor=0.0, shaded=padding)
    lines = field_lines(np.arange(steps), view.actions, view.action_names)
    every = max(1, -(-steps // _TICKS))
    ticks = [(float(step), _step(step)) for step in range(0, steps, every)]
    label = f'<div class="label">actions, not normalized &ensp;{legend(lines)}</div>'
    return label + line_chart(axis, lines, dots=True) + axis_chart(axis, ticks)


def _step(step: int) -> str:
    return f"{step:+d}" if step else "anchor"
