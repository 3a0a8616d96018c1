"""Check of a note: the files of the run, and the number of words."""

from collections.abc import Iterator
from pathlib import Path

from tests.builders.notes.layout import MANIFEST, TEXT_NAME
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, error
from vlatool.recordings.check import CheckOptions, check_record_and_files

NOTE = FindingCodes(
    "note",
    broken_manifest=error("note.json is missing or broken.", "write the note again"),
    count_mismatch=error("The text has another number of words.", "write the note again"),
)

FINDINGS = (NOTE,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a note."""
    has_ended = yield from check_record_and_files(location, location, options)
    if not has_ended:
        return
    path = str(location / MANIFEST.name)
    try:
        note = MANIFEST.read(location)
    except DataError as problem:
        yield NOTE("broken_manifest", problem.message, path=path)
        return
    if note is None:
        yield NOTE("broken_manifest", f"{path}: is missing", path=path)
        return
    words = len((location / TEXT_NAME).read_text().split())
    options.counts.add(files=2)
    if words != note.words:
        message = f"{path}: lists {note.words} words, counted {words}"
        yield NOTE("count_mismatch", message, path=path)
