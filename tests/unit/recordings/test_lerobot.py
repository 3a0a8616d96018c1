import io
import json
import pickle
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.builders.lerobot import (
    TASKS,
    Columns,
    encoded_image,
    frame_of,
    lerobot_dataset,
    write_lines,
    write_video,
)
from tests.builders.lerobot_shared import DATA_FILE
from vlatool.episode import Episode, EpisodeRef, LanguageSpan
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.folder import fill_template
from vlatool.recordings.lerobot.reader import LeRobotReader

FRONT = "observation.images.front"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def discover(*roots: Path, **config: Any) -> tuple[LeRobotReader, list[EpisodeRef]]:
    reader = LeRobotReader(LeRobotConfig(**config))
    return reader, list(reader.discover(roots))


def read(root: Path, number: int = 0, **config: Any) -> Episode:
    reader, refs = discover(root, **config)
    return reader.read(refs[number])


def read_error(root: Path, number: int = 0, **config: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(root, number, **config)
    return caught.value


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def video_file(root: Path, number: int, camera: str = FRONT) -> Path:
    return root / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4"


def edit_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_feature(root: Path, name: str, dtype: str, shape: list[int]) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features={**features, name: {"dtype": dtype, "shape": shape}})


# Valid data sets


def test_an_episode_has_fields_camera_and_instruction(tmp_path: Path) -> None:
    episode = read(lerobot_dataset(tmp_path / "set"), 1)
    assert (episode.num_frames, episode.fps) == (4, 10.0)
    assert episode.proprioception_fields == ("observation.state", "observation.gripper")
    assert episode.action_fields == ("action",)
    assert episode.lowdim["observation.gripper"].shape == (4, 1)
    assert episode.lowdim["observation.state"].dtype == np.float64  # list<double>, as stored
    assert episode.lowdim["action"].dtype == np.float32
    assert np.allclose(episode.lowdim["observation.state"][2], [102.0, 102.1, 102.2])
    assert episode.language == {"original": [TASKS[1]]}
    assert episode.task == TASKS[1]
    assert episode.frame_metadata["index"] == [6, 7, 8, 9]
    assert episode.findings == ()
    images = episode.cameras[FRONT].read([3, 0])
    assert [frame_of(image) for image in images] == [3, 0]


def test_refs_are_numbered_named_and_picklable(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "my set!")
    reader, refs = discover(root, tmp_path)
    assert [ref.id for ref in refs] == ["my_set_episode_000000", "my_set_episode_000001"]
    assert [ref.number for ref in refs] == [0, 1]
    assert refs[1].task == TASKS[1]
    assert codes(reader.source_findings) == ["source.given_twice"]
    again = pickle.loads(pickle.dumps(refs[1]))
    assert pickle.loads(pickle.dumps(reader)).read(again).num_frames == 4


def test_an_ancestor_folder_is_searched_and_equal_names_get_different_ids(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("a/run_9", "a/run_10", "b/run_9")]
    for root in roots:
        lerobot_dataset(root, [3], cameras={})
    _, refs = discover(tmp_path)
    assert [ref.id for ref in refs] == [
        "run_9_episode_000000",
        "run_10_episode_000000",
        "run_9-2_episode_000000",
    ]
    assert [ref.number for ref in refs] == [None] * 3
    assert [ref.source for ref in discover(*roots)[1]] == [str(root) for root in roots]


def test_libero_names_are_observation_and_action(tmp_path: Path) -> None:
    def rename(_number: int, columns: Columns) -> None:
        columns["state"] = columns.pop("observation.state")
        columns["actions"] = columns.pop("action")
        columns.pop("observation.gripper")

    features = {
        "image": {"dtype": "image", "shape": [32, 48, 3]},
        "state": {"dtype": "float32", "shape": [3]},
        "actions": {"dtype": "float32", "shape": [2]},
    }
    root = lerobot_dataset(
        tmp_path / "set", cameras={"image": "image"}, info={"features": features}, change=rename
    )
    episode = read(root)
    assert episode.proprioception_fields == ("state",)
    assert episode.action_fields == ("actions",)


