"""Checks of a raw source of any format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlatool.artifacts.check import CheckOptions
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError
from vlatool.findings import Finding, finding_of_error
from vlatool.sources.detection import DetectedSource
from vlatool.sources.order import select
from vlatool.sources.rules import check_consistency, check_episode, duplicate_ids


def check_source(
    location: Path,
    source: DetectedSource,
    episodes: str | None,
    check: CheckOptions,
) -> Iterator[Finding]:
    """Yields the findings of a source and the selected episodes.

    Args:
        location: The source.
        source: Its format, reader and episodes.
        episodes: Episodes to check; None for all. Checks of the whole data set read all.
        check: Options of the verification; a full one decodes every frame.
    """
    reader: Any = source.reader
    yield from getattr(reader, "source_findings", ())
    yield from duplicate_ids(source.refs)
    refs = select(source.refs, episodes)
    if hasattr(reader, "check_source"):
        yield from _guarded(reader.check_source([location]))
    yield from check_consistency(reader, refs)
    errors, sizes = 0, dict[Path, int]()
    with check.reporter.progress("episodes", len(refs), "episodes") as bar:
        for ref in refs:
            if hasattr(reader, "check"):
                findings = _guarded(reader.check(ref, deep=check.is_full), episode=ref.id)
            else:
                findings = check_episode(reader, ref, deep=check.is_full)
            for finding in findings:
                errors += finding.severity == "error"
                yield finding
            sizes |= {path: path.stat().st_size for path in _files(ref)}
            check.counts.add(episodes=1)
            bar.advance(errors=errors)
    check.counts.add(files=len(sizes), bytes=sum(sizes.values()))


def _files(ref: EpisodeRef) -> Iterator[Path]:
    """Yields the existing files of an episode."""
    below = ref.path.rglob("*") if ref.path.is_dir() else [ref.path]
    yield from (path for path in (*below, *ref.files) if path.is_file())


def _guarded(findings: Iterator[Finding], **location: Any) -> Iterator[Finding]:
    """Yields `findings`; a DataError that they raise becomes the last one."""
    try:
        yield from findings
    except DataError as error:
        yield finding_of_error(error, **location)
