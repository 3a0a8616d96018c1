"""What is in a folder of windows, and one of them looked at closely.

Legend of shapes: T actions of a window, A values of an action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.lines import lines_index_path, read_lines
from vlatool.artifacts.shard import read_index
from vlatool.artifacts.window_folder import (
    PUBLISHED_CAMERAS,
    PUBLISHED_STEPS,
    WindowManifest,
    lines_files,
    read_manifest,
)
from vlatool.artifacts.windows import Kind, Window, parse_window
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.projection import FrameView, file_view
from vlatool.inspection.report import Findings, Problems, findings_table, number_text, pairs, table
from vlatool.jobs.files import output_files
from vlatool.jobs.record import read_valid_record
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.tree import size_text

_SHOWN_TASKS = 8


@dataclass(frozen=True)
class WindowsReport:
    """What is in a folder of windows.

    Attributes:
        folder: Where.
        status: `whole`, `partial` where episodes failed, `incomplete` where the run has not ended,
            `broken`, or `published` where no run of ours was.
        bytes: Of all files.
        episodes: Files of lines.
        samples: Lines, as far as indexes or the manifest tell; None where neither does.
        cameras: In order.
        window: Steps that are seen, the present one included, and steps that come.
        tasks: Instructions of the first lines of the first episodes.
        manifest: What the folder says of itself; None where it does not.
        findings: What is broken or missing, with `code` and `message`.
    """

    folder: str
    status: str
    bytes: int
    episodes: int
    samples: int | None
    cameras: tuple[str, ...]
    window: tuple[int, int]
    tasks: tuple[str, ...]
    manifest: WindowManifest | None
    findings: Findings = ()
    kind: str = "windows"

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        return asdict(self)

    def headline(self) -> str:
        """What it is, in a few words."""
        count = "an unknown number of" if self.samples is None else self.samples
        return f"{count} windows of {self.episodes} episodes"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        said = [(f'"{text}"',) for text in self.tasks]
        return [
            pairs(self.summary()),
            findings_table(self.findings),
            table("Tasks", ("example",), said),
        ]

    def summary(self) -> dict[str, object]:
        """Facts by name."""
        seen, coming = self.window
        info: dict[str, object] = {
            "status": self.status,
            "on disk": size_text(self.bytes),
            "window": f"{seen} steps up to the present, {coming} from it on",
            "cameras": self.cameras,
        }
        if (told := self.manifest) is not None:
            size = told.image_size
            info |= {
                "pictures": f"{told.pictures}, {told.untouched} of them as they were recorded",
                "size": "their own" if size is None else f"{size[0]} x {size[1]}",
                "rate": "unknown" if told.fps is None else f"{number_text(told.fps)} fps",
                "actions": f"{told.action_width} values ({', '.join(told.action_fields)}), "
                "not normalised",
                "lines of a frame": told.qa_mode,
                "names begin with": told.names,
            }
        return info


@dataclass(frozen=True)
class WindowView:
    """One window.

    Attributes:
        name: Its heading.
        kind: Of its line.
        task: Its instruction.
        seen: Camera to the pictures up to the present, oldest first.
        coming: Camera to those behind it.
        actions: [T, A], as recorded.
        real: How many of the actions are recorded; the others are padding.
        action_names: A names.
    """

    name: str
    kind: Kind
    task: str
    past: Mapping[str, Sequence[FrameView]]
    future: Mapping[str, Sequence[FrameView]]
    actions: Array
    num_recorded: int
    action_names: Sequence[str]


def inspect_windows(location: Path) -> WindowsReport:
    """Reads the manifest, the indexes and the first line of some episodes.

    Raises:
        DataError: A run has begun here and has written nothing yet.
    """
    findings = Problems()
    manifest = findings.read(read_manifest, location)
    record = findings.read(read_valid_record, location)
    files = lines_files(location)
    if not files:
        raise DataError(
            f"{location}: no episode is written here yet",
            hint="wait for the run, or, if it was interrupted, run the same command again",
            code="data.incomplete_output",
            details={"path": str(location)},
        )
    status = "published" if record is None else "whole"
    if record is not None and not record.complete:
        status = "incomplete" if record.result is None else "partial"
    chosen = files[:: max(1, len(files) // _SHOWN_TASKS)][:_SHOWN_TASKS]
    tasks = (findings.read(_first_task, path) for path in chosen)
    known = dict.fromkeys(task for task in tasks if task is not None)
    past, future = PUBLISHED_STEPS, PUBLISHED_STEPS
    if manifest is not None:
        past, future = manifest.past_steps, manifest.future_steps
    return WindowsReport(
        folder=str(location),
        status="broken" if findings else status,
        bytes=sum(file.bytes for file in output_files(location)),
        episodes=len(files),
        samples=manifest.samples if manifest else _indexed(files),
        cameras=manifest.cameras if manifest else PUBLISHED_CAMERAS,
        window=(past, future),
        tasks=tuple(known),
        manifest=manifest,
        findings=tuple(findings),
    )


def view_window(location: Path, report: WindowsReport, path: Path, part: float) -> WindowView:
    """The window that is so far into an episode, 0 to 1.

    Raises:
        DataError: The line is broken.
    """
    lines = _line_count(path)
    number = min(int(part * lines), lines - 1)
    window = _window_at(path, number)
    width = len(window.actions[0])
    names = report.manifest.action_names if report.manifest else ()
    return WindowView(
        name=f"{path.stem}, line {number + 1}",
        kind=window.kind,
        task=window.task,
        past=_views(location, report.cameras, window.images),
        future=_views(location, report.cameras, window.future),
        actions=np.array(window.actions),
        num_recorded=_real_actions(window, len(report.cameras)),
        action_names=names if len(names) == width else [str(one) for one in range(width)],
    )


def _views(
    location: Path, cameras: Sequence[str], names: Sequence[str]
) -> dict[str, list[FrameView]]:
    """Pictures that come again are read once."""
    shots = {name: file_view(location / name) for name in dict.fromkeys(names)}
    return {
        camera: [shots[name] for name in names[at :: len(cameras)]]
        for at, camera in enumerate(cameras)
    }


def _real_actions(window: Window, cameras: int) -> int:
    """Actions before the episode ends, which its last picture tells by coming again."""
    coming = window.future[::cameras]
    if coming[0] == window.images[-cameras]:
        return 1
    return min(len(window.actions), len(dict.fromkeys(coming)) + 1)


def _first_task(path: Path) -> str:
    return _window_at(path, 0).task


def _window_at(path: Path, number: int) -> Window:
    """A line of a file, by the index where there is one."""
    index = read_index(lines_index_path(path))
    try:
        if index is not None and number < len(index.offsets):
            start, length = index.ranges()[number]
            return parse_window(read_byte_range(ByteRange(path, start, start + length)))
        for at, line in enumerate(read_lines(path)):
            if at == number:
                return parse_window(line)
        raise ValueError("has no such line")
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}:{number + 1}: {error}",
            hint="`vlatool verify` lists everything that is wrong",
            code="data.broken_window",
            details={"path": str(path), "line": number + 1},
        ) from None


def _line_count(path: Path) -> int:
    index = read_index(lines_index_path(path))
    return len(index.offsets) if index is not None else sum(1 for _ in read_lines(path))


def _indexed(files: Sequence[Path]) -> int | None:
    """Lines of all files, where each has an index."""
    indexes = [read_index(lines_index_path(path)) for path in files]
    counts = [len(one.offsets) for one in indexes if one is not None]
    return sum(counts) if len(counts) == len(files) else None
