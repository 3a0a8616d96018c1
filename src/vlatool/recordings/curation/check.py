"""Checks of a curation: the record of the command, its files, and that it can be read."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.findings import Finding, FindingCodes
from vlatool.recordings.check import CheckOptions, check_record_and_files
from vlatool.recordings.curation.layout import FIGURES_NAME, read_curation

FINDINGS: tuple[FindingCodes, ...] = ()


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a curation; DataError if `curation.json` cannot be read."""
    if (yield from check_record_and_files(location, location, options)):
        options.counts.add(episodes=len(read_curation(location / FIGURES_NAME).episodes))
