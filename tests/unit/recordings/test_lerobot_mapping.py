"""LeRobot: roles of columns and cameras by a mapping, and mappings that are proposed."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.lerobot import TASKS, Columns, lerobot_dataset, write_lines
from vlatool.episode import Array, Episode, LanguageSpan
from vlatool.errors import DataError
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader

FRONT, STATE, MASK = "observation.images.front", "observation.state", "observation.images.mask"
LENGTH = 6


def declare(root: Path, **features: Mapping[str, Any]) -> None:
    """Adds features to info.json; `__` in a name is a dot."""
    path = root / "meta/info.json"
    document = json.loads(path.read_text())
    document["features"] |= {name.replace("__", "."): tree for name, tree in features.items()}
    path.write_text(json.dumps(document))


def column(dtype: str, width: int = 1) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [width], "names": None}


def png(values: Array) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set with texts, subtasks, success, sound and a column of 16-bit images."""

    def change(_number: int, columns: Columns) -> None:
        columns["note"] = ["", "", *["wipe it"] * (LENGTH - 2)]
        columns["subtask_index"] = np.array([0] * 2 + [1] * (LENGTH - 2))
        columns["ok"] = np.arange(LENGTH) == LENGTH - 1
        columns["observation.audio.mic"] = [[0.5] * 300] * LENGTH
        columns[MASK] = [png(np.full((32, 48), frame, np.uint16)) for frame in range(LENGTH)]

    folder = lerobot_dataset(tmp_path / "set", [LENGTH], change=change)
    image = {"dtype": "image", "shape": [32, 48, 1], "names": ["height", "width", "channels"]}
    declare(folder, note=column("string"), subtask_index=column("int64"), ok=column("bool"))
    declare(folder, observation__audio__mic=column("float32", 300), **{MASK: image})
    lines = [{"subtask_index": n, "subtask": text} for n, text in enumerate(["reach", "lift"])]
    write_lines(folder / "meta/subtasks.jsonl", lines)
    return folder


def mapped(root: Path, text: str) -> Episode:
    """The first episode with a mapping."""
    path = root.parent / "mapping.yaml"
    path.write_text(text)
    reader = LeRobotReader(LeRobotConfig(mapping=str(path)))
    ref = next(iter(reader.discover([root])))
    episode = reader.read(ref)
    assert reader.survey([ref]).parts == episode.parts
    return episode


MAPPING = f"""
cameras: {{top: {{path: {FRONT}, bgr: true}}}}
fields: {{state: {STATE}}}
action_fields: [next(state)]
proprioception_fields: [state]
instruction: [note, task_index]
language: {{subtask: subtask_index}}
success: ok
fps: 30
"""


def test_features_have_the_names_and_roles_of_the_mapping(root: Path) -> None:
    episode = mapped(root, MAPPING)
    assert (episode.num_frames, episode.cut_frames, episode.fps) == (LENGTH - 1, 1, 30.0)
    assert (episode.action_fields, episode.proprioception_fields) == (("state_next",), ("state",))
    assert np.array_equal(episode.lowdim["state_next"][:-1], episode.lowdim["state"][1:])
    assert episode.language == {"original": ["wipe it"], "alternative": [TASKS[0]]}
    assert [(span.text, span.first) for span in episode.language_spans] == [
        ("reach", 0),
        ("lift", 2),
    ]
    assert episode.success is True
    red = episode.cameras["top"].read([0])[0, 0, 0]
    assert red[0] < red[2]  # the corner is red as it is stored
    assert episode.frame_metadata["index"] == [*range(LENGTH - 1)]


def test_what_the_mapping_does_not_name_is_left_out_by_name(root: Path) -> None:
    episode = mapped(root, MAPPING)
    left = {part.path: part.note for part in episode.parts if part.role == "left_out"}
    assert {*left} == {"action", "observation.gripper", "observation.audio.mic", MASK}
    assert {*left.values()} == {"not in the mapping"}
    (finding,) = [each for each in episode.findings if each.code.startswith("left_out")]
    assert (finding.severity, "action" in finding.message) == ("warning", True)


