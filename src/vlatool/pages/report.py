"""Report of a location: one description of its facts, as text, as JSON and as an HTML page."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.pages.images import PageVideos
from vlatool.pages.layout import Section, note
from vlatool.pages.text import pairs, text_table

T = TypeVar("T")

# Codes int64 [N, K] to images uint8 [N, S, S, 3].
Decoder = Callable[[Array], UInt8Array]
Findings = Sequence[Mapping[str, str]]

_STATUS_TEXTS = {"whole": "complete"}


@dataclass(frozen=True)
class PageRequest:
    episodes: int = 0  # number of raw episodes to show
    samples: int = 0  # number of training samples to show
    videos: PageVideos | None = None  # videos of the raw episodes in full; None: none
    # (folder, its entry `codes`) -> Decoder of its codes; None: show no reconstructions. Raises
    # DataError if the codes are of another tokenizer.
    open_decoder: Callable[[Path, Mapping[str, Any]], Decoder] | None = None


@dataclass(frozen=True)
class ReportPage:
    """Sections of an HTML page; by default its subtitle is the headline of the report."""

    sections: Sequence[Section]
    subtitle: str = ""


@dataclass(frozen=True)
class Report:
    """Facts of an artifact or a source."""

    kind: str  # `source`, `shards`, `shard`, `run`, ...; determines the keys of the document
    headline: str  # summary in one line
    facts: Mapping[str, Any]  # all facts as JSON values
    summary: Mapping[str, object]  # map from name to value of the first block of text
    tables: Sequence[str] = ()  # further blocks of text; empty ones are left out
    # Broken or missing files, with `code` and `message`; None for a kind that has none, or lists
    # them in its facts.
    findings: Findings | None = None
    # Makes the HTML page; None if there is none.
    page: Callable[[PageRequest], ReportPage] | None = field(default=None, compare=False)

    def document(self) -> dict[str, Any]:
        findings = {} if self.findings is None else {"findings": list(self.findings)}
        return {**self.facts, **findings, "kind": self.kind}

    def blocks(self) -> list[str]:
        """Report as blocks of text; empty ones are left out."""
        rows = [tuple(finding.values()) for finding in self.findings or ()]
        findings = text_table("Findings", ("code", "message"), rows)
        return [pairs(self.summary), findings, *self.tables]


class Problems(list[dict[str, str]]):
    """List of findings, each with `code` and `message`."""

    def read(self, read: Callable[..., T], *arguments: object) -> T | None:
        """Result of `read`; None, and a finding, if it raises DataError."""
        with self.collecting():
            return read(*arguments)
        return None

    @contextmanager
    def collecting(self) -> Generator[None]:
        """Adds a DataError of the block as a finding."""
        try:
            yield
        except DataError as error:
            self.append({"code": error.code, "message": error.message})


def status_text(status: str) -> str:
    """Status of an artifact as it is shown; in documents a complete one is `whole`."""
    return _STATUS_TEXTS.get(status, status)


def finding_notes(findings: Findings) -> str:
    return "".join(note(finding["message"]) for finding in findings)


def branch(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Mapping under `key`; empty if there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def listed(tree: Mapping[str, Any], key: str) -> list[Any]:
    """List under `key`; empty if there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []
