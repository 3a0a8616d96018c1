"""Report of a folder of windows, and the view of one window.

Legend of shapes: T actions of a window, A dimensions of an action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.lines import lines_index_path, read_lines
from vlatool.artifacts.tar import read_index
from vlatool.artifacts.windows.folder import (
    PUBLISHED_CAMERAS,
    PUBLISHED_STEPS,
    WindowManifest,
    lines_files,
    read_manifest,
)
from vlatool.artifacts.windows.format import Kind, Window, parse_window
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
    """Contents of a folder of windows.

    Attributes:
        folder: Path of the folder.
        status: `whole`, `partial` if episodes failed, `incomplete` if the command has not finished,
            `broken`, or `published` if vlatool did not write it.
        bytes: Total size of the files.
        episodes: Number of files of lines.
        samples: Number of lines by the manifest or the indexes; None if neither exists.
        cameras: Cameras in order.
        window: Number of steps up to the anchor, the anchor included, and from the anchor on.
        tasks: Instructions of the first lines of some episodes.
        manifest: Manifest; None if it does not exist.
        findings: Broken or missing files, with `code` and `message`.
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
        """Report as JSON values."""
        return asdict(self)

    def headline(self) -> str:
        """Summary in one line."""
        count = "an unknown number of" if self.samples is None else self.samples
        return f"{count} windows of {self.episodes} episodes"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        tasks = [(f'"{text}"',) for text in self.tasks]
        return [
            pairs(self.summary()),
            findings_table(self.findings),
            table("Tasks", ("example",), tasks),
        ]

    def summary(self) -> dict[str, object]:
        """Map from name to value of the first block."""
        past, future = self.window
        info: dict[str, object] = {
            "status": self.status,
            "on disk": size_text(self.bytes),
            "window": f"{past} steps up to the anchor, {future} from the anchor on",
            "cameras": self.cameras,
        }
        if (manifest := self.manifest) is not None:
            size, fps = manifest.image_size, manifest.fps
            fields = ", ".join(manifest.action_fields)
            info |= {
                "images": f"{manifest.pictures}, {manifest.untouched} of them as recorded",
                "image size": "as recorded" if size is None else f"{size[0]} x {size[1]}",
                "rate": "unknown" if fps is None else f"{number_text(fps)} fps",
                "actions": f"{manifest.action_width} dimensions ({fields}), not normalized",
                "lines of a frame": manifest.qa_mode,
                "prefix of names": manifest.names,
            }
        return info


@dataclass(frozen=True)
class WindowView:
    """Contents of a window to show.

    Attributes:
        name: Heading.
        kind: Kind of its line.
        task: Instruction.
        past: Map from camera to its images up to the anchor, oldest first.
        future: Map from camera to its images after the anchor.
        actions: [T, A], as recorded.
        num_recorded: Number of recorded actions; the others are padding.
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
        DataError: A command has started to write here, but no episode is written yet.
    """
    findings = Problems()
    manifest = findings.read(read_manifest, location)
    record = findings.read(read_valid_record, location)
    files = lines_files(location)
    if not files:
        raise DataError(
            f"{location}: no episode is written here yet",
            hint="wait until it ends; if it was interrupted, run the same command again",
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
    """View of the window at a position of an episode.

    Args:
        location: Folder of windows.
        report: Report of the folder.
        path: File of lines of the episode.
        part: Position in the episode, 0 to 1.

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
        num_recorded=_num_recorded(window, len(report.cameras)),
        action_names=names if len(names) == width else [str(index) for index in range(width)],
    )


def _views(
    location: Path, cameras: Sequence[str], names: Sequence[str]
) -> dict[str, list[FrameView]]:
    """Map from camera to its images; an image that occurs several times is read once."""
    views = {name: file_view(location / name) for name in dict.fromkeys(names)}
    return {
        camera: [views[name] for name in names[index :: len(cameras)]]
        for index, camera in enumerate(cameras)
    }


def _num_recorded(window: Window, cameras: int) -> int:
    """Number of actions before the end of the episode, whose last image is repeated as padding."""
    future = window.future[::cameras]
    if future[0] == window.images[-cameras]:
        return 1
    return min(len(window.actions), len(dict.fromkeys(future)) + 1)


def _first_task(path: Path) -> str:
    return _window_at(path, 0).task


def _window_at(path: Path, number: int) -> Window:
    """Window at a line of a file, by the index if there is one."""
    index = read_index(lines_index_path(path))
    try:
        if index is not None and number < len(index.offsets):
            start, length = index.ranges()[number]
            return parse_window(read_byte_range(ByteRange(path, start, start + length)))
        for current, line in enumerate(read_lines(path)):
            if current == number:
                return parse_window(line)
        raise ValueError("has no such line")
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}:{number + 1}: {error}",
            hint="run `vlatool verify` to list all findings",
            code="data.broken_window",
            details={"path": str(path), "line": number + 1},
        ) from None


def _line_count(path: Path) -> int:
    index = read_index(lines_index_path(path))
    return len(index.offsets) if index is not None else sum(1 for _ in read_lines(path))


def _indexed(files: Sequence[Path]) -> int | None:
    """Number of lines of all files; None if a file has no index."""
    indexes = [read_index(lines_index_path(path)) for path in files]
    counts = [len(index.offsets) for index in indexes if index is not None]
    return sum(counts) if len(counts) == len(files) else None