def test_the_rest_keeps_its_roles_if_the_mapping_says_so(root: Path) -> None:
    episode = mapped(root, f"cameras: {{top: {{path: {FRONT}}}}}\nrest: assign")
    assert ([*episode.cameras], [*episode.depth]) == (["top"], [MASK])
    assert episode.action_fields == ("action",)
    assert episode.proprioception_fields == (STATE, "observation.gripper")
    assert episode.task == TASKS[0]
    assert episode.language_spans[0] == LanguageSpan("subtask", "reach", 0, 1)
    left = [part.path for part in episode.parts if part.role == "left_out"]
    assert left == ["note", "ok", "observation.audio.mic"]


@pytest.mark.parametrize("role", ["depth", "labels"])
def test_a_column_of_images_is_depth_or_labels(role: str, root: Path) -> None:
    episode = mapped(root, f"fields: {{a: action}}\n{role}: {{front: {MASK}}}")
    images: Any = getattr(episode, role)["front"]
    assert images.read([3])[0, 0, 0] == 3


def test_a_set_without_an_instruction_in_the_mapping_says_so(root: Path) -> None:
    episode = mapped(root, "fields: {a: action}")
    assert episode.task == "set"
    assert episode.findings[0].code == "source.language_fallback"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cameras: {top: {path: observation.images.frnt}}", f"there is {FRONT}"),
        ("fields: {state: observation.stat}", f"there is {STATE}"),
        ("instruction: tasks_index\nfields: {a: action}", "there is task_index, subtask_index"),
        (f"cameras: {{top: {{path: {STATE}}}}}", "holds float32 \\[3\\], which are no images"),
        (f"fields: {{state: {FRONT}}}", "is video, not a column of numbers"),
    ],
)
def test_a_name_that_is_wrong_is_an_error_of_the_set(text: str, problem: str, root: Path) -> None:
    path = root.parent / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        LeRobotReader(LeRobotConfig(mapping=str(path))).discover([root])
    assert caught.value.hint == "name another in the mapping"


def test_labels_in_a_video_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="a video, which alters labels"):
        mapped(root, f"fields: {{a: action}}\nlabels: {{front: {FRONT}}}")


def test_a_camera_without_its_video_is_missing(root: Path) -> None:
    (video,) = root.glob("videos/**/*.mp4")
    video.unlink()
    episode = mapped(root, f"cameras: {{top: {{path: {FRONT}}}}}\nfields: {{a: action}}")
    assert dict(episode.cameras) == {}
    assert episode.missing_cameras["top"].code == "data.broken"


def test_a_mapping_reads_a_set_whose_action_is_no_vector(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["action"] = [[[0.0, 1.0]] * 2] * LENGTH

    root = lerobot_dataset(tmp_path / "set", [LENGTH], cameras={}, change=change)
    declare(root, action={"dtype": "float32", "shape": [2, 2], "names": None})
    episode = mapped(root, f"fields: {{state: {STATE}}}\naction_fields: [next(state)]")
    assert episode.action_fields == ("state_next",)


def test_a_proposed_mapping_reads_the_set_as_it_is_read_without_one(root: Path) -> None:
    text = LeRobotReader.propose(root)
    assert text is not None
    assert "# left out: observation.audio.mic: sound, 300 samples per row" in text
    episode = mapped(root, text)
    reader = LeRobotReader(LeRobotConfig())
    plain = reader.read(next(iter(reader.discover([root]))))
    assert {*episode.lowdim} == {*plain.lowdim}
    for name, values in plain.lowdim.items():
        assert np.array_equal(values, episode.lowdim[name])
    assert [*episode.cameras] == [*plain.cameras]
    keys = ("task", "fps", "num_frames", "language", "language_spans", "action_fields", "extras")
    for key in (*keys, "proprioception_fields", "frame_metadata"):
        assert getattr(episode, key) == getattr(plain, key), key


def test_no_mapping_is_proposed_for_other_folders(tmp_path: Path) -> None:
    (tmp_path / "meta_data").mkdir()
    assert LeRobotReader.propose(tmp_path) is None
