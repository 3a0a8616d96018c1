"""What a sink promises: an episode is written whole or not at all, and leaves a receipt."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlatool.episode import EpisodeRef, Sample
from vlatool.events import NULL, Reporter
from vlatool.parallel.executor import Executor
from vlatool.transforms.statistics import WindowStatistics


@dataclass(frozen=True)
class Receipt:
    """What became of one episode.

    Attributes:
        episode: Its id.
        num_frames: Frames it has.
        ranges: (offset, length) in bytes of each written sample in the episode's file.
        bytes: Size of the episode's file.
        sha256: Digest of the episode's file; empty where nothing was written.
        statistics: Partial statistics of its numeric fields, side by side; None without samples.
        dropped: Reason to number of samples (or the episode) that were not written.
        warnings: (code, message) pairs.
        resumed: Whether an earlier run wrote it.
        key: Digest of its input files and of the plan it was made by.
        sizes: Digest of its input files' names and sizes.
        changed_ns: When one of them was last changed, nanoseconds since 1970.
    """

    episode: str
    num_frames: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    bytes: int = 0
    sha256: str = ""
    statistics: WindowStatistics | None = None
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    warnings: tuple[tuple[str, str], ...] = ()
    resumed: bool = False
    key: str = ""
    sizes: str = ""
    changed_ns: int = 0


class EpisodeWriter(Protocol):
    """Takes the samples of one episode in order."""

    def write(self, sample: Sample, images: Mapping[str, bytes]) -> None:
        """Adds a sample with its encoded pictures by member suffix, e.g. `front_t0.jpg`."""
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

    def finish(
        self,
        receipts: Iterable[Receipt],
        executor: Executor,
        widths: Mapping[str, int],
        reporter: Reporter = NULL,
    ) -> Any:
        """Joins the episodes of `receipts`, in their order, into the final artifact.

        `widths` has the channels of every field, in the order of the receipts' statistics.
        """
        ...
