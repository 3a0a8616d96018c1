"""The page of a folder of windows: what each one sees, does, and sees then.

Legend of shapes: T actions of a window.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.artifacts.window_folder import lines_files
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
    """Writes to `path` the page of the folder of windows at a location.

    Raises:
        StorageError: It cannot be written.
    """
    files = lines_files(location)
    cards: list[Section] = []
    for order, at in enumerate(_places(len(files), request.samples)):
        # How far into its episode the window is: from the first line to the last.
        part = order / max(request.samples - 1, 1)
        view = partial(view_window, location, report, files[at], part)
        cards.append(card(files[at].stem, lambda view=view: _section(view())))
    count = "" if report.samples is None else f" of {report.samples}"
    sections = [_overview(report), *group(f"Windows ({len(cards)}{count})", cards)]
    write_text(path, page(request.title, report.headline(), sections))


def _places(episodes: int, windows: int) -> list[int]:
    """Episodes, evenly chosen; again where there are fewer than windows to show."""
    if episodes >= windows:
        return evenly_spaced(episodes, windows)
    return sorted(at % episodes for at in range(windows))


def _overview(report: WindowsReport) -> Section:
    info = report.summary()
    shown = {"windows": report.samples, "episodes": report.episodes}
    rows = [(name, ", ".join(v) if isinstance(v, tuple) else v) for name, v in info.items()]
    problems = "".join(note(one["message"]) for one in report.findings)
    body = tiles(shown) + problems + table((), rows)
    return Section("Overview", body + heading("Tasks", sentences({"task": report.tasks})))


def _section(view: WindowView) -> Section:
    steps = len(next(iter(view.past.values())))
    told = {"asks for": "the action" if view.kind == "vla" else "what an action leads to"}
    body = (
        tags(told)
        + heading("Instruction", sentences({"task": [view.task]}))
        + heading(f"Seen: {steps} steps up to the present", _strips(view.past, 1 - steps))
        + heading("Done", _chart(view))
        + heading(f"Seen then: {len(view.actions)} steps", _strips(view.future, 1))
    )
    return Section(view.name, body, is_under=True)


def _strips(views: Mapping[str, Sequence[FrameView]], first: int) -> str:
    """A row of pictures per camera, under the step of each."""
    rows: list[str] = []
    for camera, shots in views.items():
        images = "".join(
            figure(_image(shot, f"{camera}, step {step:+d}"), _step(step))
            for step, shot in enumerate(shots, first)
        )
        label = f'<div class="label">{escape(camera)}</div>'
        rows.append(f'{label}<div class="strip">{images}</div>')
    return "".join(rows)


def _image(shot: FrameView, description: str) -> str:
    if shot.image is None:
        return image_placeholder(shot.problem)
    return thumbnail(shot.image, description)


def _chart(view: WindowView) -> str:
    """The actions, one line per value; padding lies in the shade."""
    steps = len(view.actions)
    padding = ((view.num_recorded - 0.5, steps - 0.5),) if view.num_recorded < steps else ()
    axis = Axis(-0.5, steps - 0.5, anchor=0.0, shaded=padding)
    lines = field_lines(np.arange(steps), view.actions, view.action_names)
    every = max(1, -(-steps // _TICKS))
    ticks = [(float(step), _step(step)) for step in range(0, steps, every)]
    label = f'<div class="label">actions, not normalised &ensp;{legend(lines)}</div>'
    return label + line_chart(axis, lines, dots=True) + axis_chart(axis, ticks)


def _step(step: int) -> str:
    return f"{step:+d}" if step else "now"
