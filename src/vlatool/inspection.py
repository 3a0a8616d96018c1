"""Inspects and verifies any location: its report, its HTML page, and its findings."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from vlatool.conventions.contradiction import CONVENTION
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter
from vlatool.findings import Finding, FindingCodes, finding_of_error
from vlatool.jobs.files import read_file_list
from vlatool.jobs.record import read_record, record_file
from vlatool.plugins import FORMATS, SINKS
from vlatool.recordings.artifact import Artifact, finding_codes, recognize
from vlatool.recordings.check import CheckOptions, check_kinds_of_files, check_record_and_files
from vlatool.recordings.choice import select
from vlatool.recordings.detect import DetectedSource, SourceKeys, detect_source
from vlatool.recordings.facts import report_source
from vlatool.recordings.names import NamedSet, names_report, set_of_shards, set_of_source
from vlatool.recordings.renaming import read_with_names
from vlatool.recordings.rules import IMAGES, SOURCE, check_source
from vlatool.report.facts import PageRequest, Report
from vlatool.report.page import GENERATOR, PageVideos, page
from vlatool.storage.atomic import remove_partials_of, write_text
from vlatool.transforms.names import NameMap

_HEAD_BYTES = 1000


def inspect_location(
    location: Path,
    keys: SourceKeys,  # format of raw episodes, and its keys
    episodes: str | None,
    reporter: Reporter,
    names: NameMap | None = None,  # new names of cameras and fields of raw episodes
) -> tuple[str, Report]:
    """Reads what a location holds. Returns the kind of artifact, or `source`, and the report."""
    names = names or NameMap()
    artifact = recognize(location) if _may_be_artifact(keys) else None
    if artifact is None:
        detected = detect_source(location, keys.format, keys.source_keys)
        source = _with_names(detected, episodes, names)
        return "source", report_source(location, source, episodes, reporter)
    if artifact.kind == "frames":
        return artifact.kind, _report_frames(artifact, episodes, reporter)
    _check_raw_options(location, episodes, names)
    return artifact.kind, artifact.inspect()


def _report_frames(artifact: Artifact, episodes: str | None, reporter: Reporter) -> Report:
    """Report of the episodes of a folder of frames, and of how it was made."""
    made = artifact.inspect()
    source = detect_source(artifact.location, artifact.kind)
    shown = report_source(artifact.location, source, episodes, reporter)
    return replace(
        shown,
        kind=made.kind,
        headline=made.headline,
        facts={**shown.facts, **made.facts},
        summary={**shown.summary, **made.summary},
        findings=made.findings,
    )


def inspect_names(locations: Sequence[Path], keys: SourceKeys, episodes: str | None) -> Report:
    """Compares the cameras and fields of several sources and folders of shards."""
    sets: list[NamedSet] = []
    for location in locations:
        artifact = recognize(location) if _may_be_artifact(keys) else None
        if artifact is None:
            source = detect_source(location, keys.format, keys.source_keys)
            sets.append(set_of_source(str(location), source, select(source.refs, episodes)))
            continue
        facts = artifact.inspect().facts if artifact.kind == "output" else {}
        if not facts.get("fields"):
            raise UsageError(
                f"{location}: cameras and fields of this kind of data cannot be compared",
                hint="give raw episodes and folders of shards only, or inspect each alone",
                code="usage.unsupported",
            )
        sets.append(set_of_shards(str(location), facts))
    return names_report(sets)


def _may_be_artifact(keys: SourceKeys) -> bool:
    """True if a location may hold something else than raw episodes."""
    return keys.format is None and not keys.source_keys


def _check_raw_options(location: Path, episodes: str | None, names: NameMap) -> None:
    """Raises UsageError for options that are only for raw episodes."""
    option = "--episodes" if episodes is not None else "" if names.is_empty else "--rename"
    if option:
        raise UsageError(
            f"{location}: does not hold raw episodes",
            hint=f"leave {option} out: it is only for raw episodes",
            code="usage.unsupported",
        )


def _with_names(source: DetectedSource, episodes: str | None, names: NameMap) -> DetectedSource:
    if names.is_empty:
        return source
    reader, _, _ = read_with_names(source.reader, select(source.refs, episodes), names)
    return replace(source, reader=reader)


def check_target(path: Path, generator: str = GENERATOR) -> None:
    """Raises an error if no page can be written to a path; called before anything is read."""
    target_error = partial(UsageError, code="usage.bad_value", details={"path": str(path)})
    if not path.name or path.is_dir():
        raise target_error(
            f"--html {path}: is a folder",
            hint="give the name of the file to write, such as page.html",
        )
    if path.is_file():
        with path.open("rb") as file:
            is_page = generator.encode() in file.read(_HEAD_BYTES)
        if not is_page:
            raise target_error(
                f"--html {path}: exists, and is not a page of {generator.split()[-1]}",
                hint="choose another name",
            )


def write_page(
    report: Report, title: str, path: Path, request: PageRequest, *, has_videos: bool | None
) -> None:
    """Writes the HTML page of a report. `has_videos`: None for as many videos as fit into it; True
    for all, the rest in files beside it.
    """
    assert report.page is not None
    remove_partials_of(path)
    videos = PageVideos(path, has_files=bool(has_videos))
    keep = None if has_videos is False else videos.keep
    sections = report.page(replace(request, keep_video=keep))
    write_text(path, page(title, report.headline, sections))
    videos.remove_others()


@dataclass(frozen=True)
class Verification:
    """A verification that is running: its findings, and what has been counted so far."""

    kind: str  # kind of the artifact, `source`, or `download` for files of another kind
    root: Path  # folder that paths of findings are relative to
    findings: Iterable[Finding]  # findings, found while they are read
    format: str | None = None  # format of a source


def verify_location(
    location: Path,  # an existing file or folder
    options: CheckOptions,
    *,
    keys: SourceKeys | None = None,  # format of raw episodes, and its keys; None: detect all
    episodes: str | None = None,  # raw episodes to verify; None for all
    names: NameMap | None = None,  # new names of cameras and fields of raw episodes
) -> Verification:
    """Starts the verification of an artifact or of a source."""
    names = names or NameMap()
    verification = _verification(location, options, keys or SourceKeys(), episodes, names)
    every = chain(verification.findings, check_kinds_of_files(location))
    findings = _with_counts(every, verification.root, options)
    return replace(verification, findings=findings)


def _with_counts(
    findings: Iterable[Finding], root: Path, options: CheckOptions
) -> Iterator[Finding]:
    """Yields the findings; counts the files of the file list if nothing else is counted."""
    yield from findings
    if not any(asdict(options.counts).values()):
        with suppress(DataError):  # a broken list is a finding
            for entry in read_file_list(root) or ():
                options.counts.add(files=entry.count or 1, bytes=entry.bytes)


def _verification(
    location: Path,
    options: CheckOptions,
    keys: SourceKeys,
    episodes: str | None,
    names: NameMap,
) -> Verification:
    artifact = recognize(location) if _may_be_artifact(keys) else None
    if artifact is not None:
        _check_raw_options(location, None, names)
        root = location.parent if location.is_file() else location
        return Verification(artifact.kind, root, artifact.check(options))
    record = read_record(location) if _may_be_artifact(keys) else None
    is_download = record is not None and record.is_download
    is_output = record_file(location).exists()  # such as the images of `decode`
    files = check_record_and_files(location, location, options) if is_output else ()
    try:
        source = detect_source(location, keys.format, keys.source_keys)
    except DataError as error:
        if is_download:  # of anything
            return Verification("download", location, files)
        if error.code in ("data.no_episodes", "data.no_source"):
            raise
        # The detected format cannot list the episodes.
        return Verification("source", location, [finding_of_error(error)])
    source = _with_names(source, episodes, names)
    findings = chain(files, check_source(location, source, episodes, options))
    return Verification("source", location, findings, source.format)


def code_rows() -> Iterator[dict[str, str]]:
    """Rows of all known codes, including codes of plugins."""
    tables = [*finding_codes(), SOURCE, IMAGES, CONVENTION]
    for registry in (FORMATS, SINKS):
        for name in registry.names():
            tables.append(registry.get(name).findings)
    by_name: dict[str, FindingCodes] = {}  # related formats share their codes
    for codes in tables:
        if isinstance(codes, FindingCodes):
            by_name[codes.name] = codes
    for codes in by_name.values():
        yield from codes.rows()
