"""Codes and locations of findings on LeRobot data sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.builders.lerobot import TASKS, Columns, lerobot_dataset, write_lines, write_video
from vlatool.findings import Finding
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader

CAMERA, STATE = "observation.images.front", "observation.state"
DATA = "data/chunk-000/episode_000001.parquet"
VIDEO = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
Break = Callable[[Path], Any]


def episode_findings(root: Path, number: int = 1, *, deep: bool = False) -> list[Finding]:
    reader = LeRobotReader(LeRobotConfig())
    ref = list(reader.discover([root]))[number]
    return list(reader.check(ref, deep=deep))


def source_findings(root: Path) -> list[Finding]:
    return list(LeRobotReader(LeRobotConfig()).check_source([root]))


def column(name: str, change: Callable[[Any], Any]) -> Callable[[int, Columns], None]:
    """Changes a column of the second episode."""

    def apply(number: int, columns: Columns) -> None:
        if number == 1:
            columns[name] = change(columns[name])

    return apply


def nan_at(row: int) -> Callable[[list[list[float]]], Any]:
    return lambda rows: [[np.nan] * 3 if number == row else v for number, v in enumerate(rows)]


def without_motion(number: int, columns: Columns) -> None:
    del number
    columns["observation.state"] = [[1.0, 2.0, 3.0]] * len(columns["observation.state"])
    columns["observation.gripper"] = pa.array([0.5] * len(columns["observation.gripper"]))
    columns["action"] = [[1.0, 2.0]] * len(columns["action"])


def write(name: str, data: bytes) -> Break:
    return lambda root: (root / name).write_bytes(data)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_good_data_set_has_no_findings(tmp_path: Path, version: str) -> None:
    root = lerobot_dataset(tmp_path / "pick", version=version)
    assert [
        *source_findings(root),
        *episode_findings(root, 0, deep=True),
        *episode_findings(root, 1),
    ] == []


@pytest.mark.parametrize(
    ("change", "code", "location"),
    [
        (
            column("frame_index", lambda v: np.array([0, 1, 3, 4])),
            "frame_index_gap",
            {"frame": 2, "field": "frame_index"},
        ),
        (column("frame_index", lambda v: np.array([0, 1, 1, 2])), "frame_index_gap", {"frame": 2}),
        (column("frame_index", lambda v: np.array([0, 2, 1, 3])), "rows_unsorted", {}),
        (column("index", lambda v: np.array([6, 7, 9, 10])), "index_gap", {"frame": 2}),
        (column(STATE, nan_at(2)), "non_finite", {"field": STATE}),
        (column(STATE, lambda v: [*v[:-1], v[-1][:2]]), "ragged_rows", {"field": STATE}),
        (column(STATE, lambda v: [*v[:-1], None]), "missing_value", {"field": STATE}),
        (column("observation.gripper", lambda v: ["a"] * 4), "not_numeric", {}),
        (column("task_index", lambda v: np.full(4, 9)), "unknown_task", {"field": "task_index"}),
        (column("task_index", lambda v: np.array([0, 1, 1, 1])), "several_tasks", {}),
        (column("timestamp", lambda v: pa.array([0.0, 0.1, 0.05, 0.3])), "timestamps", {}),
        (column("episode_index", lambda v: np.full(4, 5)), "episode_index", {}),
        (without_motion, "no_motion", {}),
        (lambda n, c: c.pop("action") if n else None, "missing_column", {"field": "action"}),
    ],
)
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_defect_of_the_rows_has_its_code_and_place(
    change: Callable[[int, Columns], None],
    code: str,
    location: dict[str, Any],
    version: str,
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "pick", change=change, version=version)
    findings = episode_findings(root)
    matches = [finding for finding in findings if finding.code == f"lerobot.{code}"]
    assert len(matches) == 1, findings
    assert location.items() <= matches[0].place.items()
    assert matches[0].place["episode"] == "pick_episode_000001"


@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        (lambda root: (root / DATA).unlink(), "missing_file", DATA),
        (write(DATA, LFS), "lfs_pointer", DATA),
        (write(DATA, b"PAR1"), "bad_parquet", DATA),
        (lambda root: (root / VIDEO).unlink(), "missing_video", VIDEO),
        (write(VIDEO, LFS), "lfs_pointer", VIDEO),
        (write(VIDEO, b"no video"), "video_unreadable", VIDEO),
        (lambda root: write_video(root / VIDEO, 1), "video_too_short", VIDEO),
        (lambda root: write_video(root / VIDEO, 3), "rows_cut", None),
        (lambda root: write_video(root / VIDEO, 5), "extra_frames", None),
        (lambda root: write_video(root / VIDEO, 4, fps=5), "video_fps", None),
        (lambda root: change_feature(root, CAMERA, shape=[64, 64, 3]), "picture_size", None),
    ],
)
def test_a_defect_of_the_files_has_its_code_and_place(
    change: Break, code: str, path: str | None, tmp_path: Path
) -> None:
    root = lerobot_dataset(tmp_path / "pick")
    change(root)
    matches = [finding for finding in episode_findings(root) if finding.code == f"lerobot.{code}"]
    assert len(matches) == 1
    assert path is None or matches[0].place["path"] == str(root / path)


def test_another_length_than_listed_and_files_that_are_missing_together_are_reported(
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "pick")
    listed = (root / "meta/episodes.jsonl").read_text()
    lines = [{"episode_index": n, "tasks": [TASKS[n]], "length": 9} for n in (0, 1)]
    write_lines(root / "meta/episodes.jsonl", lines)
    assert [finding.code for finding in episode_findings(root)] == ["lerobot.length_mismatch"]

    (root / "meta/episodes.jsonl").write_text(listed)
    (root / DATA).unlink()
    (root / VIDEO).unlink()
    codes = [finding.code for finding in episode_findings(root)]
    assert codes == ["lerobot.missing_file", "lerobot.missing_video"]


def test_a_broken_image_in_a_parquet_file_is_found_by_decoding(tmp_path: Path) -> None:
    def change(number: int, columns: Columns) -> None:
        if number == 1:
            columns[CAMERA][2] = {"bytes": b"no picture", "path": None}

    root = lerobot_dataset(tmp_path / "pick", cameras={CAMERA: "image"}, change=change)
    assert episode_findings(root) == []
    findings = episode_findings(root, deep=True)
    assert [(finding.code, finding.place["frame"]) for finding in findings] == [
        ("pictures.unreadable", 2)
    ]


@pytest.mark.parametrize(
    ("info", "code", "field"),
    [
        ({"total_episodes": 7}, "totals_mismatch", "total_episodes"),
        ({"total_tasks": 7}, "totals_mismatch", "total_tasks"),
        ({"total_videos": 7}, "totals_mismatch", "total_videos"),
        ({"total_chunks": 0}, "chunks", "total_chunks"),
        ({"splits": {"train": "0:100"}}, "splits", "splits.train"),
    ],
)
def test_wrong_totals_have_their_code_and_key(
    info: dict[str, Any], code: str, field: str, tmp_path: Path
) -> None:
    findings = source_findings(lerobot_dataset(tmp_path / "pick", info=info))
    assert [(finding.code, finding.place["field"]) for finding in findings] == [
        (f"lerobot.{code}", field)
    ]


def change_feature(root: Path, name: str, **changes: Any) -> None:
    tree = json.loads((root / "meta/info.json").read_text())
    tree["features"].setdefault(name, {}).update(changes)
    (root / "meta/info.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        (STATE, {"names": ["x"]}, "names_mismatch"),
        (STATE, {"names": [["x", "y", "z"]]}, None),
        ("observation.force", {"dtype": "float32", "shape": [1]}, "feature_without_column"),
    ],
)
def test_invalid_features_have_their_code(
    name: str, changes: dict[str, Any], code: str | None, tmp_path: Path
) -> None:
    root = lerobot_dataset(tmp_path / "pick")
    change_feature(root, name, **changes)
    findings = [(finding.code, finding.place["field"]) for finding in source_findings(root)]
    assert findings == ([(f"lerobot.{code}", name)] if code else [])


def test_index_is_continuous_over_the_data_set_and_a_pointer_for_its_tasks_reported(
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "pick", change=column("index", lambda v: v + 1))
    assert [finding.code for finding in source_findings(root)] == ["lerobot.index_gap"]

    (root / "meta/tasks.jsonl").write_bytes(LFS)
    assert "lerobot.tasks_unreadable" in [finding.code for finding in episode_findings(root)]


def test_a_defect_of_a_column_that_nothing_uses_is_a_warning(tmp_path: Path) -> None:
    def change(number: int, columns: Columns) -> None:
        columns["next.reward"] = [np.nan if number else 0.0] * len(columns["index"])

    root = lerobot_dataset(tmp_path / "pick", change=change)
    change_feature(root, "next.reward", dtype="float32", shape=[1])
    [finding] = [each for each in episode_findings(root) if each.code.startswith("lerobot")]
    assert (finding.code, finding.severity) == ("lerobot.unused_column", "warning")
    assert finding.place["field"] == "next.reward"


@pytest.mark.parametrize(
    ("info", "codes"),
    [({"data_files_size_in_mb": 0.001}, ["file_sizes"]), ({"chunks_size": 1}, ["chunks"])],
)
def test_files_of_v3_that_exceed_the_stated_limits_are_reported(
    info: dict[str, Any], codes: list[str], tmp_path: Path
) -> None:
    root = lerobot_dataset(tmp_path / "pick", (3, 3, 3, 3), cameras={}, version="v3.0", info=info)
    found = [each for each in source_findings(root) if each.code != "lerobot.no_statistics"]
    assert [*dict.fromkeys(each.code.removeprefix("lerobot.") for each in found)] == codes
    assert {each.severity for each in found} == {"info"}


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_a_data_set_without_statistics_is_reported(version: str, tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "pick", version=version)
    (root / "meta/stats.json").unlink()
    assert [finding.code for finding in source_findings(root)] == ["lerobot.no_statistics"]


def test_dimensions_that_never_change_and_equal_episodes_are_reported(tmp_path: Path) -> None:
    def equal_rows(_number: int, columns: Columns) -> None:
        columns["observation.state"] = [[float(row)] * 3 for row in range(4)]
        columns["action"] = [[float(row), 1.0] for row in range(4)]

    findings = source_findings(lerobot_dataset(tmp_path / "pick", (4, 4), change=equal_rows))
    codes = {finding.code: finding for finding in findings}
    assert {*codes} == {"lerobot.constant_dimensions", "lerobot.duplicate_episode"}
    assert codes["lerobot.constant_dimensions"].place["field"] == "action"
    assert "1 of 2 dimensions never change" in codes["lerobot.constant_dimensions"].message
    assert "episode 1 has the same" in codes["lerobot.duplicate_episode"].message
