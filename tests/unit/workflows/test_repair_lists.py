"""Lists of LeRobot sets whose recorder was killed, made anew from their rows and videos."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from vlatool.recordings.lerobot.layout import EPISODES_TABLES, TASKS_TABLE
from vlatool.storage.documents import read_json
from vlatool.workflows.repair import RepairConfig, repair

LENGTHS = (6, 4, 5)
VIDEO = "videos/observation.images.front/chunk-000"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A set whose recorder ended; two episodes are in each file."""
    return lerobot_dataset(tmp_path / "recorded", LENGTHS, version="v3.0")


def killed(recorded: Path, listed: int = 0) -> Path:
    """The set as the recorder leaves it if it is killed: the list has some episodes."""
    root = recorded.with_name("killed")
    shutil.copytree(recorded, root)
    (table,) = root.glob(EPISODES_TABLES)
    rows = pq.read_table(table)
    table.unlink()
    if listed:
        pq.write_table(rows.slice(0, listed), table)
    return root


def mended(root: Path, **options: Any) -> Path:
    output = root.with_name("mended")
    repair(RepairConfig(source=str(root), output=str(output), workers=1, **options))
    return output


def list_of(root: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(root.glob(EPISODES_TABLES))]
    rows = [row for table in tables for row in table.to_pylist()]
    return [
        {key: row[key] for key in row if not key.startswith(("meta/", "stats/"))} for row in rows
    ]


@pytest.mark.parametrize("listed", [0, 1, 2])
def test_episodes_that_the_list_lacks_are_added(recorded: Path, listed: int) -> None:
    output = mended(killed(recorded, listed))
    assert list_of(output) == list_of(recorded)
    info = read_json(output / "meta/info.json")
    assert (info["total_episodes"], info["total_frames"]) == (3, sum(LENGTHS))


@pytest.mark.parametrize("listed", [0, 1])
def test_episodes_without_their_video_are_left_out_until_it_is_there(
    recorded: Path, listed: int
) -> None:
    root = killed(recorded, listed)
    video = root / VIDEO / "file-001.mp4"
    content = video.read_bytes()
    video.unlink()
    result = repair(RepairConfig(source=str(root), output=str(root.with_name("mended")), workers=1))
    assert any("episode 2" in text for row in result.cut for text in row["lost"])
    output = root.with_name("mended")
    assert list_of(output) == list_of(recorded)[:2]
    assert [len(pq.read_table(path)) for path in output.glob("data/*/*.parquet")] == [10]

    video.write_bytes(content)
    shutil.rmtree(output)
    assert list_of(mended(root)) == list_of(recorded)


def test_a_video_that_is_cut_off_fails_and_the_same_command_takes_its_mended_copy(
    recorded: Path,
) -> None:
    root = killed(recorded)
    video = root / VIDEO / "file-001.mp4"
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 3])
    with fails("partial.failed"):
        mended(root)
    assert list_of(root.with_name("mended")) == list_of(recorded)[:2]

    video.write_bytes(content)
    assert list_of(mended(root)) == list_of(recorded)


def test_a_lost_sentence_is_asked_for(recorded: Path) -> None:
    root = killed(recorded)
    (root / TASKS_TABLE).unlink()
    with fails("data.missing"):
        mended(root)
    assert {row["tasks"][0] for row in list_of(mended(root, instruction="pick"))} == {"pick"}


def test_a_sentence_is_taken_from_the_episodes_that_are_listed(recorded: Path) -> None:
    root = killed(recorded, 2)
    (root / TASKS_TABLE).unlink()
    before = [row["tasks"] for row in list_of(recorded)]
    assert [row["tasks"] for row in list_of(mended(root))] == before


def test_no_episode_with_its_video_is_an_error(recorded: Path) -> None:
    root = killed(recorded)
    shutil.rmtree(root / "videos")
    with fails("data.incomplete"):
        mended(root)


def test_a_description_that_is_cut_off_is_an_error_of_the_data(recorded: Path) -> None:
    root = killed(recorded)
    info = root / "meta/info.json"
    info.write_text(info.read_text()[:200])
    with fails("data.broken"):
        mended(root)
