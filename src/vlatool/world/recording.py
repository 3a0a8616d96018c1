"""Shared types of the recorders of raw layouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.world.episodes import WorldEpisode
from vlatool.world.render import View


@dataclass(frozen=True)
class RecordingSetup:
    """Location and content of recordings.

    Attributes:
        output: Folder of the recordings.
        views: Cameras with their image sizes, in order.
        depth: True to record depth and label maps.
    """

    output: Path
    views: tuple[View, ...]
    depth: bool = False


@dataclass(frozen=True)
class RecordedEpisode:
    """Result of a worker for one episode.

    Attributes:
        index: Number of the episode.
        frames: Number of frames.
        instruction: Instruction of the episode.
        success: True if the expert succeeded.
        stats: Statistics for the meta files of the layout.
        files: Files or the folder of the episode, relative to the output.
    """

    index: int
    frames: int
    instruction: str
    success: bool
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    files: Sequence[str] = ()


class Recorder(Protocol):
    """Writer of one raw layout; picklable, so that several processes can write episodes.

    Attributes:
        owned: Patterns of all files it writes.
        closing: Files for the whole data set, written last.
    """

    owned: ClassVar[Sequence[str]]
    closing: ClassVar[Sequence[str]]

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes the files of one episode; `first_row` is the number of frames before it."""
        ...

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the files for the whole data set, last."""
        ...


def recorded_episode(
    episode: WorldEpisode, files: Sequence[str], stats: dict[str, Any] | None = None
) -> RecordedEpisode:
    """Result for one episode."""
    summary = (episode.index, len(episode), episode.instruction, episode.success)
    return RecordedEpisode(*summary, stats or {}, files)
