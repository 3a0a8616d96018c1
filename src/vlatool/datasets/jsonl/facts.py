"""Report of a folder of windows, with a page of some windows.

Legend of shapes: T actions of a window, A dimensions of an action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.datasets.jsonl import layout as windows_layout
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.ownership import data_files
from vlatool.jobs.record import read_valid_record
from vlatool.media.images import file_view
from vlatool.media.lines import lines_index_path, read_lines
from vlatool.media.tar import read_index
from vlatool.report.charts import FieldValues, field_charts
from vlatool.report.episodes import FrameView, camera_strips
from vlatool.report.facts import (
    Axis,
    PageRequest,
    Part,
    Problems,
    Quotes,
    Report,
    Section,
    Table,
    Tags,
    Tiles,
    Titled,
    card,
    evenly_spaced,
    notes,
    status_text,
    under_heading,
)
from vlatool.report.text import number_text
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.tree import size_text

_SHOWN_TASKS = 8


@dataclass(frozen=True)
class WindowsFacts:
    """Contents of a folder of windows."""

    folder: str  # Path of the folder
    # `whole`, `partial` if episodes failed, `incomplete` if the command has not finished, `broken`,
    # or `published` if vlatool did not write it.
    status: str
    bytes: int  # total size of the files
    episodes: int  # number of files of lines
    samples: int | None  # number of lines by the manifest or the indexes; None if neither exists
    cameras: tuple[str, ...]  # cameras in order
    # Number of steps up to the anchor, the anchor included, and from the anchor on.
    window: tuple[int, int]
    tasks: tuple[str, ...]  # instructions of the first lines of some episodes
    manifest: windows_layout.WindowManifest | None  # manifest; None if it does not exist


def inspect(location: Path) -> Report:
    """Reads the manifest, the indexes and the first line of some episodes."""
    findings = Problems()
    facts = _read_facts(location, findings)
    count = facts.samples
    windows = "an unknown number of windows" if count is None else counted(count, "window")
    return Report(
        kind="windows",
        headline=f"{windows} of {counted(facts.episodes, 'episode')}",
        facts=asdict(facts),
        summary=_summary(facts),
        tables=[Table(("example",), [(f'"{text}"',) for text in facts.tasks], "Tasks")],
        findings=findings,
        page=partial(_page, facts, findings),
    )


def _read_facts(location: Path, findings: Problems) -> WindowsFacts:
    manifest = findings.read(windows_layout.read_manifest, location)
    record = findings.read(read_valid_record, location)
    files = windows_layout.lines_files(location)
    if not files:
        raise DataError.at(
            location,
            "no episode is written here yet",
            hint="wait until it ends; if it was interrupted, run the same command again",
            code="data.incomplete",
        )
    status = "published" if record is None else "whole"
    if record is not None and not record.complete:
        status = "incomplete" if record.result is None else "partial"
    tasks: dict[str, None] = {}
    for path in files[:: max(1, len(files) // _SHOWN_TASKS)][:_SHOWN_TASKS]:
        window = findings.read(_window_at, path, 0)
        if window is not None:
            tasks[window.task] = None
    if manifest is None:
        samples = _indexed(files)
        cameras = windows_layout.PUBLISHED_CAMERAS
        past = windows_layout.PUBLISHED_STEPS
        future = windows_layout.PUBLISHED_STEPS
    else:
        samples = manifest.samples
        cameras = manifest.cameras
        past = manifest.past_steps
        future = manifest.future_steps
    return WindowsFacts(
        folder=str(location),
        status="broken" if findings else status,
        bytes=sum(file.bytes for file in data_files(location)),
        episodes=len(files),
        samples=samples,
        cameras=cameras,
        window=(past, future),
        tasks=tuple(tasks),
        manifest=manifest,
    )


def _summary(facts: WindowsFacts) -> dict[str, object]:
    past, future = facts.window
    info: dict[str, object] = {
        "status": status_text(facts.status),
        "on disk": size_text(facts.bytes),
        "window": f"{counted(past, 'step')} up to the anchor, {future} from the anchor on",
        "cameras": facts.cameras,
    }
    manifest = facts.manifest
    if manifest is not None:
        size = manifest.image_size
        fps = manifest.fps
        fields = ", ".join(manifest.action_fields)
        info |= {
            "images": f"{manifest.pictures}, {manifest.untouched} of them as recorded",
            "image size": "as recorded" if size is None else f"{size[0]} x {size[1]}",
            "rate": "unknown" if fps is None else f"{number_text(fps)} fps",
            "actions": f"{counted(manifest.action_width, 'dimension')} ({fields}), not normalized",
            "lines of a frame": manifest.qa_mode,
            "prefix of names": manifest.names,
        }
    return info


def _page(facts: WindowsFacts, findings: Problems, request: PageRequest) -> list[Section]:
    files = windows_layout.lines_files(Path(facts.folder))
    cards: list[Section] = []
    for order, index in enumerate(_episode_indices(len(files), request.samples)):
        # Position of the window in its episode: of the first window 0, of the last 1.
        part = order / max(request.samples - 1, 1)
        cards.append(card(files[index].stem, partial(_window_card, facts, files[index], part)))
    count = "" if facts.samples is None else f" of {facts.samples}"
    rows: list[tuple[str, object]] = []
    for name, value in _summary(facts).items():
        rows.append((name, ", ".join(value) if isinstance(value, tuple) else value))
    overview: list[Part] = [
        Tiles({"windows": facts.samples, "episodes": facts.episodes}),
        *notes(findings),
        Table((), rows),
        Titled("Tasks", [Quotes({"task": facts.tasks})]),
    ]
    title = f"Windows ({len(cards)}{count})"
    return [Section("Overview", overview), *under_heading(title, cards)]


def _episode_indices(episodes: int, windows: int) -> list[int]:
    """Evenly spaced indices of episodes; repeated if there are fewer than windows to show."""
    if episodes >= windows:
        return evenly_spaced(episodes, windows)
    return sorted(number % episodes for number in range(windows))


def _window_card(facts: WindowsFacts, path: Path, part: float) -> Section:
    """Card of the window at a position of an episode; `part`: position in the episode, 0 to 1."""
    index = read_index(lines_index_path(path))
    lines = len(index.offsets) if index is not None else sum(1 for _ in read_lines(path))
    number = min(int(part * lines), lines - 1)
    window = _window_at(path, number)
    past = _strips(facts, window.images)
    steps = len(next(iter(past.values())))
    before = f"Past images: {counted(steps, 'step')} up to the anchor"
    after = f"Future images: {counted(len(window.actions), 'step')}"
    parts: list[Part] = [
        Tags({"target": "the actions" if window.kind == "vla" else "the future images"}),
        Titled("Instruction", [Quotes({"task": [window.task]})]),
        Titled(before, camera_strips(past, 1 - steps)),
        Titled("Actions", _charts(facts, window)),
        Titled(after, camera_strips(_strips(facts, window.future), 1)),
    ]
    return Section(f"{path.stem}, line {number + 1}", parts, is_under=True)


def _strips(facts: WindowsFacts, names: Sequence[str]) -> Mapping[str, Sequence[FrameView]]:
    """Map from camera to its images; an image that occurs several times is read once."""
    views = {name: file_view(Path(facts.folder) / name) for name in dict.fromkeys(names)}
    strips: dict[str, Sequence[FrameView]] = {}
    for index, camera in enumerate(facts.cameras):
        strips[camera] = [views[name] for name in names[index :: len(facts.cameras)]]
    return strips


def _charts(facts: WindowsFacts, window: windows_layout.Window) -> list[Part]:
    """Charts of the actions with a line per dimension; padding is shaded."""
    actions = np.array(window.actions)
    steps, width = actions.shape
    names = facts.manifest.action_names if facts.manifest else ()
    if len(names) != width:
        names = [str(index) for index in range(width)]
    recorded = _num_recorded(window, len(facts.cameras))
    padding = ((recorded - 0.5, steps - 0.5),) if recorded < steps else ()
    axis = Axis(-0.5, steps - 0.5, "steps", whole=True, anchor=0.0, shaded=padding)
    field = FieldValues("actions, not normalized", actions, names)
    return field_charts(axis, np.arange(steps), [field], has_dots=True)


def _num_recorded(window: windows_layout.Window, cameras: int) -> int:
    """Number of actions before the end of the episode, whose last image is repeated as padding."""
    future = window.future[::cameras]
    if future[0] == window.images[-cameras]:
        return 1
    return min(len(window.actions), len(dict.fromkeys(future)) + 1)


def _window_at(path: Path, number: int) -> windows_layout.Window:
    """Window at a line of a file, by the index if there is one."""
    index = read_index(lines_index_path(path))
    try:
        if index is not None and number < len(index.offsets):
            start, length = index.ranges()[number]
            line = read_byte_range(ByteRange(path, start, start + length))
            return windows_layout.parse_window(line)
        for current, line in enumerate(read_lines(path)):
            if current == number:
                return windows_layout.parse_window(line)
        raise ValueError("has no such line")
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}:{number + 1}: {error}",
            hint="run `vlatool verify` to list all findings",
            code="data.broken",
            details={"path": str(path), "line": number + 1},
        ) from None


def _indexed(files: Sequence[Path]) -> int | None:
    """Number of lines of all files; None if a file has no index."""
    lines = 0
    for path in files:
        index = read_index(lines_index_path(path))
        if index is None:
            return None
        lines += len(index.offsets)
    return lines
