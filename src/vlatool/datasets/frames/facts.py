"""How a folder of frames was made; its episodes are shown like the episodes of a source."""

from pathlib import Path

from vlatool.datasets.frames.layout import FramesFolder
from vlatool.events import counted
from vlatool.report.facts import Problems, Report


def inspect(location: Path) -> Report:
    """Reads the manifest and the options."""
    folder = FramesFolder(location)
    findings = Problems()
    episodes = folder.episodes
    options = findings.read(folder.options) or {}
    frames = sum(episode.frames for episode in episodes)
    size = options.get("resize_images_size")
    origin = options.get("type") or "unknown"
    sources = options.get("source_episodes") or []
    if sources:
        origin = f"{', '.join(sources)} ({origin})"
    held_out = folder.num_held_out
    return Report(
        kind="frames",
        headline=f"{counted(frames, 'frame')} of {counted(len(episodes), 'episode')}",
        facts={"options": options},
        summary={
            "made from": origin,
            "image size": "as recorded" if size is None else f"{size[0]} x {size[1]}",
            "JPEG quality": options.get("jpeg_quality"),
            "held out for evaluation": counted(held_out, "episode") if held_out else "none",
        },
        findings=findings,
    )
