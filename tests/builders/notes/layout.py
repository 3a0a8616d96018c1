"""Toy kind of artifact: a folder with a text and a manifest that counts its words."""

from dataclasses import asdict, dataclass
from pathlib import Path

from vlatool.jobs.record import read_record
from vlatool.storage.atomic import write_text
from vlatool.storage.manifest import Count, ManifestType

COMMAND = "write-note"
TEXT_NAME = "note.txt"


@dataclass(frozen=True)
class Note:
    """Manifest of a note."""

    title: str
    words: Count  # number of words of the text


MANIFEST = ManifestType("note.json", "toy.note", 1, Note, hint="write the note again")


def recognize(location: Path) -> str | None:
    """`note` for a folder of a note, or the output of a started run that writes one."""
    record = read_record(location)
    is_started = record is not None and record.command == COMMAND
    return "note" if is_started or MANIFEST.is_in(location) else None


def write_note(folder: Path, title: str, text: str) -> None:
    """Writes the text, then the manifest."""
    write_text(folder / TEXT_NAME, text)
    MANIFEST.write(folder, asdict(Note(title, len(text.split()))))
