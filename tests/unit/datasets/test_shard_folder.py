"""Detection of training shards."""

from pathlib import Path

import pytest

from tests.builders.shards import shard_output
from vlatool.datasets.lbm.layout import ShardFolder, is_output
from vlatool.errors import DataError
from vlatool.jobs.record import OutputRecord


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_output(tmp_path_factory.mktemp("data") / "out")


@pytest.mark.parametrize("part", ["", "shards", "shards/manifest.jsonl"])
def test_an_output_is_found_from_each_of_its_paths(part: str, output: Path) -> None:
    folder = ShardFolder.open(output / part)
    assert folder.path == output / "shards"
    assert [shard.size for shard in folder.shards()] == [3, 3]
    assert set(folder.statistics()) == {"state", "action"}


def test_a_folder_under_any_name_is_found_by_its_manifest_and_episodes_without_shards(
    output: Path, tmp_path: Path
) -> None:
    (tmp_path / "published").symlink_to(output / "shards")
    folder = ShardFolder.open(tmp_path / "published")
    assert (folder.path, folder.output) == (tmp_path / "published", tmp_path / "published")
    assert folder.episodes is None
    assert ShardFolder.find(output / "shards/stats.json") is None, "statistics are no manifest"
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes/manifest.jsonl").touch()
    assert ShardFolder.open(tmp_path).path == tmp_path / "episodes"
    episodes = ShardFolder.open(output).episodes
    assert episodes is not None
    assert [shard.size for shard in episodes.shards()] == [2, 2, 2]
    assert episodes.options() == ShardFolder.open(output).options()


def test_missing_data_is_an_error_and_an_unfinished_output_is_an_output(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ShardFolder.open(tmp_path)
    assert caught.value.code == "data.no_manifest"
    assert all(name in caught.value.message for name in ("shards/manifest.jsonl", "episodes/"))
    assert not is_output(tmp_path)
    OutputRecord("preprocess", {}).save(tmp_path)
    assert is_output(tmp_path)
    with pytest.raises(DataError) as caught:
        ShardFolder.open(tmp_path)
    assert caught.value.code == "data.incomplete"
