"""LeRobot data sets converted to another version: nothing is lost, nothing is shifted.

Source: formats/lerobot-writing 1, 2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.builders.errors import fails
from tests.builders.lerobot import Columns, frame_of, lerobot_dataset, write_video
from vlatool.config.resolve import config_of
from vlatool.errors import PartialFailure
from vlatool.plugins import FORMATS
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

CAMERA = "observation.images.front"
DEPTH = "observation.images.depth"
LENGTHS = (6, 4, 5)


def convert(sources: Sequence[Path], output: Path, /, **options: Any) -> PreprocessResult:
    """Result of a conversion; `sink` has keys of the sink."""
    sink = {"type": "lerobot", **options.pop("sink", {})}
    tree = {"format": "lerobot", "sources": [*map(str, sources)], "output": str(output)}
    tree |= {"workers": 1, "sink": sink, **options}
    return preprocess(config_of(PreprocessConfig, tree))


def rows_of(root: Path) -> pa.Table:
    """All rows of a data set, in the order of its files."""
    files = sorted(root.glob("data/*/*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in files])


def info_of(root: Path) -> dict[str, Any]:
    """Content of info.json."""
    return json.loads((root / "meta/info.json").read_text())


def episodes_of(root: Path) -> list[Any]:
    """Episodes of a data set."""
    reader = FORMATS.get("lerobot")(FORMATS.get("lerobot").Config())
    return [reader.read(ref) for ref in reader.discover([root])]


def frames_of(root: Path) -> list[list[bytes]]:
    """Pixels of every image of each episode."""
    return [
        [image.tobytes() for image in episode.cameras[CAMERA].read(range(episode.num_frames))]
        for episode in episodes_of(root)
    ]


def add_columns(number: int, columns: Columns) -> None:
    """Adds a text, a matrix, booleans, an annotation and a second task."""
    length = len(columns["frame_index"])
    columns["note"] = [f"row {row} of {number}" for row in range(length)]
    columns["force"] = [[[row, 1.5], [number, 2.5]] for row in range(length)]
    columns["next.done"] = np.arange(length) == length - 1
    columns["annotation.human.validity"] = np.ones(length, np.int64)
    columns["undeclared"] = np.arange(length) * 2
    columns["task_index"] = np.where(np.arange(length) < 2, 0, 1)


DECLARED = {
    "note": {"dtype": "string", "shape": [1], "names": None},
    "force": {"dtype": "float64", "shape": [2, 2], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "annotation.human.validity": {"dtype": "int64", "shape": [1], "names": None},
}


def full_set(root: Path, **options: Any) -> Path:
    """A data set with columns that a policy does not see."""
    lerobot_dataset(root, LENGTHS, change=add_columns, **options)
    info = info_of(root)
    info["features"] |= DECLARED
    info["features"]["action"]["names"] = ["left", "right"]
    info |= {"robot_type": "arm", "license": "apache-2.0"}
    (root / "meta/info.json").write_text(json.dumps(info))
    groups = {"state": {"arm": {"start": 0, "end": 3}}, "action": {"hand": {"start": 0, "end": 2}}}
    (root / "meta/modality.json").write_text(json.dumps(groups))
    return root


def test_nothing_is_lost_from_v2_to_v3_and_back(tmp_path: Path) -> None:
    source = full_set(tmp_path / "v2", version="v2.0")
    result = convert([source], tmp_path / "v3")
    assert (result.status, result.amounts["copied_clips"]) == ("written", 3)
    convert([tmp_path / "v3"], tmp_path / "back", sink={"layout_version": "v2.1"})
    before = rows_of(source)
    for output in (tmp_path / "v3", tmp_path / "back"):
        after, info = rows_of(output), info_of(output)
        assert {*after.column_names} == {*before.column_names}
        for name in before.column_names:
            assert after[name].to_pylist() == before[name].to_pylist(), name
        assert {**info["features"], **DECLARED} == info["features"]
        assert info["features"]["action"]["names"] == ["left", "right"]
        assert (info["robot_type"], info["license"]) == ("arm", "apache-2.0")
        assert "undeclared" in info["features"]
        assert json.loads((output / "meta/modality.json").read_text())["action"]
        assert frames_of(output) == frames_of(source)


def test_a_broken_episode_leaves_no_gap_and_is_repaired(tmp_path: Path) -> None:
    source = lerobot_dataset(tmp_path / "v2", LENGTHS)
    (video,) = source.glob("videos/**/episode_000001.mp4")
    video.unlink()
    with pytest.raises(PartialFailure):
        convert([source], tmp_path / "v3", on_error="skip")
    assert [*map(len, frames_of(tmp_path / "v3"))] == [6, 5]
    assert rows_of(tmp_path / "v3")["index"].to_pylist() == [*range(11)]
    write_video(video, LENGTHS[1])
    convert([source], tmp_path / "v3", on_error="skip")
    convert([source], tmp_path / "whole")
    assert rows_of(tmp_path / "v3").equals(rows_of(tmp_path / "whole"))
    assert frames_of(tmp_path / "v3") == frames_of(tmp_path / "whole")
    assert not (tmp_path / "v3/episodes").exists()


def test_tasks_of_merged_sets_are_joined_by_sentence(tmp_path: Path) -> None:
    def swap(number: int, columns: Columns) -> None:
        add_columns(number, columns)
        columns["task_index"] = np.full(len(columns["note"]), 0)

    full_set(tmp_path / "a")
    other = full_set(tmp_path / "b")
    lines = [{"task_index": 0, "task": "wave"}, {"task_index": 1, "task": "valid"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (other / "meta/tasks.jsonl").write_text(text)
    convert([tmp_path / "a", other], tmp_path / "out")
    tasks = pq.read_table(tmp_path / "out/meta/tasks.parquet")["task"].to_pylist()
    assert tasks[2:] == ["wave", "valid"]
    rows = rows_of(tmp_path / "out")
    first, second = sum(LENGTHS), rows.num_rows
    assert second == 2 * first
    assert {*rows["annotation.human.validity"].to_pylist()[first:]} == {3}
    named = [tasks[index] for index in rows["task_index"].to_pylist()[first : first + 6]]
    assert named == ["wave", "wave", *["valid"] * 4]


@pytest.mark.parametrize("name", ["q\npos", "q" * 250])
def test_a_name_that_no_feature_may_have_is_refused_before_work(tmp_path: Path, name: str) -> None:
    path = tmp_path / "source/demo.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["observations/images/front"] = np.zeros((4, 16, 16, 3), np.uint8)
        file["action"] = np.zeros((4, 2), np.float32)
        file[f"observations/{name}"] = np.ones((4, 3), np.float32)
    with fails("data.bad_name") as caught:
        convert([path.parent], tmp_path / "out", format="hdf5", fps=10)
    assert "--rename 'fields.NEW=" in caught.value.hint
    assert not (tmp_path / "out").exists()


def _several(features: Any) -> None:
    features["action"]["names"] = ["x", "y"]
    del features["observation.gripper"]
    features["force"] = {"dtype": "float32", "shape": [1], "names": None}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda features: features["observation.state"].update(shape=[4]), ["observation.state"]),
        (lambda features: features["action"].update(names=["x", "y"]), ["action"]),
        (lambda features: features[CAMERA].update(shape=[64, 64, 3]), [CAMERA]),
        (_several, ["action", "force", "observation.gripper"]),
        (None, ["fps"]),
    ],
    ids=["width", "names", "size", "several", "rate"],
)
def test_features_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[Any], object] | None, named: list[str]
) -> None:
    roots = [lerobot_dataset(tmp_path / name, (3,)) for name in ("a", "b")]
    for root in roots:
        info = info_of(root)
        info["features"]["action"]["names"] = ["left", "right"]
        if root is roots[1]:
            change(info["features"]) if change else info.update(fps=20)
        (root / "meta/info.json").write_text(json.dumps(info))
    with fails("data.mismatch") as caught:
        convert(roots, tmp_path / "out")
    assert sorted(caught.value.details["fields"]) == named
    assert all(name in caught.value.message for name in (*named, *map(str, roots)))
    assert not (tmp_path / "out").exists()


def test_depth_is_copied_and_not_read_as_a_camera(tmp_path: Path) -> None:
    cameras = {CAMERA: "video", DEPTH: "video"}
    source = lerobot_dataset(tmp_path / "v2", (4, 3), cameras=cameras)
    info = info_of(source)
    info["features"][DEPTH]["info"] = {"video.is_depth_map": True, "depth_unit": "mm"}
    (source / "meta/info.json").write_text(json.dumps(info))
    convert([source], tmp_path / "v3")
    declared = info_of(tmp_path / "v3")["features"][DEPTH]["info"]
    assert (declared["video.is_depth_map"], declared["depth_unit"]) == (True, "mm")
    assert [*episodes_of(tmp_path / "v3")[0].cameras] == [CAMERA]
    assert len([*(tmp_path / "v3/videos" / DEPTH).rglob("*.mp4")]) == 1


@pytest.mark.parametrize(
    ("kind", "sink", "is_equal"),
    [
        ("image", {}, True),
        ("image", {"use_videos": True}, False),
        ("video", {"use_videos": False}, True),
        ("video", {"copy_videos": False}, False),
    ],
    ids=["images stay", "images to video", "video to images", "encoded anew"],
)
def test_images_keep_their_pixels_unless_they_are_encoded(
    tmp_path: Path, kind: str, sink: Mapping[str, Any], is_equal: bool
) -> None:
    source = lerobot_dataset(tmp_path / "v2", (5, 3), cameras={CAMERA: kind})
    convert([source], tmp_path / "v3", sink=sink)
    assert (frames_of(tmp_path / "v3") == frames_of(source)) == is_equal
    for episode in episodes_of(tmp_path / "v3"):
        images = episode.cameras[CAMERA].read(range(episode.num_frames))
        assert [frame_of(image) for image in images] == [*range(episode.num_frames)]


def test_files_roll_over_and_episodes_stay_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def add_text(_number: int, columns: Columns) -> None:
        columns["note"] = [rng.bytes(400_000).hex() for _ in columns["frame_index"]]

    source = lerobot_dataset(tmp_path / "v2", (1, 1, 1), change=add_text)
    convert([source], tmp_path / "v3", sink={"data_files_size_in_mb": 1, "chunks_size": 2})
    files = [path.relative_to(tmp_path / "v3").as_posix() for path in tmp_path.glob("v3/data/*/*")]
    assert sorted(files) == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        "data/chunk-001/file-000.parquet",
    ]
    assert rows_of(tmp_path / "v3").num_rows == 3
    assert len(episodes_of(tmp_path / "v3")) == 3