def test_requested_keys_replace_the_conventional_ones(tmp_path: Path) -> None:
    episode = read(
        lerobot_dataset(tmp_path / "set", cameras={}),
        observation_keys=["timestamp"],
        action_keys=["action"],
    )
    assert list(episode.lowdim) == ["timestamp", "action"]


def test_rows_are_sorted_by_frame_index_with_their_images(tmp_path: Path) -> None:
    def reverse(_number: int, columns: Columns) -> None:
        for name, values in columns.items():
            columns[name] = values[::-1] if not isinstance(values, pa.Array) else values
        columns["action"] = pa.array([[float(j), 0.0] for j in reversed(range(6))])
        columns["observation.gripper"] = pa.array([0.0] * 6)

    root = lerobot_dataset(tmp_path / "set", [6], cameras={"image": "image"}, change=reverse)
    episode = read(root)
    assert episode.lowdim["action"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    camera = episode.cameras["image"]
    assert [frame_of(image) for image in camera.read([5, 0])] == [5, 0]
    assert (camera.size, len(pickle.loads(pickle.dumps(camera)))) == ((32, 48), 6)


# Defects that are tolerated and reported


def test_a_wrong_template_falls_back_to_the_file_name_with_one_warning(tmp_path: Path) -> None:
    wrong = "data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet"
    root = lerobot_dataset(tmp_path / "set", [3, 3, 3], cameras={}, info={"data_path": wrong})
    reader, refs = discover(root)
    assert codes(reader.source_findings) == ["lerobot.template_mismatch"]
    assert [reader.read(ref).num_frames for ref in refs] == [3, 3, 3]


def test_chunk_index_and_missing_templates_are_supported(tmp_path: Path) -> None:
    template = "data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet"
    changes = {"data_path": template, "video_path": None, "chunks_size": None}
    reader, refs = discover(lerobot_dataset(tmp_path / "set", info=changes))
    assert reader.source_findings == []
    assert list(reader.read(refs[1]).cameras) == [FRONT]


def test_a_camera_without_any_file_and_one_of_depth_are_left_out(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set")
    add_feature(root, "observation.images.ghost", "video", [32, 48, 3])
    reader, refs = discover(root)
    assert codes(reader.source_findings) == ["lerobot.camera_without_files"]
    assert list(reader.read(refs[0]).cameras) == [FRONT]
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[FRONT]["video_info"] = {"video.is_depth_map": True}
    edit_info(root, features=features)
    reader, refs = discover(root)
    episode = reader.read(refs[0])
    assert (dict(episode.cameras), dict(episode.depth)) == ({}, {})
    [part] = [part for part in episode.parts if part.path == FRONT]
    assert (part.role, part.is_loss) == ("left_out", True)
    assert "no number depth_min" in part.note


def test_a_video_may_be_missing_longer_or_of_another_size(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", [6, 6])
    add_feature(root, FRONT, "video", [48, 64, 3])
    write_video(video_file(root, 0), 9)
    video_file(root, 1).unlink()
    camera = read(root, 0).cameras[FRONT]
    assert (len(camera), camera.size) == (6, (32, 48))
    missing = read(root, 1)
    assert dict(missing.cameras) == {}
    assert missing.missing_cameras[FRONT].code == "data.broken"
    assert str(video_file(root, 1)) in missing.missing_cameras[FRONT].message


def test_shifted_timestamps_are_reported_and_do_not_shift_images(tmp_path: Path) -> None:
    def move(_number: int, columns: Columns) -> None:
        columns["timestamp"] = np.arange(len(columns["index"])) / 10 + 0.1

    episode = read(lerobot_dataset(tmp_path / "set", change=move))
    assert codes(episode.findings) == ["lerobot.timestamps"]
    assert frame_of(episode.cameras[FRONT].read([2])[0]) == 2


def test_tasks_that_change_within_an_episode_are_spans_and_a_column_may_hold_the_sentence(
    tmp_path: Path,
) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["task_index"] = np.arange(len(columns["index"])) // 4
        columns["said"] = ["wave"] * len(columns["index"])

    root = lerobot_dataset(tmp_path / "set", cameras={}, change=change)
    episode = read(root)
    assert (episode.language, episode.task) == ({}, TASKS[0])
    assert episode.language_spans == (
        LanguageSpan("original", TASKS[0], 0, 3),
        LanguageSpan("original", TASKS[1], 4, 5),
    )
    assert codes(episode.findings) == ["lerobot.several_tasks", "left_out.data"]
    other = read(root, task_column="said")
    assert (other.language, other.language_spans) == ({"original": ["wave"]}, ())


def test_an_unreadable_task_table_is_replaced_by_the_list_and_several_tasks_need_an_option(
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "table", cameras={})
    (root / "meta/tasks.jsonl").write_text(LFS_POINTER)
    episode = read(root, 1)
    assert episode.task == TASKS[1]
    assert codes(episode.findings) == ["lerobot.tasks_unreadable"]

    root = lerobot_dataset(
        tmp_path / "set", cameras={}, change=lambda _n, columns: columns.pop("task_index")
    )
    tasks = {1: ["task 1", "valid"], 0: ["a", "b"]}  # looked up by number, not by position
    lines = [
        {"episode_index": number, "tasks": tasks[number], "length": length}
        for number, length in [(1, 4), (0, 6)]
    ]
    write_lines(root / "meta/episodes.jsonl", lines)
    assert read(root, 1).task == "task 1"
    assert read_error(root).code == "data.unknown_field"
    assert read(root, task_join=" / ").task == "a / b"


# Errors


def test_a_file_that_the_list_lacks_is_an_error_of_its_episode(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", [3, 4, 5], cameras={})
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text(f"{lines[0]}\n{lines[2]}\n")
    reader, refs = discover(root)
    assert [ref.number for ref in refs] == [0, 1, 2]
    error = read_error(root, 1)
    assert (error.code, error.details["episode"]) == ("data.broken", 1)
    assert reader.survey(refs).frames == 8
    (finding,) = reader.check(refs[1], deep=False)
    assert (finding.code, finding.severity) == ("lerobot.unlisted_episode", "error")


@pytest.mark.parametrize("state", ["missing", "empty", "other files", "empty list"])
def test_a_source_without_episodes_says_what_was_searched(tmp_path: Path, state: str) -> None:
    root = tmp_path / "set"
    if state == "empty list":
        lerobot_dataset(root, [])
    elif state != "missing":
        root.mkdir()
    if state == "other files":
        (root / "readme.txt").write_text("hello")
    error = read_error(root)
    assert (error.code, error.details["path"]) == ("data.no_episodes", str(root))
    assert ("meta/info.json" in error.details.get("searched", ())) == (state != "empty list")


def test_unknown_key_or_an_older_version_is_rejected_and_a_camera_is_no_number(
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        discover(root, observation_keys=["observation.stat"])
    assert caught.value.code == "data.unknown_field"
    assert caught.value.details["field"] == "observation.stat"
    assert "observation.state" in caught.value.hint
    assert read_error(root, action_keys=[FRONT]).code == "data.mismatch"

    edit_info(root, codebase_version="v1.6")
    (root / "meta/episodes.jsonl").unlink()
    (root / "meta/episodes_stats.jsonl").unlink()
    assert read_error(root).code == "data.unsupported"


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("data/{episode}.parquet", "data_path"),
        ("data/{episode_index.__class__}.parquet", "data_path"),
        ("data/{episode_index!r}.parquet", "data_path"),
        ("data/{episode_index:999999999d}.parquet", "data_path"),
        ("../{episode_index}.parquet", "data_path"),
        ("/etc/{episode_index}.parquet", "data_path"),
        ("{video_key[0]}/{episode_index}.mp4", "video_path"),
        ("videos/{", "video_path"),
    ],
)
def test_unsafe_templates_are_rejected(tmp_path: Path, template: str, key: str) -> None:
    error = read_error(lerobot_dataset(tmp_path / "set", [2], info={key: template}))
    assert error.code == "data.broken"
    assert error.details["field"] == key


def test_a_width_is_a_minimum() -> None:
    values = {"episode_index": 1_000_000}
    assert fill_template("{episode_index:06d}.mp4", values, "video_path") == "1000000.mp4"


@pytest.mark.parametrize("fps", [0, -1, "fast", None, True])
def test_fps_must_be_positive(tmp_path: Path, fps: Any) -> None:
    error = read_error(lerobot_dataset(tmp_path / "set", [2], cameras={}, info={"fps": fps}))
    assert (error.code, error.details["field"]) == ("data.broken", "fps")


def test_a_broken_line_of_the_list_is_named(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", cameras={})
    with (root / "meta/episodes.jsonl").open("a") as file:
        file.write("{broken\n")
    error = read_error(root)
    assert (error.code, error.details["line"]) == ("data.broken", 3)


BAD_STATES: list[tuple[Any, str, int | None]] = [
    ([[0.0] * 3] * 4 + [[0.0] * 2] + [[0.0] * 3], "data.broken", 4),
    ([[0.0] * 2] * 6, "data.broken", 0),
    ([[0.0] * 3] * 2 + [None] + [[0.0] * 3] * 3, "data.broken", 2),
    ([[0.0] * 3] * 3 + [[0.0, None, 0.0]] + [[0.0] * 3] * 2, "data.broken", 3),
    (["text"] * 6, "data.broken", None),
    ([["a", "b", "c"]] * 6, "data.broken", None),
    ([[[0.0] * 3] * 2] * 6, "data.broken", None),
]


@pytest.mark.parametrize(("values", "code", "row"), BAD_STATES)
def test_bad_values_name_field_and_row(
    tmp_path: Path, values: Any, code: str, row: int | None
) -> None:
    def replace(_number: int, columns: Columns) -> None:
        columns["observation.state"] = values

    error = read_error(lerobot_dataset(tmp_path / "set", [6], cameras={}, change=replace))
    assert (error.code, error.details["row"]) == (code, row)
    assert error.details["field"] == "observation.state"


# Other forms of image columns


def with_images(root: Path, cells: Any) -> Any:
    def replace(_number: int, columns: Columns) -> None:
        columns["image"] = cells

    lerobot_dataset(root, [len(cells)], cameras={"image": "image"}, change=replace)
    return read(root).cameras["image"]


def test_raw_bytes_and_paths_are_images_and_gray_and_transparent_ones_become_rgb(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "images/two.png").write_bytes(encoded_image(2))
    (root / "four.jpg").write_bytes(encoded_image(4, "JPEG"))
    camera = with_images(root, ["two.png", "four.jpg"])
    assert [frame_of(image) for image in camera.read([0, 1])] == [2, 4]
    camera = with_images(tmp_path / "raw", [encoded_image(7), encoded_image(8)])
    assert [frame_of(image) for image in camera.read([1, 0])] == [8, 7]

    cells: list[bytes] = []
    for mode in ("L", "RGBA", "P"):
        buffer = io.BytesIO()
        Image.new(mode, (4, 3), 0).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    assert with_images(tmp_path / "gray", cells).read([0, 1, 2]).shape == (3, 3, 4, 3)


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ({"bytes": None, "path": "../secret.png"}, "data.unsafe"),
        ({"bytes": None, "path": "/etc/hostname"}, "data.unsafe"),
        ({"bytes": None, "path": "gone.png"}, "data.broken"),
        ({"bytes": b"", "path": ""}, "data.broken"),
        ({"bytes": b"no picture", "path": None}, "data.broken"),
    ],
)
def test_unusable_images_name_column_and_row(
    tmp_path: Path, cell: dict[str, Any], code: str
) -> None:
    good = {"bytes": encoded_image(0), "path": "0.png"}
    camera = with_images(tmp_path / "set", [good, cell])
    with pytest.raises(DataError) as caught:
        camera.read([0, 1])
    assert caught.value.code == code
    assert caught.value.details["field"] == "image"


@pytest.mark.parametrize("number", range(40))
def test_a_changed_byte_of_a_table_is_read_or_refused(tmp_path: Path, number: int) -> None:
    root = lerobot_dataset(tmp_path, (6, 4), version="v3.0", cameras={})
    path = [root / DATA_FILE, root / "meta/tasks.parquet"][number % 2]
    data = bytearray(path.read_bytes())
    data[(number + 1) * len(data) // 42] ^= 0x80
    path.write_bytes(data)
    reader = LeRobotReader(LeRobotConfig())
    with suppress(DataError):
        for ref in reader.discover([root]):
            reader.read(ref)
