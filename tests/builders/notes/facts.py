"""Report of a note: its title and number of words, and a page with both."""

from pathlib import Path

from tests.builders.notes.layout import MANIFEST
from vlatool.report.facts import PageRequest, Problems, Report, Section, Text


def inspect(location: Path) -> Report:
    """Reads the manifest of a note."""
    findings = Problems()
    manifest = findings.read(MANIFEST.read, location)
    facts = {
        "title": manifest.title if manifest else "",
        "words": manifest.words if manifest else 0,
    }

    def page(request: PageRequest) -> list[Section]:
        del request
        text = f"{facts['title']}, {facts['words']} words"
        return [Section("Note", [Text(text, "note")])]

    return Report(
        kind="note",
        headline=f"note {facts['title']!r}",
        facts=facts,
        summary=facts,
        findings=findings,
        page=page,
    )
