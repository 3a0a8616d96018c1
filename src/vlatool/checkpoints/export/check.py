"""Checks of exported weights: the record of the command and the digests of its files."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.findings import Finding, FindingCodes
from vlatool.recordings.check import CheckOptions, check_record_and_files

FINDINGS: tuple[FindingCodes, ...] = ()


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of exported weights, which are the same as for any output."""
    has_ended = yield from check_record_and_files(location, location, options)
    if has_ended:
        for path in location.iterdir():
            if path.is_file():
                options.counts.add(files=1, bytes=path.stat().st_size)
