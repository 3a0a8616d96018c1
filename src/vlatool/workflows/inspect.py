"""What is at a location: raw episodes, training shards, one shard, or a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from vlatool.config.base import ConfigModel, needed_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.storage.uri import local_path
from vlatool.workflows.format_detection import find_source
from vlatool.workflows.inspect_run import inspect_run, is_run
from vlatool.workflows.inspect_shard import inspect_shard
from vlatool.workflows.inspect_shards import find_shards, inspect_shards
from vlatool.workflows.inspect_source import inspect_source


class InspectConfig(ConfigModel):
    """What to look at."""

    location: str = needed_field("", "Folder or shard to look at.")
    format: str | None = Field(
        default=None, description="Format of raw episodes; null for the one that finds any."
    )
    episodes: str | None = Field(
        default=None,
        description="Raw episodes to read, such as 0:4,7; the end of a range is excluded.",
    )


class Report(Protocol):
    """What was found at one kind of location."""

    @property
    def kind(self) -> str:
        """`source`, `shards`, `shard` or `run`."""
        ...

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        ...

    def headline(self) -> str:
        """What it is, in a few words."""
        ...

    def blocks(self) -> list[str]:
        """The report for people, block by block; empty ones are left out."""
        ...


@dataclass(frozen=True)
class InspectResult:
    """What is at a location."""

    location: str
    report: Report

    def document(self) -> dict[str, Any]:
        """The result for programs; `kind` says which keys to expect."""
        return {"kind": self.report.kind, "location": self.location, **self.report.document()}

    def text(self) -> str:
        """The result for people."""
        blocks = [f"{self.location}: {self.report.headline()}", *self.report.blocks()]
        return "\n\n".join(block for block in blocks if block)


def inspect(config: InspectConfig, *, reporter: Reporter = NULL) -> InspectResult:
    """Looks at a location and says what is there; nothing is written or decoded.

    Broken episodes, shards and checkpoints are findings of the report as long as something is
    readable.

    Raises:
        UsageError: No location is given, or several formats find episodes.
        DataError: Nothing known is there, or all of it is broken.
    """
    if not config.location:
        raise UsageError(
            "inspect needs a location",
            hint="vlatool inspect LOCATION",
            code="usage.missing_key",
        )
    location = local_path(config.location)
    if not location.exists():
        raise DataError(
            f"{location}: does not exist",
            hint="check the path",
            code="data.no_source",
            details={"path": str(location)},
        )
    return InspectResult(config.location, _report(location, config, reporter))


def _report(location: Path, config: InspectConfig, reporter: Reporter) -> Report:
    if config.format is None:
        look = _derived_data(location)
        if look is not None and config.episodes is not None:
            raise UsageError(
                f"{location}: --episodes selects raw episodes, this is no raw source",
                hint="leave --episodes out",
                code="usage.no_raw_source",
            )
        if look is not None:
            return look()
    source = find_source(location, config.format)
    return inspect_source(location, source, config.episodes, reporter)


def _derived_data(location: Path) -> Callable[[], Report] | None:
    """How to look at what vlatool made of raw episodes; None where it made nothing."""
    if location.is_file() and location.suffix == ".tar":
        return partial(inspect_shard, location)
    if is_run(location):
        return partial(inspect_run, location)
    folder = find_shards(location)
    return None if folder is None else partial(inspect_shards, folder)
