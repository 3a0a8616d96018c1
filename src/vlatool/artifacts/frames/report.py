"""Report of a folder of frames, with a page of some episodes."""

from functools import partial
from pathlib import Path

import numpy as np

from vlatool.artifacts.frames.format import FramesFolder
from vlatool.artifacts.images import visible_image
from vlatool.episode import Episode, FrameSource
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.ownership import data_files
from vlatool.pages.images import FrameView, frame_figure, strip
from vlatool.pages.layout import Section, escape, evenly_spaced, group, table
from vlatool.pages.report import PageRequest, Problems, Report, ReportPage
from vlatool.pages.text import number_text, text_table
from vlatool.storage.tree import size_text
from vlatool.storage.uri import can_list

_SHOWN = 6  # frames of a camera


def inspect(location: Path) -> Report:
    """Reads the manifest, the options and the numbers of the first episode."""
    folder, findings = FramesFolder(location), Problems()
    episodes, options = folder.episodes, findings.read(folder.options) or {}
    first = findings.read(partial(_episode, folder), 0)
    fields = {} if first is None else {n: v.shape[1:] or ("text",) for n, v in first.lowdim.items()}
    frames = sum(each.frames for each in episodes)
    cameras, size = options.get("camera_names") or [], options.get("resize_images_size")
    summary = {
        "on disk": size_text(sum(file.bytes for file in data_files(location)))
        if can_list(location)
        else "unknown",
        "cameras": cameras,
        "image size": "as recorded" if size is None else f"{size[0]} x {size[1]}",
        "JPEG quality": options.get("jpeg_quality"),
        "rate": "unknown" if not options.get("fps") else f"{number_text(options['fps'])} fps",
        "actions": options.get("action_fields") or [],
        "proprioception": options.get("proprioception_fields") or [],
        "task": "" if first is None else first.instruction_at(0),
    }
    rows = [(name, " x ".join(map(str, shape))) for name, shape in fields.items()]
    return Report(
        kind="frames",
        headline=f"{counted(frames, 'frame')} of {counted(len(episodes), 'episode')}",
        facts={
            "episodes": len(episodes),
            "frames": frames,
            "fields": {name: list(shape) for name, shape in fields.items()},
            "options": options,
        },
        summary=summary,
        tables=[text_table("Fields", ("name", "dimensions"), rows)],
        findings=findings,
        page=partial(_page, folder, summary, rows),
    )


def _episode(folder: FramesFolder, number: int) -> Episode:
    name = folder.episodes[number].id
    return folder.tar(name).episode(name)


def _page(
    folder: FramesFolder,
    summary: dict[str, object],
    fields: list[tuple[str, str]],
    request: PageRequest,
) -> ReportPage:
    rows = [(k, ", ".join(v) if isinstance(v, list) else v) for k, v in summary.items()]
    shown = evenly_spaced(len(folder.episodes), request.samples)
    cards = [_card(folder, number) for number in shown]
    title = f"Episodes ({len(cards)} of {len(folder.episodes)})"
    last = Section("Fields", table(("field", "dimensions"), fields))
    return ReportPage([Section("Overview", table((), rows)), *group(title, cards), last])


def _view(source: FrameSource, frame: int) -> FrameView:
    try:
        return FrameView(visible_image(source.encoded(frame) or b""))
    except (OSError, ValueError, DataError) as error:
        return FrameView(None, problem=str(error))


def _card(folder: FramesFolder, number: int) -> Section:
    """Some images of each camera of an episode."""
    findings = Problems()
    episode = findings.read(partial(_episode, folder), number)
    html = "".join(f"<p>{escape(each['message'])}</p>" for each in findings)
    for name, source in ({} if episode is None else episode.cameras).items():
        chosen = np.unique(np.linspace(0, len(source) - 1, _SHOWN).round().astype(int)).tolist()
        views = [(frame, _view(source, frame)) for frame in chosen]
        figures = (frame_figure(view, f"{name}, {frame}", f"{frame}") for frame, view in views)
        html += strip(escape(name), figures)
    text = "" if episode is None else f"<p>{escape(episode.instruction_at(0))}</p>"
    return Section(folder.episodes[number].id, text + html, is_under=True)
