"""Table of artifacts, which verify and inspect loop over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vlatool.artifacts.check import CheckOptions
from vlatool.findings import Finding, FindingCode, FindingCodes
from vlatool.plugins import ARTIFACTS, Artifact, Registry, recognize

NOTE = FindingCodes(
    "note", {"empty": FindingCode("error", "A note says nothing.", "write something")}
)


def is_note(location: Path) -> bool:
    return location.suffix == ".note"


def check_note(location: Path, check: CheckOptions) -> Iterator[Finding]:
    check.counts.add(files=1)
    if not location.read_text():
        yield NOTE("empty", f"{location}: is empty", path=str(location))


@pytest.mark.parametrize("name", ARTIFACTS.names())
def test_every_function_is_in_its_package(name: str) -> None:
    artifact = ARTIFACTS.get(name)
    for part, package in (
        ("recognize", "artifacts"),
        ("verify", "verification"),
        ("inspect", "artifacts"),
    ):
        assert getattr(artifact, part).split(".")[1] == package
        assert callable(artifact.load(part))


def test_an_empty_folder_is_not_recognized(tmp_path: Path) -> None:
    assert recognize(tmp_path) is None


def test_an_artifact_needs_only_a_row(tmp_path: Path) -> None:
    note = Artifact(f"{__name__}:is_note", f"{__name__}:check_note", "")
    table: Registry[Artifact] = Registry("", "artifact", {"note": note})
    (tmp_path / "x.note").touch()
    recognized = recognize(tmp_path / "x.note", table)
    assert recognized == ("note", note)
    check = CheckOptions()
    findings = list(note.load("verify")(tmp_path / "x.note", check))
    assert [finding.code for finding in findings] == ["note.empty"]
    assert check.counts.files == 1


def test_a_folder_with_another_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    assert recognize(tmp_path) is None
