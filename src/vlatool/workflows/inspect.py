"""What is at a location: anything in the table of artifacts, or raw episodes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from vlatool.config.base import ConfigModel, required_field
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.inspection.report import Report
from vlatool.inspection.source import inspect_source
from vlatool.pages.html_page import PageRequest, check_target, write_source_page
from vlatool.plugins import recognize
from vlatool.sources.detection import detect_source
from vlatool.sources.order import select
from vlatool.storage.atomic import remove_partials_of
from vlatool.storage.uri import location, require_existing


class InspectConfig(ConfigModel):
    """What to look at."""

    location: str = required_field("", "Folder or shard to look at.")
    format: str | None = Field(
        default=None, description="Format of raw episodes; null for the one that finds any."
    )
    episodes: str | None = Field(
        default=None,
        description="Raw episodes to read, such as 0:4,7; the end of a range is excluded.",
    )
    html: str | None = Field(
        default=None, description="HTML file to write, with pictures and charts; not for a run."
    )
    html_episodes: int = Field(
        default=3, ge=0, description="Raw episodes with pictures on that page."
    )
    html_samples: int = Field(
        default=6, ge=0, description="Training samples with pictures on that page."
    )
    tokenizer: str | None = Field(
        default=None,
        description="Run, checkpoint or published folder of the tokenizer that made the codes of "
        "built samples: that page shows what it draws of them.",
    )


@dataclass(frozen=True)
class InspectResult:
    """What is at a location; `html` is the page that was written, if one was asked for."""

    location: str
    report: Report
    html: str | None = None

    def document(self) -> dict[str, Any]:
        """The result for programs; `kind` says which keys to expect."""
        page = {} if self.html is None else {"html": self.html}
        return {
            "kind": self.report.kind,
            "location": self.location,
            **page,
            **self.report.document(),
        }

    def text(self) -> str:
        """The result for people."""
        page = "" if self.html is None else f"page: {self.html}"
        blocks = [f"{self.location}: {self.report.headline()}", *self.report.blocks(), page]
        return "\n\n".join(block for block in blocks if block)


Inspection = tuple[Report, str, Callable[[Path, PageRequest], None] | None]


def inspect(config: InspectConfig, *, reporter: Reporter = NULL) -> InspectResult:
    """Looks at a location and says what is there; only the HTML page is written.

    Broken episodes, shards and checkpoints are findings of the report as long as something is
    readable.

    Raises:
        UsageError: No location is given, or several formats find episodes.
        DataError: Nothing known is there, or all of it is broken.
        StorageError: The page cannot be written.
    """
    if not config.location:
        raise UsageError(
            "inspect needs a location",
            hint="vlatool inspect LOCATION",
            code="usage.missing_key",
        )
    place = require_existing(config.location)
    if config.html is None:
        _check_tokenizer(place, "", config)
        return InspectResult(config.location, _inspect(place, config, reporter)[0])
    target = location(config.html)
    check_target(target)
    report, kind, write_page = _inspect(place, config, reporter)
    if write_page is None:
        raise UsageError(
            f"{place}: --html shows raw episodes and training data, this is a {kind}",
            hint="leave --html out",
            code="usage.no_page",
        )
    _check_tokenizer(place, kind, config)
    remove_partials_of(target)
    counts = config.html_episodes, config.html_samples
    write_page(target, PageRequest(config.location, *counts, config.tokenizer or ""))
    return InspectResult(config.location, report, config.html)


def _check_tokenizer(place: Path, kind: str, config: InspectConfig) -> None:
    """UsageError where a tokenizer is given that nothing is drawn with."""
    if config.tokenizer is not None and kind != "samples":
        raise UsageError(
            f"{place}: --tokenizer draws on the page of built samples",
            hint="give --html and what `vlatool build-dataset` wrote, or leave --tokenizer out",
            code="usage.nothing_to_draw",
            details={"key": "tokenizer"},
        )


def _inspect(place: Path, config: InspectConfig, reporter: Reporter) -> Inspection:
    """The report, of what, and what writes it as a page where there is such a page."""
    known = recognize(place) if config.format is None else None
    if known is None:
        source = detect_source(place, config.format)
        report = inspect_source(place, source, config.episodes, reporter)
        refs = select(source.refs, config.episodes)
        return report, "source", partial(write_source_page, report, source.reader, refs)
    if config.episodes is not None:
        raise UsageError(
            f"{place}: --episodes selects raw episodes, this is no raw source",
            hint="leave --episodes out",
            code="usage.no_raw_source",
        )
    kind, artifact = known
    report = artifact.load("inspect")(place)
    return report, kind, partial(artifact.load("page"), report, place) if artifact.page else None
