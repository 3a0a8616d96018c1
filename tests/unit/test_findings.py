"""Findings and the table of their codes."""

import ast
import re
from pathlib import Path

import pytest

from vlatool.errors import DataError
from vlatool.findings import SEVERITIES, Collector, FindingCode, FindingCodes, finding_of_error
from vlatool.inspection import code_rows
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.spartan.check import SPARTAN

ROOT = Path(__file__).parents[2]
CODES = FindingCodes(
    "acme",
    {
        "bent": FindingCode("warning", "A thing is bent.", "straighten it"),
        "lost": FindingCode("error", "A thing is lost.", "find it"),
    },
    error_codes={"gone": "lost"},
)


def test_codes_are_unique_and_documented() -> None:
    rows = list(code_rows())
    assert len({row["code"] for row in rows}) == len(rows)
    assert all(row["severity"] in SEVERITIES and row["meaning"].endswith(".") for row in rows)
    assert {SPARTAN.name, LEROBOT.name} <= {row["code"].partition(".")[0] for row in rows}


def test_finding_has_the_known_parts_of_its_place() -> None:
    finding = CODES("bent", "it is bent", path="a", frame=None)
    assert finding.document() == {
        "code": "acme.bent",
        "severity": "warning",
        "place": {"path": "a"},
        "message": "it is bent",
        "action": "straighten it",
    }
    for line, shown, place in ((0, "f", {}), (3, "f:3", {"line": 3})):
        finding = CODES.at("bent", Path("f"), "it is bent", line=line, field="k")
        assert finding.message == f"{shown}: it is bent"
        assert finding.place == {"path": "f", **place, "field": "k"}


def test_data_error_becomes_a_finding_with_its_code_and_place() -> None:
    error = DataError(
        "broken", hint="repair it", code="data.x", details={"path": "f", "field": "k", "rows": 3}
    )
    finding = finding_of_error(error, episode="e")
    assert (finding.code, finding.severity, finding.action) == ("data.x", "error", "repair it")
    assert finding.place == {"episode": "e", "path": "f", "field": "k"}


def fail(finding: str) -> None:
    details = {"finding": finding, "path": "f", "episode": "third"}
    raise DataError("no", code="data.broken", details=details)


def test_strict_collector_raises_the_first_error() -> None:
    report = Collector(CODES, strict=True, episode="e")
    report.note("bent", "it is bent")
    with pytest.raises(DataError) as caught:
        report.attempt(lambda: fail("gone"))
    assert caught.value.details["finding"] == "gone"
    assert [(finding.code, finding.place) for finding in report.findings] == [
        ("acme.bent", {"episode": "e"})
    ]


@pytest.mark.parametrize(
    ("name", "explicit", "expected"),
    [
        ("lost", "", "acme.lost"),
        ("gone", "", "acme.lost"),
        ("other", "lost", "acme.lost"),
        ("other", "", "data.broken"),
    ],
)
def test_lenient_collector_adds_errors_with_its_own_codes(
    name: str, explicit: str, expected: str
) -> None:
    report = Collector(CODES, strict=False, episode="e")
    assert report.attempt(lambda: 3) == 3
    assert report.attempt(lambda: fail(name), explicit, camera="front") is None
    (finding,) = report.findings
    assert (finding.code, finding.severity) == (expected, "error")
    assert finding.place == {"path": "f", "episode": "e", "camera": "front"}


@pytest.mark.parametrize(("strict", "severity"), [(True, "warning"), (False, "error")])
def test_error_that_reading_tolerates_is_a_warning(strict: bool, severity: str) -> None:
    report = Collector(CODES, strict=strict)
    report.note("lost", "it is lost")
    assert [finding.severity for finding in report.findings] == [severity]


def _error_codes() -> set[str]:
    """Codes that the source gives to errors as `code=`."""
    kinds = "usage|config|data|partial|storage|environment|bug"
    codes: set[str] = set()
    for path in (ROOT / "src/vlatool").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                codes.update(re.findall(rf"'((?:{kinds})\.[a-z_]+)'", ast.unparse(node.value)))
    return codes


def test_error_codes_are_the_listed_kinds() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    table = text.partition("## Codes of errors")[2]
    listed = set(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", table, re.MULTILINE))
    assert len(listed) <= 60
    assert _error_codes() <= listed
