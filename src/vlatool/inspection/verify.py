"""Loop of `verify`: the findings at a location, and the list of all finding codes."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from vlatool.artifacts.base import finding_codes, recognize
from vlatool.artifacts.check import CheckOptions, check_kinds_of_files, check_record_and_files
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, finding_of_error
from vlatool.jobs.files import read_file_list
from vlatool.jobs.record import read_record, record_file
from vlatool.plugins import FORMATS, SINKS
from vlatool.sources.detection import detect_source
from vlatool.sources.rules import IMAGES, SOURCE, check_source


@dataclass(frozen=True)
class Verification:
    """Running verification."""

    kind: str  # kind of the artifact, `source`, or `download` for files of another kind
    root: Path  # folder that paths of findings are relative to
    findings: Iterable[Finding]  # findings, found while they are read
    format: str | None = None  # format of a source


def verify_location(
    location: Path,  # an existing file or folder
    options: CheckOptions,
    *,
    format_name: str | None = None,  # format of raw episodes; None: detect artifacts, then formats
    episodes: str | None = None,  # raw episodes to verify; None for all
) -> Verification:
    """Starts the verification of an artifact or of a source."""
    verification = _verification(location, options, format_name, episodes)
    every = chain(verification.findings, check_kinds_of_files(location))
    findings = _with_counts(every, verification.root, options)
    return replace(verification, findings=findings)


def _with_counts(
    findings: Iterable[Finding], root: Path, options: CheckOptions
) -> Iterator[Finding]:
    """Yields the findings; counts the files of the file list if nothing else was counted."""
    yield from findings
    if not any(asdict(options.counts).values()):
        with suppress(DataError):  # a broken list is a finding
            for entry in read_file_list(root) or ():
                options.counts.add(files=entry.count or 1, bytes=entry.bytes)


def _verification(
    location: Path, options: CheckOptions, format_name: str | None, episodes: str | None
) -> Verification:
    artifact = recognize(location) if format_name is None else None
    if artifact is not None:
        root = location.parent if location.is_file() else location
        return Verification(artifact.kind, root, artifact.check(options))
    record = read_record(location) if format_name is None else None
    is_download = record is not None and record.is_download
    is_output = record_file(location).exists()  # such as the images of `decode`
    files = check_record_and_files(location, location, options) if is_output else ()
    try:
        source = detect_source(location, format_name)
    except DataError as error:
        if is_download:  # of anything
            return Verification("download", location, files)
        if error.code in ("data.no_episodes", "data.no_source"):
            raise
        # The detected format cannot list the episodes.
        return Verification("source", location, [finding_of_error(error)])
    findings = chain(files, check_source(location, source, episodes, options))
    return Verification("source", location, findings, source.format)


def code_rows() -> Iterator[dict[str, str]]:
    """Rows of all known codes, those of plugins included."""
    owners = (registry.get(name) for registry in (FORMATS, SINKS) for name in registry.names())
    of_plugins = (getattr(owner, "findings", None) for owner in owners)
    tables = (*finding_codes(), SOURCE, IMAGES, *of_plugins)
    by_name = {codes.name: codes for codes in tables if isinstance(codes, FindingCodes)}
    for codes in by_name.values():  # related formats share their codes
        yield from codes.rows()
