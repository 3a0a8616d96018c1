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


def failure(root: Path) -> str:
    """Why the copy of a set lacks something."""
    with fails("partial.failed") as caught:
        mended(root)
    return "; ".join(failed["message"] for failed in caught.value.details["failures"])


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
def test_episodes_without_their_video_fail_and_the_same_command_adds_them_when_it_is_there(
    recorded: Path, listed: int
) -> None:
    root = killed(recorded, listed)
    video = root / VIDEO / "file-001.mp4"
    content = video.read_bytes()
    video.unlink()
    assert "episode, 2" in failure(root)
    output = root.with_name("mended")
    assert list_of(output) == list_of(recorded)[:2]
    assert [len(pq.read_table(path)) for path in output.glob("data/*/*.parquet")] == [10]

    video.write_bytes(content)
    assert list_of(mended(root)) == list_of(recorded)
    assert sum(len(pq.read_table(path)) for path in output.glob("data/*/*.parquet")) == 15


def test_a_video_that_is_cut_off_fails_and_the_same_command_takes_its_mended_copy(
    recorded: Path,
) -> None:
    root = killed(recorded)
    video = root / VIDEO / "file-001.mp4"
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 3])
    assert "video" in failure(root)
    assert list_of(root.with_name("mended")) == list_of(recorded)[:2]

    video.write_bytes(content)
    assert list_of(mended(root)) == list_of(recorded)


def test_a_list_without_footer_is_made_anew_and_kept_by_the_same_command(recorded: Path) -> None:
    root = killed(recorded, 2)
    (table,) = root.glob(EPISODES_TABLES)
    table.write_bytes(table.read_bytes()[:40])
    for _ in range(2):
        assert list_of(mended(root)) == list_of(recorded)


def test_episodes_behind_lost_rows_are_left_out(tmp_path: Path) -> None:
    recorded = lerobot_dataset(tmp_path / "recorded", (6, 4, 5, 3, 2, 4), version="v3.0")
    root = killed(recorded)
    (root / "data/chunk-000/file-001.parquet").unlink()
    assert "the rows of episode 2 are missing" in failure(root)
    assert list_of(root.with_name("mended")) == list_of(recorded)[:2]


def test_a_damaged_table_of_tasks_is_made_anew_from_a_whole_list(recorded: Path) -> None:
    before = [row["tasks"] for row in list_of(recorded)]
    table = recorded / TASKS_TABLE
    table.write_bytes(table.read_bytes()[:40])
    output = mended(recorded)
    assert [row["tasks"] for row in list_of(output)] == before
    assert len(pq.read_table(output / TASKS_TABLE)) == len({text for (text,) in before})


def test_a_lost_sentence_is_asked_for(recorded: Path) -> None:
    root = killed(recorded)
    (root / TASKS_TABLE).unlink()
    assert "--instruction" in failure(root)
    assert {row["tasks"][0] for row in list_of(mended(root, instruction="pick"))} == {"pick"}


def test_a_sentence_is_taken_from_the_episodes_that_are_listed(recorded: Path) -> None:
    root = killed(recorded, 2)
    (root / TASKS_TABLE).unlink()
    before = [row["tasks"] for row in list_of(recorded)]
    assert [row["tasks"] for row in list_of(mended(root))] == before


@pytest.mark.parametrize("lost", ["videos", "half of meta/info.json"])
def test_a_set_without_videos_or_description_fails_and_the_rest_is_copied(
    recorded: Path, lost: str
) -> None:
    root = killed(recorded)
    info = root / "meta/info.json"
    if lost == "videos":
        shutil.rmtree(root / "videos")
    else:
        info.write_text(info.read_text()[:200])
    (root / "notes.txt").write_text("gripper replaced")
    assert failure(root)
    assert (root.with_name("mended") / "notes.txt").is_file()
