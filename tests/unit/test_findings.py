"""Findings, and the page that lists their codes."""

import re
from itertools import groupby
from pathlib import Path

import pytest

from vlatool.errors import DataError
from vlatool.findings import SEVERITIES, Collector, FindingCode, FindingCodes, finding_of_error
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.spartan.findings import SPARTAN
from vlatool.verification.findings import code_rows

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"
FAMILY = FindingCodes(
    "acme",
    {
        "bent": FindingCode("warning", "A thing is bent.", "straighten it"),
        "lost": FindingCode("error", "A thing is lost.", "find it"),
    },
    error_codes={"gone": "lost"},
)


def tables() -> dict[str, str]:
    """Family to its table as the page has it."""
    head = "| Code | Severity | Meaning | What to do |\n|---|---|---|---|\n"
    return {
        family: head
        + "".join(
            f"| `{row['code']}` | {row['severity']} | {row['meaning']} | {row['action']} |\n"
            for row in rows
        )
        for family, rows in groupby(code_rows(), lambda row: row["code"].partition(".")[0])
    }


@pytest.mark.parametrize("family", tables())
def test_the_page_has_the_table_of_a_family(family: str) -> None:
    assert f"## `{family}`\n\n{tables()[family]}" in PAGE.read_text()


def test_the_page_has_no_other_codes() -> None:
    listed = re.findall(r"^\| `([a-z_]+\.[a-z0-9_]+)`", PAGE.read_text(), re.MULTILINE)
    assert listed == [row["code"] for row in code_rows()]


def test_codes_are_unique_and_say_what_they_mean() -> None:
    rows = list(code_rows())
    assert len({row["code"] for row in rows}) == len(rows)
    assert all(row["severity"] in SEVERITIES and row["meaning"].endswith(".") for row in rows)
    assert {SPARTAN.name, LEROBOT.name} <= {row["code"].partition(".")[0] for row in rows}


def test_a_finding_leaves_out_unknown_parts_of_its_place() -> None:
    found = FAMILY("bent", "it is bent", path="a", frame=None)
    assert found.document() == {
        "code": "acme.bent",
        "severity": "warning",
        "place": {"path": "a"},
        "message": "it is bent",
        "action": "straighten it",
    }


def test_a_refusal_becomes_an_error_with_its_code_and_place() -> None:
    error = DataError(
        "broken", hint="mend it", code="data.x", details={"path": "f", "field": "k", "rows": 3}
    )
    found = finding_of_error(error, episode="e")
    assert (found.code, found.severity, found.action) == ("data.x", "error", "mend it")
    assert found.place == {"episode": "e", "path": "f", "field": "k"}


def refuse(code: str) -> None:
    raise DataError("no", code=code, details={"path": "f", "episode": "third"})


def test_a_strict_collector_raises_the_first_error_and_keeps_what_came_before() -> None:
    report = Collector(FAMILY, strict=True, episode="e")
    report.note("bent", "it is bent")
    with pytest.raises(DataError) as caught:
        report.attempt(lambda: refuse("data.gone"))
    assert caught.value.code == "data.gone"
    assert [(one.code, one.place) for one in report.findings] == [("acme.bent", {"episode": "e"})]


@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        ("data.lost", "", "acme.lost"),
        ("data.gone", "", "acme.lost"),
        ("data.other", "lost", "acme.lost"),
        ("data.other", "", "data.other"),
    ],
)
def test_a_lenient_collector_keeps_errors_by_the_codes_of_its_family(
    code: str, given: str, expected: str
) -> None:
    report = Collector(FAMILY, strict=False, episode="e")
    assert report.attempt(lambda: 3) == 3
    assert report.attempt(lambda: refuse(code), given, camera="front") is None
    (found,) = report.findings
    assert (found.code, found.severity) == (expected, "error")
    assert found.place == {"path": "f", "episode": "e", "camera": "front"}


@pytest.mark.parametrize(("strict", "severity"), [(True, "warning"), (False, "error")])
def test_an_error_that_reading_tolerates_is_a_warning_there(strict: bool, severity: str) -> None:
    report = Collector(FAMILY, strict=strict)
    report.note("lost", "it is lost")
    assert [one.severity for one in report.findings] == [severity]
