"""Protocol of sinks: an episode is written completely or not at all, and yields a receipt.

A sink receives whole episodes and alone defines its windows, samples and shards. It is created once
per run from the survey of the episodes and stays in the main process; its `work` is sent to the
workers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.plugins import did_you_mean

Work = Callable[[EpisodeRef, Episode], Receipt]


class SinkConfig(ConfigModel):
    """Section of a sink; `type` is its name, which `--sink NAME` sets."""

    type: Any


@dataclass(frozen=True)
class SinkSetup:
    """Arguments of a sink."""

    output: Path  # the output folder
    survey: Survey  # survey of the selected episodes; its cameras are the selected ones
    refs: Sequence[EpisodeRef]  # the episodes, in order
    # options of the run outside the sink's section, for the metadata of the output
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    action_fields: tuple[str, ...] = ()  # requested action fields; empty: those of the survey

    def policy_actions(self, stored: Mapping[str, int], default: Sequence[str]) -> tuple[str, ...]:
        """Action fields of the output: the requested ones, or else the default."""
        chosen = self.action_fields or tuple(default)
        known = [name for name, width in stored.items() if width]
        for name in chosen:
            if name not in known:
                raise DataError(
                    f"the output has no field {name!r} for actions",
                    hint=did_you_mean(name, known) or "choose others with --action-fields",
                    code="data.unknown_field",
                    details={"field": name, "known": known},
                )
        return chosen


@dataclass(frozen=True)
class SinkSummary:
    """Summary of a complete output."""

    samples: int  # number of training samples
    bytes: int  # size of the files that training reads
    files: tuple[FileEntry, ...]  # every file that was written, those of the receipts included
    # further counts by name, such as `shards`
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Estimate:
    """Estimated size of an output; `samples` is None where the survey does not suffice."""

    samples: int | None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


class Sink(Protocol):
    """Writer of episodes as training data.

    Attributes:
        Config: Its keys; the default of `type` is the name of the sink.
        findings: Codes of the findings in its receipts; None: there are none.
        owned: Patterns of all files that it writes; other files in the folder are not touched.
        volatile: Those of them that hold times.
        temporary: Those of them that are removed once the output is complete.
        has_arrays: True if receipts carry arrays.
        next_step: Suggested next command, with `{output}` in it; may be empty.
        work: Writes one episode; picklable. Files have their final names when it returns. The item
            of its receipt is the id of the episode; the receipt counts `samples` and `frames`.
        fields: Map from each stored field to its number of dimensions, 0 for text.
        action_fields: Fields that a policy predicts by default, by their stored names.
        proprioception_fields: Fields that a policy observes by default, by their stored names.
    """

    Config: ClassVar[type[SinkConfig]]
    owned: ClassVar[Sequence[str]]
    findings: ClassVar[FindingCodes | None] = None
    volatile: ClassVar[Sequence[str]] = ()
    temporary: Sequence[str] = ()
    has_arrays: ClassVar[bool] = True
    next_step: ClassVar[str] = ""
    work: Work
    fields: Mapping[str, int]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]

    def __init__(self, config: Any, setup: SinkSetup) -> None: ...

    def begin(self) -> None:
        """Removes the files that mark an output as complete."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Joins the episodes of `receipts`, in their order, into the final artifact.

        Raises:
            DataError: There is nothing to write.
        """
        ...

    def estimate(self) -> Estimate:
        """Estimated size of the output of a run."""
        ...


MakeSink = Callable[[Any, SinkSetup], Sink]
