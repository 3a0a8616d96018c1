"""Files and folders below a folder."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from vlatool.jobs.files import output_files
from vlatool.storage.tree import files_below, natural_key


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    listed = os.scandir

    def scandir(folder: Any) -> Any:  # permissions do not stop root
        if os.fspath(folder).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with fails("storage.unreadable") as caught:
        files_below(tmp_path)
    assert str(tmp_path / "b") in caught.value.message


def test_files_of_an_output_are_also_those_behind_links(tmp_path: Path) -> None:
    output, big = tmp_path / "out", tmp_path / "big"
    for folder in (output, big):
        folder.mkdir()
        (folder / "a").touch()
    (output / "videos").symlink_to(big)
    (output / "around").symlink_to(output)
    assert [file.name for file in output_files(output)] == ["a", "videos/a"]


def test_digits_that_are_no_decimals_sort_as_text() -> None:
    assert sorted(["run_10", "run_2", "run_1²", "①"], key=natural_key)[-1] == "①"
