"""LeRobot v3.0: the same episodes as in v2, and defects of files that episodes share."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.builders.lerobot import TASKS, lerobot_dataset, write_video
from tests.builders.lerobot_shared import (
    DATA_FILE,
    LIST,
    TASK_TABLE,
    edit_list,
    read_list,
    video_file,
    write_list,
)
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader

FRONT = "observation.images.front"
LENGTHS = (6, 4, 5, 7, 3)
START, STOP = f"videos/{FRONT}/from_timestamp", f"videos/{FRONT}/to_timestamp"
Break = Callable[[Path], Any]


def discovered(root: Path) -> tuple[LeRobotReader, list[Any]]:
    reader = LeRobotReader(LeRobotConfig())
    return reader, list(reader.discover([root]))


def read_all(root: Path) -> list[Episode]:
    reader, refs = discovered(root)
    return [reader.read(ref) for ref in refs]


def codes_of(root: Path) -> tuple[list[str], list[list[str]]]:
    """Codes of findings on the set, and on each episode."""
    reader, refs = discovered(root)
    episodes = [[f.code for f in reader.check(ref, deep=False)] for ref in refs]
    return [f.code for f in (*reader.source_findings, *reader.check_source([root]))], episodes


def shared(root: Path, **options: Any) -> Path:
    return lerobot_dataset(root / "set", LENGTHS, version="v3.0", **{"per_file": 3, **options})


def facts(episode: Episode) -> dict[str, Any]:
    """All that an episode holds, none of which depends on the version."""
    frames = range(episode.num_frames)
    return {
        "texts": (episode.id, episode.task, episode.language, episode.findings, episode.extras),
        "fields": {name: values.tolist() for name, values in episode.lowdim.items()},
        "rows": episode.frame_metadata,
        "images": {name: camera.read(frames) for name, camera in episode.cameras.items()},
    }


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize(("version", "per_file"), [("v2.0", 1), ("v3.0", 1), ("v3.0", 3)])
def test_all_versions_read_back_identical(
    tmp_path: Path, kind: str, version: str, per_file: int
) -> None:
    cameras = {FRONT: kind}
    old = lerobot_dataset(tmp_path / "old/set", LENGTHS, cameras=cameras)
    new = tmp_path / "new/set"
    lerobot_dataset(new, LENGTHS, cameras=cameras, version=version, per_file=per_file)
    for expected, actual in zip(read_all(old), read_all(new), strict=True):
        before, after = facts(expected), facts(actual)
        for name, images in before.pop("images").items():
            assert np.array_equal(images, after["images"][name])
        after.pop("images")
        assert before == after


def test_rows_of_one_large_row_group_and_lists_of_several_files_are_those_of_their_episode(
    tmp_path: Path,
) -> None:
    root = shared(tmp_path, per_file=5)
    expected = [facts(episode)["fields"] for episode in read_all(root)]
    table = pq.read_table(root / DATA_FILE)
    pq.write_table(table, root / DATA_FILE)
    assert pq.ParquetFile(root / DATA_FILE).num_row_groups == 1
    assert [facts(episode)["fields"] for episode in read_all(root)] == expected
    columns = read_list(root)
    for file, numbers in enumerate([[4, 1], [0, 3, 2]]):
        part = {name: [values[number] for number in numbers] for name, values in columns.items()}
        pq.write_table(pa.table(part), root / f"meta/episodes/chunk-000/file-{file:03d}.parquet")
    assert [facts(episode)["fields"] for episode in read_all(root)] == expected


def test_frames_are_exact_where_a_clip_does_not_start_with_a_keyframe(tmp_path: Path) -> None:
    root = shared(tmp_path, per_file=5)
    expected = [facts(episode)["images"][FRONT] for episode in read_all(root)]
    frames = sum(LENGTHS)
    write_video(root / video_file(FRONT), frames, g="250", bf="3")
    whole = lerobot_dataset(tmp_path / "whole/set", [frames])
    shutil.copy(root / video_file(FRONT), whole / f"videos/chunk-000/{FRONT}/episode_000000.mp4")
    images = facts(read_all(whole)[0])["images"][FRONT]
    start = 0
    for before, episode in zip(expected, read_all(root), strict=True):
        stop = start + len(before)
        assert np.array_equal(facts(episode)["images"][FRONT], images[start:stop])
        assert np.array_equal(episode.cameras[FRONT].read([2, 0, 1]), images[start:][[2, 0, 1]])
        start = stop


@pytest.mark.parametrize("column", ["task", "__index_level_0__", "text"])
def test_tasks_are_looked_up_by_number(tmp_path: Path, column: str) -> None:
    root = shared(tmp_path)
    table = pa.table({"task_index": [1, 0], column: [TASKS[1], TASKS[0]]})
    pq.write_table(table, root / TASK_TABLE)
    assert [episode.task for episode in read_all(root)[:2]] == list(TASKS)


def test_the_layout_counts_and_not_the_stated_version(tmp_path: Path) -> None:
    root = shared(tmp_path, info={"codebase_version": "v2.1"})
    assert codes_of(root)[0] == ["lerobot.version_mismatch"]
    old = lerobot_dataset(tmp_path / "old/set", info={"codebase_version": "v3.0"})
    assert codes_of(old)[0] == ["lerobot.version_mismatch"]
    assert [len(read_all(path)) for path in (root, old)] == [5, 2]


# Defects


def remove_from_list(number: int) -> Break:
    def change(root: Path) -> None:
        columns = {name: list(values) for name, values in read_list(root).items()}
        for values in columns.values():
            del values[number]
        write_list(root, columns)

    return change


def edited(*changes: tuple[str, int, Any]) -> Break:
    return lambda root: [edit_list(root, *change) for change in changes]


def short_video(root: Path) -> None:
    """The video of the first three episodes lacks the last one and a frame of the second."""
    write_video(root / video_file(FRONT), 9)


def repeated_column(root: Path) -> None:
    table = pq.read_table(root / DATA_FILE)
    pq.write_table(table.append_column("action", table.column("action")), root / DATA_FILE)


def swapped_numbers(root: Path) -> None:
    """Rows of the second episode are numbered as the first one, too."""
    table = pq.read_table(root / DATA_FILE)
    numbers = [0] * 6 + [1] * 2 + [0] * 2 + [2] * 5
    position = table.schema.get_field_index("episode_index")
    pq.write_table(table.set_column(position, "episode_index", pa.array(numbers)), root / DATA_FILE)


@pytest.mark.parametrize(
    ("change", "of_set", "of_episodes"),
    [
        (edited((START, 1, 40.0), (STOP, 1, 40.4)), ["clip_gap"] * 2, {1: ["clip_outside"]}),
        (edited((START, 1, 1e15), (STOP, 1, 1e16)), ["clip_gap"], {1: ["clip_outside"]}),
        (edited((START, 1, -1.0)), ["clip_gap"], {1: ["clip_outside"]}),
        (edited((STOP, 1, 0.8)), ["clip_gap"], {1: ["video_too_short"]}),
        (edited((STOP, 1, 1.2)), [], {1: ["extra_frames"]}),
        (edited((START, 1, 0.2)), [], {0: ["clips_overlap"], 1: ["clips_overlap"]}),
        (edited((START, 1, None)), ["clip_gap"], {1: ["missing_video"]}),
        (short_video, [], {1: ["rows_cut"], 2: ["clip_outside"]}),
        (
            lambda root: (root / video_file(FRONT, 1)).unlink(),
            [],
            {3: ["missing_video"], 4: ["missing_video"]},
        ),
        (
            lambda root: (root / DATA_FILE).unlink(),
            [],
            {number: ["missing_file"] for number in range(3)},
        ),
        (
            edited(("length", 1, 9)),
            ["totals_mismatch", "row_offsets"],
            {1: ["length_mismatch", "clips_overlap"], 2: ["clips_overlap"]},
        ),
        (
            edited(("dataset_from_index", 1, 7)),
            ["row_offsets", "row_offsets"],
            {1: ["row_offsets"]},
        ),
        (
            edited(("data/file_index", 1, 1)),
            [],
            {1: ["rows_elsewhere"], 3: ["row_offsets"], 4: ["row_offsets"]},
        ),
        (
            remove_from_list(1),
            [
                "totals_mismatch",
                "totals_mismatch",
                "list_gap",
                "row_offsets",
                "clip_gap",
                "unlisted_episode",
                "index_gap",
            ],
            {},
        ),
        (repeated_column, [], {number: ["bad_parquet"] for number in range(3)}),
        (
            swapped_numbers,
            [],
            {0: ["split_rows"], 1: ["length_mismatch", "extra_frames"]},
        ),
    ],
)
def test_a_defect_of_the_segments_is_one_of_its_episodes(
    change: Break, of_set: list[str], of_episodes: dict[int, list[str]], tmp_path: Path
) -> None:
    root = shared(tmp_path)
    change(root)
    of_all, episodes = codes_of(root)
    expected = [of_episodes.get(number, []) for number in range(len(episodes))]
    assert [code.removeprefix("lerobot.") for code in of_all] == of_set
    assert [[code.removeprefix("lerobot.") for code in codes] for codes in episodes] == expected


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        (edited(("episode_index", 1, 0)), "data.broken", LIST),
        (edited(("data/file_index", 1, None)), "data.broken", LIST),
        (lambda root: (root / LIST).write_bytes(b"PAR1"), "data.broken", LIST),
        (lambda root: shutil.rmtree(root / "meta/episodes"), "data.broken", "meta/episodes"),
    ],
)
def test_a_broken_list_is_named(change: Break, code: str, name: str, tmp_path: Path) -> None:
    root = shared(tmp_path)
    change(root)
    with pytest.raises(DataError) as caught:
        read_all(root)
    assert (caught.value.code, caught.value.details["path"]) == (code, str(root / name))
