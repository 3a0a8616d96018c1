"""Checks of any output: the record of its run and its file list.

`CheckOptions` holds the options of a verification and the counts of what was checked.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vlatool.errors import DataError
from vlatool.events import NULL, Reporter, counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.jobs import files as job_files
from vlatool.jobs.ownership import completion_hint
from vlatool.jobs.record import OutputRecord, read_record, read_valid_record
from vlatool.media.tar import INDEX_SUFFIX
from vlatool.storage.tree import sha256_of, walk
from vlatool.storage.uri import can_list, is_remote

_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"

OUTPUT = FindingCodes(
    "output",
    incomplete=error(
        "The command that writes this output has not finished.", "run the same command again"
    ),
    partial=warning(
        "Some episodes failed and are missing from the output.",
        "see .vlatool/run.json for the errors, repair the episodes, and repeat the command",
    ),
    broken_record=error(".vlatool/run.json was changed after it was written.", _WRITE_AGAIN),
    broken_metadata=error(
        "processing_metadata.json was changed after it was written.", _WRITE_AGAIN
    ),
    no_file_list=info(
        ".vlatool/files.jsonl is missing, so changed files cannot be detected by their digests."
    ),
    not_listed=info(
        "A web server does not list its folders, so only files of the file list are checked."
    ),
    broken_file_list=error(".vlatool/files.jsonl cannot be read.", _WRITE_AGAIN),
    missing_file=error("A file that the file list names is missing.", _WRITE_AGAIN),
    size_mismatch=error("A file has another size than in the file list.", _WRITE_AGAIN),
    digest_mismatch=error("A file was changed after it was written.", _WRITE_AGAIN),
    unlisted_file=warning(
        "A file is in the output, but not in its file list.", "move it out of the output"
    ),
    unreadable_file=error("A file cannot be read.", "check the disk and the permissions"),
    not_a_file=error(
        "A pipe, a device or a socket is among the files.",
        "remove it: programs that open it may hang",
    ),
)


@dataclass
class CheckCounts:
    """Numbers of files, bytes, samples, images and episodes that were checked."""

    files: int = 0
    bytes: int = 0
    samples: int = 0
    samples_read: int = 0
    pictures: int = 0
    episodes: int = 0

    def add(self, **counts: int) -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True)
class CheckOptions:
    samples: int | None = 200  # number of samples that are read; None for all
    is_full: bool = False  # decode every image
    is_quick: bool = False  # compare no digests
    workers: int = 1  # largest number of processes that check raw episodes
    counts: CheckCounts = field(default_factory=CheckCounts)  # counts of what was checked so far
    reporter: Reporter = NULL  # receives progress

    def selects(self, position: int, total: int) -> bool:
        """True if the contents of a sample are read; such samples are evenly spaced over all;
        `position`: number of the sample, from 0.
        """
        if self.samples is None or self.samples >= total:
            return True
        return position * self.samples // total != (position - 1) * self.samples // total


def check_file(
    codes: FindingCodes, path: Path, entry: job_files.FileEntry, check: CheckOptions
) -> Iterator[Finding]:
    """Compares a file with its entry in a list; the finding codes are in all families of lists."""
    try:
        if not path.is_file():
            yield codes("missing_file", f"{path}: is missing", path=str(path))
            return
        size = path.stat().st_size
        if size != entry.bytes:
            message = f"{path}: has {size} bytes, expected {entry.bytes}"
            yield codes("size_mismatch", message, path=str(path))
        elif not check.is_quick and sha256_of(path) != entry.sha256:
            message = f"{path}: was changed after it was written"
            yield codes("digest_mismatch", message, path=str(path))
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        yield codes("unreadable_file", message, path=str(path))


def check_record_and_files(
    location: Path,  # folder or file that is verified
    root: Path,  # the folder itself, or the folder of the file
    check: CheckOptions,  # options of the verification
    *,
    nested_outputs: Sequence[str] = (),
    volatile: Sequence[str] = (),
) -> Generator[Finding, None, bool]:
    """Yields the findings of a record and its listed files; returns True if the run has ended."""
    record = None
    try:
        record = read_valid_record(location)
    except DataError as error:
        yield OUTPUT("broken_record", error.message, path=error.details["path"])
    if record is not None and not record.complete:
        yield _incomplete_finding(record, location)
        if record.result is None:
            return False
    yield from check_files(root, check, nested_outputs=nested_outputs, volatile=volatile)
    return True


def check_kinds_of_files(location: Path) -> Iterator[Finding]:
    """Yields a finding for each name at and below a local folder that is no file and no folder."""
    if is_remote(location):
        return
    for folder, _, _ in walk(location):
        for entry in os.scandir(folder):
            path = Path(entry.path)
            # The first two need no request to the file system; broken links are neither.
            if not (entry.is_file() or entry.is_dir()) and path.exists():
                yield OUTPUT.at("not_a_file", path, "is a pipe, a device or a socket")


def _incomplete_finding(record: OutputRecord, location: Path) -> Finding:
    if record.is_download:
        problem = f"this download is not complete; {completion_hint(record, location)}"
        return OUTPUT.at("incomplete", location, problem)
    if record.result is None:
        problem = f"`vlatool {record.command}` is running or was interrupted"
        return OUTPUT.at("incomplete", location, problem)
    problem = f"`vlatool {record.command}` left out the items that failed"
    return OUTPUT.at("partial", location, problem)


def check_files(
    location: Path,
    check: CheckOptions,
    *,
    nested_outputs: Sequence[str] = (),
    volatile: Sequence[str] = (),
) -> Iterator[Finding]:
    """Compares every file with the file list of the run, except nested outputs.

    Indexes of shards may be absent from the list, as they may be written later.
    `nested_outputs` and `volatile` are as in `check_record_and_files`.
    """
    try:
        entries = job_files.read_file_list(location)
    except DataError as error:
        yield OUTPUT("broken_file_list", error.message, path=str(location / job_files.NAME))
        return
    if entries is None:
        yield OUTPUT.at("no_file_list", location / job_files.NAME, "is missing")
        return
    with check.reporter.progress("files", len(entries), "files") as bar:
        for entry in entries:
            if entry.count is None:
                yield from check_file(OUTPUT, location / entry.path, entry, check)
            elif can_list(location):
                yield from _check_listed_folder(location, entry, check)
            bar.advance()
    if not can_list(location):
        problem = "its folders cannot be listed; only the files named in the file list are checked"
        yield OUTPUT.at("not_listed", location, problem)
        return
    recorded = {entry.path for entry in entries}
    record = read_record(location)
    volatile_patterns = (record.volatile if record else ()) or volatile
    for name in sorted(PurePosixPath(file.name) for file in job_files.output_files(location)):
        entry_names = {str(name), *(f"{parent}/" for parent in name.parents)}
        may_be_absent = name.name.endswith(INDEX_SUFFIX) or name.parts[0] in nested_outputs
        is_expected = job_files.belongs_in_list(str(name), volatile_patterns) and not may_be_absent
        if is_expected and recorded.isdisjoint(entry_names):
            path = location / name
            yield OUTPUT.at("unlisted_file", path, f"is not in {job_files.NAME}")


def _check_listed_folder(
    location: Path, entry: job_files.FileEntry, check: CheckOptions
) -> Iterator[Finding]:
    """Compares a folder with its single entry in the file list."""
    path = location / entry.path
    if not job_files.is_intact(location, entry):
        files = counted(entry.count or 0, "file")
        problem = f"does not contain {files} of {entry.bytes} bytes in total"
        yield OUTPUT.at("size_mismatch", path, problem)
    elif not check.is_quick:
        actual = job_files.folder_entry(entry.path, job_files.digests_below(path))
        if actual != entry:
            yield OUTPUT.at("digest_mismatch", path, "was changed after it was written")


def read_error(
    codes: FindingCodes, code: str, read: Callable[[], object], path: Path
) -> Iterator[Finding]:
    """Yields a finding if `read` raises a DataError; `path` where the error names none."""
    try:
        read()
    except DataError as error:
        yield codes(code, error.message, path=str(error.details.get("path", path)))
