"""LeRobot data sets of all versions through `preprocess`: equal episodes give equal outputs."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.lerobot_shared import edit_list
from vlatool.errors import PartialFailure
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

LENGTHS = (24, 30, 21)
VERSIONS = ("v2.0", "v2.1", "v3.0")


def shards(root: Path, output: Path, **keys: Any) -> dict[str, bytes]:
    """Content of the shards and of the statistics of an output."""
    options = {"format": "lerobot", "sources": [str(root)], "output": str(output), "workers": 1}
    preprocess(PreprocessConfig.model_validate({**options, **keys}))
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    names = ["manifest.jsonl", "stats.json", "shard_000000.tar"]
    return {name: (output / "shards" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same episodes in all versions, in folders of one name."""
    folder = tmp_path_factory.mktemp("sets")
    return {v: lerobot_dataset(folder / v / "set", LENGTHS, version=v) for v in VERSIONS}


def test_shards_of_all_versions_are_equal_byte_for_byte(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    first, *others = (shards(sets[version], tmp_path / version) for version in VERSIONS)
    assert others == [first, first]


def test_one_bad_episode_does_not_hide_the_others_of_its_file(
    tmp_path: Path, sets: dict[str, Path]
) -> None:
    root = lerobot_dataset(tmp_path / "raw/set", LENGTHS, version="v3.0", per_file=3)
    edit_list(root, "videos/observation.images.front/from_timestamp", 1, 90.0)
    with pytest.raises(PartialFailure, match="1 of 3 episodes failed"):
        shards(root, tmp_path / "bad")
    good = shards(sets["v3.0"], tmp_path / "out", exclude="1")
    assert contents(tmp_path / "bad") == good
