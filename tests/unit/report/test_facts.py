"""Reports as documents and as text."""

import pytest

from vlatool.errors import DataError
from vlatool.report.facts import (
    Bars,
    Problems,
    Report,
    Section,
    Table,
    Text,
    card,
    evenly_spaced,
    histogram,
    status_text,
    under_heading,
)
from vlatool.report.text import blocks

FINDING = {"code": "data.torn", "message": "a.tar: ends in a <member>"}


def test_findings_follow_the_summary_in_the_text() -> None:
    table = Table((), [("a", 1)], "Tables")
    report = Report("note", "one note", {}, {"status": "broken"}, [table], [FINDING])
    summary, findings, last = blocks(report)
    assert (summary, last) == ("status  broken", "Tables\n  a  1")
    assert "data.torn" in findings


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


@pytest.mark.parametrize(
    ("total", "count", "positions"), [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (0, 3, []), (4, 0, [])]
)
def test_positions_are_the_centers_of_equal_parts(
    total: int, count: int, positions: list[int]
) -> None:
    assert evenly_spaced(total, count) == positions


def test_a_section_that_cannot_be_made_is_a_note() -> None:
    def fail() -> Section:
        raise DataError("a.tar: is torn")

    assert card("sample", fail).parts == [Text("a.tar: is torn", "note")]


def test_a_heading_without_members_is_left_out() -> None:
    assert under_heading("Samples (0 of 0)", []) == []
    assert len(under_heading("Samples (1 of 1)", [Section("first", [])])) == 2


@pytest.mark.parametrize(
    ("values", "first", "step", "counts"),
    [([3, 3, 4], 3, 1, [2, 1]), ([0, 47], 0, 2, [1, *[0] * 22, 1]), ([], 0, 1, [])],
)
def test_bins_of_a_histogram_are_integers_wide(
    values: list[int], first: int, step: int, counts: list[int]
) -> None:
    bars = histogram(values, "samples")
    assert isinstance(bars, Bars)
    assert (bars.first, bars.step, bars.counts.tolist()) == (first, step, counts)
