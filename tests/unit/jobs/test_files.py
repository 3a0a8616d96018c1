"""File list of an output."""

from pathlib import Path

import pytest

from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry, belongs_in_list, read_file_list, write_file_list

TAR = FileEntry("shards/shard_000000.tar", 10240, "ab" * 32, 3)
STATS = FileEntry("episodes/stats.json", 7, "cd" * 32)


def test_entries_are_read_sorted_by_path_and_without_keys_that_are_unset(tmp_path: Path) -> None:
    assert read_file_list(tmp_path) is None
    write_file_list(tmp_path, [TAR, STATS])
    assert read_file_list(tmp_path) == [STATS, TAR]
    first, second = (tmp_path / ".vlatool/files.jsonl").read_text().splitlines()
    assert ("samples" in first, "samples" in second) == (False, True)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"path": "a"}',
        '{"path": "/a", "bytes": 1, "sha256": ""}',
        '{"path": "../a", "bytes": 1, "sha256": ""}',
        '{"path": "a", "bytes": "x", "sha256": ""}',
        '{"path": "a", "bytes": Infinity, "sha256": ""}',
        '{"path": "a", "bytes": 1, "sha256": "", "samplet": 1}',
        '{"path": "a", "bytes": 1, "sha256": "", "cound": 1}',
        '{"path": "a", "bytes": 1, "sha256": "", "modified_ns": 1e300}',
        '["path"]',
        pytest.param(f'{{"path": "{"n" * 300}", "bytes": 1, "sha256": ""}}', id="long name"),
        pytest.param("[" * 100_000 + "]" * 100_000, id="deep"),
    ],
)
def test_error_names_the_broken_line(line: str, tmp_path: Path) -> None:
    write_file_list(tmp_path, [TAR])
    path = tmp_path / ".vlatool/files.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError) as caught:
        read_file_list(tmp_path)
    assert (caught.value.code, caught.value.details["line"]) == ("data.broken", 2)


def test_volatile_files_and_records_are_not_listed() -> None:
    volatile = "shards/processing_metadata.json"
    paths = ("shards/stats.json", volatile, ".vlatool/run.json")
    assert [path for path in paths if belongs_in_list(path, (volatile,))] == ["shards/stats.json"]
