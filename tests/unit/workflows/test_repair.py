"""`vlatool repair`: a healthy copy beside recordings that are damaged."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import contents
from vlatool.errors import DataError, PartialFailure, UsageError
from vlatool.workflows.repair import RepairConfig, RepairResult, repair
from vlatool.workflows.verify import VerifyConfig, verify

TABLE = "data/chunk-000/episode_000001.parquet"
VIDEO = "videos/chunk-000/observation.images.front/episode_000002.mp4"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lerobot_dataset(tmp_path / "source", (6, 4, 5))


def repaired(source: Path, /, **options: Any) -> RepairResult:
    keys = {"source": str(source), "output": str(source.parent / "healthy"), "workers": 1}
    return repair(RepairConfig(**(keys | options)))


def cut(path: Path, marker: bytes) -> None:
    """Cuts a file before the last occurrence of a marker."""
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(marker)])


def test_whole_files_are_copied_and_damaged_ones_are_saved_with_the_help_of_their_neighbors(
    source: Path,
) -> None:
    before, table = contents(source), pq.read_table(source / TABLE)
    footer = int.from_bytes((source / TABLE).read_bytes()[-8:-4], "little")
    (source / TABLE).write_bytes((source / TABLE).read_bytes()[: -8 - footer])
    cut(source / VIDEO, b"moov")
    damaged = contents(source)
    result = repaired(source)
    healthy = source.parent / "healthy"
    assert [row["file"] for row in result.cut] == [TABLE, VIDEO]
    assert {n: d for n, d in contents(healthy).items() if n not in (TABLE, VIDEO)} == {
        name: data for name, data in before.items() if name not in (TABLE, VIDEO)
    }
    assert pq.read_table(healthy / TABLE).equals(table)
    assert [f.code for f in verify(VerifyConfig(location=str(healthy))).findings] == []
    assert contents(source) == damaged
    assert repaired(source).status == "already complete"


def test_a_file_of_which_nothing_is_whole_is_named_and_the_others_are_written(source: Path) -> None:
    (source / TABLE).write_bytes(b"")
    with pytest.raises(PartialFailure) as raised:
        repaired(source)
    (failure,) = raised.value.details["failures"]
    assert (failure["file"], failure["code"]) == (TABLE, "data.broken")
    names = {name for name in contents(source.parent / "healthy") if not name.startswith(".")}
    assert names == {name for name in contents(source) if name != TABLE}


def test_a_plan_counts_the_damaged_files_and_writes_nothing(source: Path) -> None:
    cut(source / VIDEO, b"moov")
    result = repaired(source, dry_run=True)
    assert (result.files, result.damaged) == (len(contents(source)), 1)
    assert not (source.parent / "healthy").exists()


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"output": "source/healthy"}, UsageError, "usage.output_exists"),
        ({"output": "s3://lab/healthy"}, UsageError, "usage.bad_value"),
        ({"source": "absent"}, DataError, "data.no_source"),
        ({"source": "empty"}, DataError, "data.no_source"),
    ],
)
def test_what_cannot_be_repaired_is_an_error(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    error: type[Exception],
    code: str,
) -> None:
    monkeypatch.chdir(source.parent)
    Path("empty").mkdir()
    with pytest.raises(error) as raised:
        repaired(source, **options)
    assert getattr(raised.value, "code", "") == code
