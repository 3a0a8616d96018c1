"""Report of a note: its title and number of words, and a page with both."""

from pathlib import Path

from tests.builders.notes.layout import MANIFEST
from vlatool.pages.layout import Section, note
from vlatool.pages.report import PageRequest, Problems, Report, ReportPage


def inspect(location: Path) -> Report:
    """Reads the manifest of a note."""
    findings = Problems()
    manifest = findings.read(MANIFEST.read, location)
    facts = {
        "title": manifest.title if manifest else "",
        "words": manifest.words if manifest else 0,
    }

    def page(request: PageRequest) -> ReportPage:
        del request
        return ReportPage([Section("Note", note(f"{facts['title']}, {facts['words']} words"))])

    return Report(
        kind="note",
        headline=f"note {facts['title']!r}",
        facts=facts,
        summary=facts,
        findings=findings,
        page=page,
    )
