"""What a sink promises: an episode is written whole or not at all, and leaves a receipt."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlatool.episode import EpisodeRef, Sample
from vlatool.transforms.statistics import FieldStatistics


@dataclass(frozen=True)
class Receipt:
    """What became of one episode.

    Attributes:
        episode: Its id.
        num_frames: Frames it has.
        ranges: (offset, length) in bytes of each written sample in the episode's file.
        statistics: Partial statistics of its fields.
        dropped: Reason to number of samples (or the episode) that were not written.
        warnings: (code, message) pairs.
    """

    episode: str
    num_frames: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    statistics: Mapping[str, FieldStatistics] = field(default_factory=dict[str, FieldStatistics])
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    warnings: tuple[tuple[str, str], ...] = ()


class EpisodeWriter(Protocol):
    """Takes the samples of one episode in order."""

    def write(self, sample: Sample, images: Mapping[tuple[str, int], bytes]) -> None:
        """Adds a sample with its encoded pictures by (camera, offset)."""
        ...

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each sample written so far."""
        ...


class Sink(Protocol):
    """Where samples go. Workers open episodes; the driver finishes with all receipts."""

    def open_episode(self, ref: EpisodeRef) -> AbstractContextManager[EpisodeWriter]:
        """A writer; leaving normally commits the episode, an exception leaves nothing behind."""
        ...

    def finish(self, receipts: Iterable[Receipt]) -> Any:
        """Joins the episodes of `receipts`, in their order, into the final artifact."""
        ...
