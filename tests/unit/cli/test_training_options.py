"""Sugar of training commands: data folders and the run folder."""

from pathlib import Path

import pytest

from vlatool.cli.training_options import expand_data, expand_run
from vlatool.errors import DataError, UsageError


def data_folder(folder: Path, *, nested: bool) -> Path:
    inner = folder / "shards" if nested else folder
    inner.mkdir(parents=True)
    (inner / "manifest.jsonl").touch()
    return folder


def test_data_folder_names_manifest_and_statistics_of_its_shards(tmp_path: Path) -> None:
    first = data_folder(tmp_path / "a", nested=True)
    second = data_folder(tmp_path / "b", nested=False)
    assert expand_data([str(first), f"{second}/"]) == {
        "data.dataset_manifest": [
            f"{first}/shards/manifest.jsonl",
            f"{second}/manifest.jsonl",
        ],
        "data.dataset_statistics": [f"{first}/shards/stats.json", f"{second}/stats.json"],
    }


def test_folder_without_manifest_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        expand_data([str(tmp_path)])
    assert caught.value.code == "data.no_manifest"


@pytest.mark.parametrize(
    ("text", "save_path", "name"),
    [("runs/first", "runs", "first"), ("first", ".", "first"), ("/a/b/c/", "/a/b", "c")],
)
def test_run_folder_is_parent_and_name(text: str, save_path: str, name: str) -> None:
    assert expand_run([text]) == {"save_path": save_path, "name": name}


def test_run_folder_needs_a_name() -> None:
    with pytest.raises(UsageError):
        expand_run(["/"])
