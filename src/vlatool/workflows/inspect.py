"""Inspection of a location: an artifact of any kind, or raw episodes."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import Field

from vlatool.artifacts.run.locations import require_weights
from vlatool.config.base import ConfigModel, required_field
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.inspection import check_target, inspect_location, write_page
from vlatool.pages.report import PageRequest, Report
from vlatool.results import MERGED, OPTIONAL, Result
from vlatool.storage.uri import location


class InspectConfig(ConfigModel):
    """Options of `vlatool inspect`."""

    location: str = required_field("", "Folder or shard to inspect.")
    format: str | None = Field(default=None, description="Format of raw episodes; null: detect it.")
    episodes: str | None = Field(
        default=None,
        description="Raw episodes to read, such as 0:4,7; the end of a range is excluded.",
    )
    html: str | None = Field(
        default=None, description="HTML file to write, with images and charts; not for a run."
    )
    html_episodes: int = Field(
        default=3,
        ge=0,
        description="Number of raw episodes in full on that page; it shows the others in brief.",
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
class InspectResult(Result):
    """Report on a location."""

    kind: str  # determines the keys of the document
    location: str
    html: str | None = field(metadata=OPTIONAL)  # page that was written, if requested
    report: Report = field(metadata=MERGED)

    def lines(self) -> list[str]:
        page = "" if self.html is None else f"page: {self.html}"
        blocks = [f"{self.location}: {self.report.headline}", *self.report.blocks(), page]
        return ["\n\n".join(block for block in blocks if block)]


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
    path = require_weights(config.location)
    target = None if config.html is None else location(config.html)
    if target is None:
        _check_tokenizer(path, "", config)
    else:
        check_target(target)
    kind, report = inspect_location(path, config.format, config.episodes, reporter)
    if target is not None:
        if report.page is None:
            raise UsageError(
                f"{path}: there is no HTML page for a {kind}",
                hint="leave --html out: it is for raw episodes and training data; `vlatool runs` "
                "has --html for runs",
                code="usage.no_page",
            )
        _check_tokenizer(path, kind, config)
        write_page(report, config.location, target, _page_request(config))
    return InspectResult(report.kind, config.location, config.html, report)


def _check_tokenizer(path: Path, kind: str, config: InspectConfig) -> None:
    """Raises UsageError if a tokenizer is given but there are no codes to decode."""
    if config.tokenizer is not None and kind != "samples":
        raise UsageError(
            f"{path}: --tokenizer only applies to the HTML page of samples",
            hint="give --html and a folder of `vlatool build-dataset`, or leave --tokenizer out",
            code="usage.nothing_to_draw",
            details={"key": "tokenizer"},
        )


def _page_request(config: InspectConfig) -> PageRequest:
    decoder = None
    if config.tokenizer:
        from vlatool.tokens.decode import open_decoder

        decoder = partial(open_decoder, config.tokenizer)
    return PageRequest(config.html_episodes, config.html_samples, decoder)
