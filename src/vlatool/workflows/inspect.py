"""Inspection of a location: an artifact of any kind, or raw episodes."""

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
    """Options of `vlatool inspect`."""

    location: str = required_field("", "Folder or shard to inspect.")
    format: str | None = Field(default=None, description="Format of raw episodes; null: detect it.")
    episodes: str | None = Field(
        default=None,
        description="Raw episodes to read, such as 0:4,7; the end of a range is excluded.",
    )
    html: str | None = Field(
        default=None, description="HTML file to write, with images and plots; not for a run."
    )
    html_episodes: int = Field(
        default=3, ge=0, description="Number of raw episodes with images on that page."
    )
    html_samples: int = Field(
        default=6, ge=0, description="Number of training samples with images on that page."
    )
    tokenizer: str | None = Field(
        default=None,
        description="Run, checkpoint or published folder of the visual tokenizer of the codes in "
        "samples: that page shows its reconstructions.",
    )


@dataclass(frozen=True)
class InspectResult:
    """Report on a location; `html` is the page that was written, if requested."""

    location: str
    report: Report
    html: str | None = None

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping; `kind` determines its other keys."""
        page = {} if self.html is None else {"html": self.html}
        return {
            "kind": self.report.kind,
            "location": self.location,
            **page,
            **self.report.document(),
        }

    def text(self) -> str:
        """The result as text."""
        page = "" if self.html is None else f"page: {self.html}"
        blocks = [f"{self.location}: {self.report.headline()}", *self.report.blocks(), page]
        return "\n\n".join(block for block in blocks if block)


Inspection = tuple[Report, str, Callable[[Path, PageRequest], None] | None]


def inspect(config: InspectConfig, *, reporter: Reporter = NULL) -> InspectResult:
    """Reports on the content of a location; writes nothing but the HTML page.

    Broken episodes, shards and checkpoints are findings of the report if others are readable.

    Raises:
        UsageError: No location is given, or several formats find episodes.
        DataError: The content is unknown, or all of it is broken.
        StorageError: The page cannot be written.
    """
    if not config.location:
        raise UsageError(
            "no location is given",
            hint="run vlatool inspect LOCATION",
            code="usage.missing_key",
        )
    path = require_existing(config.location)
    if config.html is None:
        _check_tokenizer(path, "", config)
        return InspectResult(config.location, _inspect(path, config, reporter)[0])
    target = location(config.html)
    check_target(target)
    report, kind, write_page = _inspect(path, config, reporter)
    if write_page is None:
        raise UsageError(
            f"{path}: there is no HTML page for a {kind}",
            hint="leave --html out: it is for raw episodes and training data",
            code="usage.no_page",
        )
    _check_tokenizer(path, kind, config)
    remove_partials_of(target)
    counts = config.html_episodes, config.html_samples
    write_page(target, PageRequest(config.location, *counts, config.tokenizer or ""))
    return InspectResult(config.location, report, config.html)


def _check_tokenizer(path: Path, kind: str, config: InspectConfig) -> None:
    """Raises UsageError if a tokenizer is given but there are no codes to decode."""
    if config.tokenizer is not None and kind != "samples":
        raise UsageError(
            f"{path}: --tokenizer only applies to the HTML page of samples",
            hint="give --html and a folder of `vlatool build-dataset`, or leave --tokenizer out",
            code="usage.nothing_to_draw",
            details={"key": "tokenizer"},
        )


def _inspect(path: Path, config: InspectConfig, reporter: Reporter) -> Inspection:
    """Returns the report, the kind of the artifact and a function that writes its page, if any."""
    recognized = recognize(path) if config.format is None else None
    if recognized is None:
        source = detect_source(path, config.format)
        report = inspect_source(path, source, config.episodes, reporter)
        refs = select(source.refs, config.episodes)
        return report, "source", partial(write_source_page, report, source.reader, refs)
    if config.episodes is not None:
        raise UsageError(
            f"{path}: is not a source of raw episodes",
            hint="leave --episodes out: it selects raw episodes",
            code="usage.no_raw_source",
        )
    kind, artifact = recognized
    report = artifact.load("inspect")(path)
    return report, kind, partial(artifact.load("page"), report, path) if artifact.page else None
