"""Table of artifacts, which verify and inspect loop over."""

import multiprocessing
import os
import signal
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from tests.builders.notes.layout import COMMAND, MANIFEST, TEXT_NAME, write_note
from vlatool.errors import VlatoolError
from vlatool.jobs.ownership import single_output
from vlatool.jobs.record import OutputRecord
from vlatool.plugins import ARTIFACTS
from vlatool.recordings.artifact import finding_codes, recognize
from vlatool.storage.crash_points import VARIABLE
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A note, whose kind is in the table."""
    monkeypatch.setitem(ARTIFACTS, "notes", "tests.builders.notes")
    write_note(tmp_path / "note", "Wool", "of sheep")
    return tmp_path / "note"


@pytest.mark.parametrize("folder", ARTIFACTS.values())
def test_every_folder_has_its_functions(folder: str) -> None:
    for part, name in (("layout", "recognize"), ("check", "check"), ("facts", "inspect")):
        assert callable(getattr(import_module(f"{folder}.{part}"), name))


def test_an_empty_folder_and_one_with_another_manifest_are_not_recognized(tmp_path: Path) -> None:
    assert recognize(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    assert recognize(tmp_path) is None


def test_an_artifact_of_one_folder_is_verified(note: Path) -> None:
    result = verify(VerifyConfig(location=str(note)))
    assert result.document()["kind"] == "note"
    assert result.document()["codes"] == {"output.no_file_list": 1}
    assert "note" in {codes.name for codes in finding_codes()}


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("note.txt", "of many sheep", "note.count_mismatch"),
        ("note.json", '{"format": "toy.note", "version": 1}', "note.broken_manifest"),
        (
            "note.json",
            '{"format": "toy.note", "version": 1, "title": "x", "words": "2"}',
            "note.broken_manifest",
        ),
    ],
)
def test_damage_of_such_an_artifact_is_found(note: Path, name: str, text: str, code: str) -> None:
    (note / name).write_text(text)
    assert code in verify(VerifyConfig(location=str(note))).document()["codes"]


def test_such_an_artifact_is_inspected_and_has_a_page(note: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = inspect(InspectConfig(location=str(note), html=str(page)))
    facts = result.document()
    assert (facts["kind"], facts["title"], facts["words"]) == ("note", "Wool", 2)
    assert "Wool, 2 words" in page.read_text()


def _write_as_command(folder: Path, crash_point: str | None = None) -> None:
    if crash_point is not None:
        os.environ[VARIABLE] = crash_point
    with single_output(folder, OutputRecord(COMMAND, {}), (TEXT_NAME, MANIFEST.name)):
        write_note(folder, "Wool", "of sheep")


def _exit_code(folder: Path, crash_point: str) -> int | None:
    """Exit code of a process that writes a note; it kills itself at the crash point."""
    child = multiprocessing.get_context("fork").Process(
        target=_write_as_command, args=(folder, crash_point)
    )
    child.start()
    child.join()
    return child.exitcode


def _is_verified(folder: Path) -> bool:
    with suppress(VlatoolError):
        return not verify(VerifyConfig(location=str(folder))).document()["codes"]
    return False


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_such_an_artifact_killed_anywhere_is_not_taken_for_complete_and_is_written_again(
    note: Path, tmp_path: Path
) -> None:
    steps = tmp_path / "steps"
    assert _exit_code(tmp_path / "whole", str(steps)) == 0
    count = len(steps.read_text().splitlines())
    assert count > 10
    for number in range(1, count + 1):
        folder = tmp_path / str(number)
        assert _exit_code(folder, str(number)) == -signal.SIGKILL
        if _is_verified(folder):
            assert _contents(folder) == _contents(note)
        _write_as_command(folder)
        assert _is_verified(folder)
        assert _contents(folder) == _contents(note)
