"""What the recorders of the raw layouts share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.world.episodes import WorldEpisode
from vlatool.world.render import View


@dataclass(frozen=True)
class RecordingSetup:
    """Where recordings go and what is in them.

    Attributes:
        output: The folder.
        views: Cameras with their picture sizes, in order.
        depth: Whether depth and label maps are recorded as well.
    """

    output: Path
    views: tuple[View, ...]
    depth: bool = False


@dataclass(frozen=True)
class RecordedEpisode:
    """What the driver needs to know about an episode that a worker wrote.

    Attributes:
        index: Its number.
        frames: Its length.
        instruction: What the robot was told.
        success: Whether the expert did it.
        stats: Statistics for the layout's meta files.
        files: What was written for it: files, or a folder, relative to the output.
    """

    index: int
    frames: int
    instruction: str
    success: bool
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    files: Sequence[str] = ()


class Recorder(Protocol):
    """Writes one raw layout; picklable, so that episodes may be written by several processes.

    Attributes:
        owned: Patterns of everything it writes.
        closing: Files that describe the whole set, written last.
    """

    owned: ClassVar[Sequence[str]]
    closing: ClassVar[Sequence[str]]

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes the files of one episode; `first_row` frames lie in the episodes before it."""
        ...

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes what describes the whole set, last."""
        ...


def recorded_episode(
    episode: WorldEpisode, files: Sequence[str], stats: dict[str, Any] | None = None
) -> RecordedEpisode:
    """The receipt of an episode."""
    summary = (episode.index, len(episode), episode.instruction, episode.success)
    return RecordedEpisode(*summary, stats or {}, files)
