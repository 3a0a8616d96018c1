"""One report as text and JSON."""

from vlatool.errors import DataError
from vlatool.pages.report import Problems, Report, finding_notes, status_text

FINDING = {"code": "data.torn", "message": "a.tar: ends in a <member>"}


def test_findings_follow_the_summary_in_the_text_and_are_escaped_on_a_page() -> None:
    report = Report("note", "one note", {}, {"status": "broken"}, ["Tables"], [FINDING])
    summary, findings, table = report.blocks()
    assert (summary, table) == ("status  broken", "Tables")
    assert "data.torn" in findings

    assert "&lt;member&gt;" in finding_notes([FINDING])


def test_a_document_has_findings_only_if_the_kind_has_some() -> None:
    assert Report("note", "", {"lines": 3}, {}).document() == {"lines": 3, "kind": "note"}
    assert Report("note", "", {}, {}, findings=[]).document() == {"findings": [], "kind": "note"}

    assert [status_text(status) for status in ("whole", "broken")] == ["complete", "broken"]


def test_problems_collect_errors_of_reading() -> None:
    def fail() -> int:
        raise DataError("a.tar: is torn", code="data.torn")

    problems = Problems()
    assert problems.read(fail) is None
    assert problems.read(int, "3") == 3
    assert problems == [{"code": "data.torn", "message": "a.tar: is torn"}]
