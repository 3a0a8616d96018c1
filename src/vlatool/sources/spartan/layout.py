"""Where Spartan episodes are, and what their folders tell of them. Source: lbm-data 2.1."""

import re
from pathlib import Path

from vlatool.episode import EpisodeRef
from vlatool.sources.order import natural_key
from vlatool.storage.tree import walk

_EPISODE = re.compile(r"^episode_(\d+)$")


def episode_folders(source: Path) -> list[Path]:
    """Folders episode_<N> with a `processed` folder, at or below `source`, naturally sorted.

    One without beside them was not downloaded whole, or cannot be listed; reading it will tell.
    """
    found: set[Path] = set()
    named: set[Path] = set()
    for folder, children, _ in walk(source):
        if _EPISODE.match(folder.name) and "processed" in children:
            found.add(folder)
            children.clear()
        named.update(folder / child for child in children if _EPISODE.match(child))
    beside = {folder.parent for folder in found}
    found.update(folder for folder in named if folder.parent in beside)
    return sorted(found, key=natural_key)


def episode_place(folder: Path) -> str:
    """Where an episode is below its task; its last folders where the layout is another one."""
    parts = folder.parts
    known = "tasks" in parts[:-7] or "diffusion_spartan" in parts
    return "/".join(part for part in parts[-7 if known else -3 :] if part != "/")


def episode_number(folder: Path) -> int:
    """N of `episode_<N>`."""
    match = _EPISODE.match(folder.name)
    assert match is not None
    return int(match.group(1))


def episode_ref(folder: Path, source: Path, task: str | None) -> EpisodeRef:
    """Task, station and time stamp are read from the published folder layout where it is kept."""
    parts = folder.parts
    named: list[str] = []
    if "tasks" in parts[:-2]:
        below = parts[len(parts) - 1 - parts[::-1].index("tasks") + 1 : -1]
        named = [part for part in below if part not in ("sim", "bc", "teleop", "diffusion_spartan")]
    found = named[0] if named else ""
    if not named:
        named = [part for part in parts[-3:-1] if part not in ("/", "diffusion_spartan")]
    identity = "_".join([*named, folder.name])
    return EpisodeRef(
        id=re.sub(r"[^A-Za-z0-9_-]+", "-", identity),
        path=folder,
        source=str(source),
        task=task or found,
    )
