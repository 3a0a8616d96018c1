"""What a sink promises: an episode is written whole or not at all, and leaves a receipt.

A sink receives whole episodes; what a window, a sample or a shard is, it knows alone. It is made
once per run, from what the episodes have between them, and lives in the driver; its `work` travels
to the workers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt

Work = Callable[[EpisodeRef, Episode], Receipt]


class SinkConfig(ConfigModel):
    """The section of a sink; `type` is its name, and what `--sink NAME` sets."""

    # Keys that earlier records lack: at their default they stand in no record.
    added: ClassVar[frozenset[str]] = frozenset()

    type: Any

    def recorded(self) -> dict[str, Any]:
        """The keys for the record of a run."""
        defaults = {key for key in self.added if key not in self.model_dump(exclude_defaults=True)}
        return self.model_dump(mode="json", exclude={"type", *defaults})


@dataclass(frozen=True)
class SinkSetup:
    """What a sink is made for.

    Attributes:
        output: The output folder.
        survey: What the chosen episodes have between them; its cameras are the chosen ones.
        refs: The episodes, in order.
        origin: Options of the run outside the sink's section, for what an output says of itself.
    """

    output: Path
    survey: Survey
    refs: Sequence[EpisodeRef]
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class SinkSummary:
    """What a finished output holds.

    Attributes:
        samples: Training samples in it.
        bytes: Size of what training reads.
        files: Every file that was written, receipts' included.
        amounts: Name of what samples lie in to how many there are, such as `shards`.
    """

    samples: int
    bytes: int
    files: tuple[FileEntry, ...]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Estimate:
    """What would be written, as far as the survey tells; None where it does not."""

    samples: int | None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


class Sink(Protocol):
    """Where episodes go.

    One whose receipts carry findings has their codes in `findings: ClassVar[Family]`.

    Attributes:
        Config: Its keys; the default of `type` is the sink's name.
        owned: Patterns of everything it writes; what others put beside it is left alone.
        unlisted: Those of them that hold times.
        passing: Those of them that go once the output is complete; may be left out.
        has_arrays: Whether receipts carry arrays; may be left out, then they may.
        next_step: The command that comes after, with `{output}` in it; may be empty.
        work: Writes one episode; picklable, and under the final name when it returns. The item of
            its receipt is the episode's id. Counts `samples` and `frames`.
        action_fields: Fields that a policy predicts by default, as they are stored.
        proprioception_fields: Fields that a policy observes by default, as they are stored.
    """

    Config: ClassVar[type[SinkConfig]]
    owned: ClassVar[Sequence[str]]
    volatile: ClassVar[Sequence[str]]
    next_step: ClassVar[str]
    work: Work
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]

    def __init__(self, config: Any, setup: SinkSetup) -> None: ...

    def begin(self) -> None:
        """Takes away what would make a half-written output look whole."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Joins the episodes of `receipts`, in their order, into the final artifact.

        Raises:
            DataError: Nothing is left to write.
        """
        ...

    def estimate(self) -> Estimate:
        """What a run would write."""
        ...


MakeSink = Callable[[Any, SinkSetup], Sink]
