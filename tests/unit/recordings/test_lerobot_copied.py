"""The sink `lerobot` keeps what LeRobot sets store besides rows and cameras."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.builders.errors import fails
from tests.builders.lerobot import Columns, lerobot_dataset
from tests.builders.lerobot_shared import edit_list
from vlatool.config.resolve import config_of
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess


def convert(
    sources: Sequence[Path], output: Path, keys: Mapping[str, Any] | None = None, **sink: Any
) -> PreprocessResult:
    tree = {"format": "lerobot", "sources": [*map(str, sources)], "output": str(output)}
    tree |= {"workers": 1, "sink": {"type": "lerobot", **sink}, **(keys or {})}
    return preprocess(config_of(PreprocessConfig, tree))


def with_subtasks(root: Path, numbers: Sequence[int], texts: Mapping[int, str]) -> Path:
    def change(_number: int, columns: Columns) -> None:
        columns["subtask_index"] = np.array(numbers)

    lerobot_dataset(root, [len(numbers)], change=change, version="v3.0")
    path = root / "meta/info.json"
    document = json.loads(path.read_text())
    document["features"]["subtask_index"] = {"dtype": "int64", "shape": [1], "names": None}
    path.write_text(json.dumps(document))
    table = {"subtask_index": [*texts], "subtask": [*texts.values()]}
    pq.write_table(pa.table(table), root / "meta/subtasks.parquet")
    return root


def subtasks_of(root: Path) -> list[str]:
    """Text of each row by the written table; empty where it has none."""
    path = root / "meta/subtasks.parquet"
    if path.exists():
        lines = pq.read_table(path).to_pylist()
    else:
        lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    texts = {line["subtask_index"]: line["subtask"] for line in lines}
    files = sorted(root.glob("data/*/*.parquet"))
    numbers = [n for file in files for n in pq.read_table(file)["subtask_index"].to_pylist()]
    return [texts.get(number, "") for number in numbers]


def test_the_table_of_one_set_is_kept_as_it_is(tmp_path: Path) -> None:
    root = with_subtasks(tmp_path / "a", [3, 3, -1, 0], {3: "reach", 0: "lift"})
    convert([root], tmp_path / "out")
    table = pq.read_table(tmp_path / "out/meta/subtasks.parquet").to_pydict()
    assert table == {"subtask_index": [3, 0], "subtask": ["reach", "lift"]}
    assert subtasks_of(tmp_path / "out") == ["reach", "reach", "", "lift"]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_rows_of_several_sets_keep_their_texts(version: str, tmp_path: Path) -> None:
    one = with_subtasks(tmp_path / "a", [0, 1, -1], {0: "reach", 1: "lift"})
    two = with_subtasks(tmp_path / "b", [0, 1, 1], {0: "lift", 1: "put"})
    convert([one, two], tmp_path / "out", layout_version=version)
    assert subtasks_of(tmp_path / "out") == ["reach", "lift", "", "lift", "put", "put"]


def test_a_set_without_the_table_of_another_cannot_be_merged(tmp_path: Path) -> None:
    one = with_subtasks(tmp_path / "a", [0, 0, 0], {0: "reach"})
    two = with_subtasks(tmp_path / "b", [0, 0, 0], {0: "reach"})
    (two / "meta/subtasks.parquet").unlink()
    with fails("data.mismatch") as caught:
        convert([one, two], tmp_path / "out")
    assert "no texts for subtask_index" in caught.value.message


MAPPING = """
cameras: {top: {path: observation.images.front}}
fields: {arm: observation.state, command: action}
action_fields: [command]
proprioception_fields: [arm]
instruction: task_index
"""


def features_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "meta/info.json").read_text())["features"]


def test_a_mapping_is_written_with_its_names_and_copies_clips(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (4, 3))
    (tmp_path / "m.yaml").write_text(MAPPING)
    result = convert([root], tmp_path / "out", {"mapping": str(tmp_path / "m.yaml")})
    assert (result.cameras, result.amounts["copied_clips"]) == (("top",), 2)
    assert [part["path"] for part in result.left_out] == ["observation.gripper"]
    names = [name for name in features_of(tmp_path / "out") if "index" not in name]
    assert names == ["observation.state", "action", "observation.images.top", "timestamp"]
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert [state[0] for state in rows["observation.state"].to_pylist()] == [
        0,
        1,
        2,
        3,
        100,
        101,
        102,
    ]
    assert LeRobotReader(LeRobotConfig()).discover([tmp_path / "out"])


def test_new_names_are_written(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (4, 3))
    convert([root], tmp_path / "out", {"rename": {"cameras": {"top": "observation.images.front"}}})
    assert "observation.images.top" in features_of(tmp_path / "out")


def test_a_field_that_would_hide_a_column_of_others_is_refused(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (4, 3))
    text = MAPPING.replace(
        "arm: observation.state,", "arm: observation.state, action: observation.gripper,"
    )
    (tmp_path / "m.yaml").write_text(text)
    with fails("data.broken"):
        convert([root], tmp_path / "out", {"mapping": str(tmp_path / "m.yaml")})


def test_depth_of_other_codes_cannot_be_merged(tmp_path: Path) -> None:
    roots: list[Path] = []
    for farthest in (5.0, 10.0):
        root = lerobot_dataset(tmp_path / f"to_{farthest:.0f}", [3])
        path = root / "meta/info.json"
        document = json.loads(path.read_text())
        info = {"is_depth_map": True, "video.depth_min": 0.1, "video.depth_max": farthest}
        depth = {"dtype": "video", "shape": [32, 48, 1], "info": info}
        document["features"]["observation.images.depth"] = depth
        path.write_text(json.dumps(document))
        roots.append(root)
    with fails("data.mismatch") as caught:
        convert(roots, tmp_path / "out")
    assert "depth_max 10.0, not 5.0" in caught.value.message


def test_rows_of_another_file_than_the_listed_one_are_copied(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (6, 4, 5), version="v3.0")
    edit_list(root, "data/file_index", 2, 0)
    convert([root], tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    starts = [state[0] for state in rows["observation.state"].to_pylist()]
    assert starts == [*range(6), *range(100, 104), *range(200, 205)]


@pytest.mark.parametrize(("name", "role"), [("front_depth", "depth"), ("front_mask", "labels")])
def test_columns_of_depth_and_labels_are_copied(name: str, role: str, tmp_path: Path) -> None:
    feature = f"observation.images.{name}"
    values = np.full((32, 48), 7, np.uint16 if role == "depth" else np.uint8)

    def change(_number: int, columns: Columns) -> None:
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG")
        columns[feature] = [{"bytes": stream.getvalue(), "path": None}] * 3

    root = lerobot_dataset(tmp_path / "set", [3], change=change)
    path = root / "meta/info.json"
    document = json.loads(path.read_text())
    document["features"][feature] = {"dtype": "image", "shape": [32, 48, 1], "names": None}
    path.write_text(json.dumps(document))
    result = convert([root], tmp_path / "out")
    assert result.left_out == []
    reader = LeRobotReader(LeRobotConfig())
    [ref] = reader.discover([tmp_path / "out"])
    [images] = getattr(reader.read(ref), role).values()
    assert np.array_equal(images.read([2])[0], values)


def test_depth_of_another_format_is_named_as_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["action"] = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        file["observations/qpos"] = np.random.default_rng(1).normal(size=(4, 3))
        file["observations/images/front"] = np.zeros((4, 32, 48, 3), np.uint8)
        file["observations/front_depth"] = np.full((4, 32, 48), 900, np.uint16)
    tree = {"format": "hdf5", "sources": [str(tmp_path / "a.hdf5")], "fps": 10, "workers": 1}
    tree |= {"output": str(tmp_path / "out"), "sink": {"type": "lerobot"}}
    result = preprocess(config_of(PreprocessConfig, tree))
    [part] = [part for part in result.left_out if "depth" in part["path"]]
    assert part["reason"] == "--sink lerobot does not store depth"
