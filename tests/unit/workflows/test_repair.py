"""`vlatool repair`: a healthy copy beside recordings that are damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pyarrow.parquet as pq
import pytest

from tests.builders import mcap
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


def without_footer(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: -8 - int.from_bytes(data[-8:-4], "little")])


def test_whole_files_are_copied_and_a_table_is_saved_with_the_help_of_its_neighbors(
    source: Path,
) -> None:
    before = contents(source)
    table = pq.read_table(source / TABLE)
    without_footer(source / TABLE)
    damaged = contents(source)
    result = repaired(source)
    healthy = source.parent / "healthy"
    assert [row["file"] for row in result.cut] == [TABLE]
    others = {name: data for name, data in contents(healthy).items() if name != TABLE}
    assert others == {name: data for name, data in before.items() if name != TABLE}
    assert pq.read_table(healthy / TABLE).equals(table)
    assert [f.code for f in verify(VerifyConfig(location=str(healthy))).findings] == []
    assert contents(source) == damaged
    assert repaired(source).status == "already complete"


def _cut_mp4(folder: Path) -> Path:
    path = lerobot_dataset(folder / "set", (6, 4, 5)) / VIDEO
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov")])
    return path


def _cut_mcap(folder: Path) -> Path:
    return mcap.cut(mcap.bag(folder / "bag.mcap", mcap.standard()), -60)


def _cut_bag(folder: Path) -> Path:
    kind = "std_msgs/msg/Float64"
    sent = [("/a", step / 10, mcap.ros(kind, float(step), version=1)) for step in range(30)]
    return mcap.unindexed(mcap.other_bag(folder / "bag.bag", sent))


def _cut_hdf5(folder: Path) -> Path:
    path = folder / "demo.h5"
    with h5py.File(path, "w") as file:
        file["data"] = list(range(5000))
    path.write_bytes(path.read_bytes()[:8000])
    return path


@pytest.mark.parametrize(
    ("cut_file", "tool"),
    [
        (_cut_mp4, "untrunc"),
        (_cut_mcap, "mcap recover"),
        (_cut_bag, "rosbag reindex"),
        (_cut_hdf5, "h5clear"),
    ],
)
def test_the_error_for_another_damaged_file_names_the_tool_that_helps(
    tmp_path: Path, cut_file: Callable[[Path], Path], tool: str
) -> None:
    path = cut_file(tmp_path)
    with pytest.raises(DataError, match=tool) as raised:
        repair(RepairConfig(source=str(path), output=str(tmp_path / "healthy"), workers=1))
    assert raised.value.details["failures"][0]["code"] == "data.broken"


def test_a_file_of_which_nothing_is_whole_is_named_and_the_others_are_written(source: Path) -> None:
    (source / TABLE).write_bytes(b"")
    with pytest.raises(PartialFailure) as raised:
        repaired(source)
    (failure,) = raised.value.details["failures"]
    assert (failure["file"], failure["code"]) == (TABLE, "data.broken")
    names = {name for name in contents(source.parent / "healthy") if not name.startswith(".")}
    assert names == {name for name in contents(source) if name != TABLE}


def test_a_plan_counts_the_damaged_files_and_writes_nothing(source: Path) -> None:
    without_footer(source / TABLE)
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
