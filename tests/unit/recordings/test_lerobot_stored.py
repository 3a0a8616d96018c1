"""LeRobot: the role of each stored thing, depth, texts of numbers, sets that were put together."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.builders.lerobot import Columns, lerobot_dataset, write_lines
from tests.builders.lerobot_shared import edit_list, read_list, write_list
from tests.builders.web_server import web_server
from vlatool.episode import Array, Episode, LanguageSpan
from vlatool.errors import DataError
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.depth import code_millimeters
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.storage.uri import location

FRONT, DEPTH = "observation.images.front", "observation.images.front_depth"
QUANTIZER = {"depth_min": 0.01, "depth_max": 10.0, "shift": 3.5, "use_log": True}


def declare(root: Path, **features: Mapping[str, Any]) -> None:
    """Adds features to info.json; `__` in a name is a dot."""
    path = root / "meta/info.json"
    document = json.loads(path.read_text())
    named = {name.replace("__", "."): dict(tree) for name, tree in features.items()}
    document["features"] |= named
    path.write_text(json.dumps(document))


def number(width: int = 1, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [width], "names": None}


def episodes(root: Path, **config: Any) -> list[Episode]:
    reader = LeRobotReader(LeRobotConfig(**config))
    return [reader.read(ref) for ref in reader.discover([root])]


def source_findings(root: Path) -> list[tuple[str, str]]:
    """(code, message) of the findings on the set."""
    reader = LeRobotReader(LeRobotConfig())
    list(reader.discover([root]))
    return [(finding.code, finding.message) for finding in reader.source_findings]


def roles(episode: Episode) -> dict[str, str]:
    return {part.path: part.role for part in episode.parts}


def codes_of(episode: Episode) -> list[str]:
    return [finding.code for finding in episode.findings]


# Rows of v3.0 that are not where the list of episodes says


def shared(root: Path, lengths: Sequence[int] = (6, 4, 5, 7), **options: Any) -> Path:
    return lerobot_dataset(root / "set", lengths, version="v3.0", **{"cameras": {}, **options})


@pytest.mark.parametrize("said", [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
def test_rows_are_found_in_files_before_and_after_the_listed_one(
    said: list[int], tmp_path: Path
) -> None:
    root = shared(tmp_path)
    for episode, file in enumerate(said):
        edit_list(root, "data/file_index", episode, file)
    read = episodes(root)
    starts = [episode.lowdim["observation.state"][0, 0] for episode in read]
    assert (starts, [episode.num_frames for episode in read]) == ([0, 100, 200, 300], [6, 4, 5, 7])
    elsewhere = [index for index, file in enumerate(said) if file != index // 2]
    found = [index for index, each in enumerate(read) if "lerobot.rows_elsewhere" in codes_of(each)]
    assert found == elsewhere


def test_rows_two_files_away_are_an_error(tmp_path: Path) -> None:
    root = shared(tmp_path, (6, 4, 5, 7, 4, 4))
    edit_list(root, "data/file_index", 5, 0)
    with pytest.raises(DataError, match="no rows of episode 5") as caught:
        episodes(root)
    assert caught.value.details["finding"] == "episode_index"


def test_rows_in_no_file_are_an_error_that_asks_for_no_download(tmp_path: Path) -> None:
    root = shared(tmp_path)
    columns = {name: [*values, values[-1]] for name, values in read_list(root).items()}
    columns["episode_index"][-1] = 9
    write_list(root, columns)
    with pytest.raises(
        DataError, match="no rows of episode 9, and neither have the files"
    ) as caught:
        episodes(root)
    assert "download" not in (caught.value.hint or "")


def test_rows_are_found_where_files_cannot_be_listed(tmp_path: Path) -> None:
    root = shared(tmp_path)
    edit_list(root, "data/file_index", 2, 0)
    with web_server(tmp_path) as server:
        read = episodes(location(f"{server.endpoint}/set"))
    assert read[2].lowdim["observation.state"][:, 0].tolist() == [200, 201, 202, 203, 204]


# Texts


def write_subtasks(path: Path, texts: Sequence[str]) -> None:
    numbers = list(range(len(texts)))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"subtask_index": numbers, "__index_level_0__": [*texts]}), path)
    else:
        write_lines(path, [{"subtask_index": n, "subtask": texts[n]} for n in numbers])


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_numbers_with_a_table_are_texts_and_frames_without_one_are_silent(
    suffix: str, tmp_path: Path
) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["subtask_index"] = np.array([0, 0, -1, 1, 1, -1])

    root = lerobot_dataset(tmp_path / "set", [6], cameras={}, change=change)
    declare(root, subtask_index=number(dtype="int64"))
    write_subtasks(root / f"meta/subtasks.{suffix}", ["reach", "lift"])
    [episode] = episodes(root)
    assert episode.language_spans == (
        LanguageSpan("subtask", "reach", 0, 1),
        LanguageSpan("subtask", "lift", 3, 4),
    )
    assert roles(episode)["subtask_index"] == "language"


def test_one_text_of_some_frames_does_not_hold_for_the_others(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["subtask_index"] = np.array([-1, 0, 0, -1])

    root = lerobot_dataset(tmp_path / "set", [4], cameras={}, change=change)
    write_subtasks(root / "meta/subtasks.jsonl", ["the box is open"])
    declare(root, subtask_index=number(dtype="int64"))
    [episode] = episodes(root)
    assert episode.language_spans == (LanguageSpan("subtask", "the box is open", 1, 2),)


def test_a_number_that_its_table_lacks_is_reported(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["subtask_index"] = np.array([0, 7])

    root = lerobot_dataset(tmp_path / "set", [2], cameras={}, change=change)
    declare(root, subtask_index=number(dtype="int64"))
    write_subtasks(root / "meta/subtasks.jsonl", ["reach"])
    [finding] = episodes(root)[0].findings
    assert finding.code == "lerobot.bad_language"
    assert "subtask_index 7 is not in" in finding.message


def test_a_text_column_is_language_by_its_name_or_left_out_by_name(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["observation.subtask"] = ["reach", "reach", "lift"]
        columns["observation.note"] = ["free", "free", "contact"]
        columns["language_instruction"] = ["put it in"] * 3

    root = lerobot_dataset(tmp_path / "set", [3], cameras={}, change=change)
    text = {"dtype": "string", "shape": [1], "names": None}
    declare(root, observation__subtask=text, observation__note=text, language_instruction=text)
    [episode] = episodes(root)
    assert [span.text for span in episode.language_spans] == ["reach", "lift"]
    assert episode.language["alternative"] == ["put it in"]
    assert roles(episode)["observation.note"] == "left_out"
    [finding] = episode.findings
    assert (finding.code, "observation.note" in finding.message) == ("left_out.wanted", True)


def test_a_text_column_that_repeats_the_task_is_the_instruction(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["task"] = ["put the ball in the box"] * 3

    root = lerobot_dataset(tmp_path / "set", [3], cameras={}, change=change)
    declare(root, task={"dtype": "string", "shape": [1], "names": None})
    [episode] = episodes(root)
    assert (roles(episode)["task"], codes_of(episode)) == ("language", [])
    assert episode.language == {"original": ["put the ball in the box"]}


def test_an_annotation_is_the_instruction_a_label_or_left_out(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        frames = len(columns["index"])
        columns["annotation.human.task_description"] = np.zeros(frames, np.int64)
        columns["annotation.human.validity"] = np.full(frames, 2)
        columns["annotation.human.coarse_action"] = np.full(frames, 1)

    root = lerobot_dataset(tmp_path / "set", [3], cameras={}, change=change)
    tasks = ["put the ball in the box", "put it", "valid"]
    write_lines(root / "meta/tasks.jsonl", [{"task_index": n, "task": tasks[n]} for n in range(3)])
    names = ("task_description", "validity", "coarse_action")
    declare(root, **{f"annotation__human__{name}": number(dtype="int64") for name in names})
    parts = {part.path.rpartition(".")[2]: part for part in episodes(root)[0].parts}
    assert [parts[name].role for name in names] == ["language", "left_out", "left_out"]
    assert [parts[name].is_loss for name in names] == [False, False, True]


# Roles


def test_each_feature_and_column_has_one_role(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["next.done"] = np.array([False, False, True])
        columns["next.success"] = np.array([False, False, True])
        columns["next.reward"] = np.array([0.0, 0.0, 1.0])
        columns["further"] = np.zeros(3)

    root = lerobot_dataset(tmp_path / "set", [3], change=change)
    for name in ("next__done", "next__success"):
        declare(root, **{name: number(dtype="bool")})
    declare(root, next__reward=number())
    [episode] = episodes(root)
    assert roles(episode) == {
        FRONT: "camera",
        "observation.state": "field",
        "observation.gripper": "field",
        "action": "field",
        **dict.fromkeys(("timestamp", "frame_index", "episode_index", "index"), "time"),
        "task_index": "language",
        "next.done": "time",
        "next.success": "success",
        "next.reward": "left_out",
        "further": "left_out",
    }
    assert episode.success is True
    reader = LeRobotReader(LeRobotConfig())
    assert reader.survey(list(reader.discover([root]))).parts == episode.parts


def test_a_vector_of_more_than_256_numbers_is_observed_only_if_asked_for(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["observation.audio.mic"] = [[0.5] * 300] * 3
        columns["observation.tactile"] = [[0.5] * 256] * 3

    root = lerobot_dataset(tmp_path / "set", [3], cameras={}, change=change)
    declare(root, observation__audio__mic=number(300), observation__tactile=number(256))
    [episode] = episodes(root)
    assert "observation.tactile" in episode.proprioception_fields
    assert "observation.audio.mic" not in episode.lowdim
    [part] = [part for part in episode.parts if part.path == "observation.audio.mic"]
    assert (
        "sound, 300 samples per row; to use it, add --observation-keys observation.audio.mic"
        in part.note
    )
    [asked] = episodes(root, observation_keys=["observation.audio.mic"])
    assert asked.lowdim["observation.audio.mic"].shape == (3, 300)


# Depth


def write_codes(path: Path, codes: Array, pixels: str = "gray12le") -> None:
    """Writes codes [F, H, W] as a lossless HEVC video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"x265-params": "lossless=1:log-level=none"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *codes.shape[1:3], pixels
        for image in codes:
            kind = "gray12le" if image.dtype == np.uint16 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=kind)))
        container.mux(stream.encode())


def quantized(meters: Array, quantizer: Mapping[str, Any]) -> Array:
    """12-bit codes of depth in meters, as the library makes them."""
    low, high, shift = (quantizer[key] for key in ("depth_min", "depth_max", "shift"))
    if quantizer["use_log"]:
        span = np.log(high + shift) - np.log(low + shift)
        shares = (np.log(meters + shift) - np.log(low + shift)) / span
    else:
        shares = (meters - low) / (high - low)
    return np.rint(np.clip(shares, 0, 1) * 4095).astype(np.uint16)


def with_depth(root: Path, codes: Array, info: Mapping[str, Any], **options: Any) -> Path:
    """A set of one episode with a camera and a depth video."""
    lerobot_dataset(root / "set", [len(codes)])
    write_codes(root / f"set/videos/chunk-000/{DEPTH}/episode_000000.mp4", codes, **options)
    feature = {"dtype": "video", "shape": [*codes.shape[1:3], 1], "info": dict(info)}
    declare(root / "set", **{DEPTH: {**feature, "names": ["height", "width", "channels"]}})
    return root / "set"


@pytest.mark.parametrize("use_log", [True, False])
@pytest.mark.parametrize("prefix", ["video.", ""])
def test_codes_of_a_depth_video_are_millimeters(prefix: str, use_log: bool, tmp_path: Path) -> None:
    meters = np.linspace(0.3, 9.0, 12 * 32 * 48).reshape(12, 32, 48)
    meters[:, 0, 0] = 0  # not measured
    quantizer = {**QUANTIZER, "use_log": use_log}
    info = {"is_depth_map": True, **{f"{prefix}{key}": quantizer[key] for key in quantizer}}
    [episode] = episodes(with_depth(tmp_path, quantized(meters, quantizer), info))
    assert list(episode.cameras) == list(episode.depth) == [FRONT]
    images = episode.depth[FRONT].read([5, 0, 11, 3])
    assert images.dtype == np.uint16
    assert np.abs(images - 1000 * meters[[5, 0, 11, 3]]).max() <= 3  # a step is up to 5 mm
    assert not images[:, 0, 0].any()
    assert roles(episode)[DEPTH] == "depth"


@pytest.mark.parametrize(
    ("change", "pixels", "reason"),
    [
        ({"video.shift": None}, "gray12le", "no number shift"),
        ({"video.depth_max": 0.001}, "gray12le", "depth_min 0.01 to depth_max 0.001"),
        ({"video.depth_max": 100.0}, "gray12le", "more than 16 bits"),
        ({}, "yuv420p", "its video is yuv420p"),
    ],
)
def test_depth_that_cannot_be_decoded_for_sure_is_left_out_with_the_reason(
    change: Mapping[str, Any], pixels: str, reason: str, tmp_path: Path
) -> None:
    info = {"is_depth_map": True, **{f"video.{key}": QUANTIZER[key] for key in QUANTIZER}, **change}
    shape, dtype = ((4, 32, 48), np.uint16) if pixels == "gray12le" else ((4, 32, 48, 3), np.uint8)
    [episode] = episodes(with_depth(tmp_path, np.full(shape, 99, dtype), info, pixels=pixels))
    assert (dict(episode.depth), list(episode.cameras)) == ({}, [FRONT])
    [finding] = episode.findings
    assert (finding.code, finding.severity) == ("left_out.wanted", "warning")
    assert DEPTH in finding.message
    assert reason in finding.message


def test_code_millimeters_are_the_ends_at_the_ends() -> None:
    millimeters = code_millimeters(QUANTIZER)
    assert (millimeters[0], millimeters[1], millimeters[-1]) == (0, 11, 10_000)


@pytest.mark.parametrize(
    ("dtype", "kind", "unit", "expected"),
    [
        (np.float32, "TIFF", None, 1250),
        (np.uint16, "PNG", None, 1250),
        (np.uint16, "PNG", "mm", 1250),
        (np.float32, "TIFF", "mm", 1),
    ],
)
def test_depth_images_of_the_table_are_millimeters(
    dtype: Any, kind: str, unit: str | None, expected: int, tmp_path: Path
) -> None:
    value = 1.25 if dtype == np.float32 else 1250
    stream = io.BytesIO()
    Image.fromarray(np.full((24, 32), value, dtype)).save(stream, kind)

    def change(_number: int, columns: Columns) -> None:
        columns[DEPTH] = [{"bytes": stream.getvalue(), "path": None}] * 3

    root = lerobot_dataset(tmp_path / "set", [3], change=change)
    info = {"is_depth_map": True} | ({"depth_unit": unit} if unit else {})
    declare(root, **{DEPTH: {"dtype": "image", "shape": [24, 32, 1], "info": info}})
    [episode] = episodes(root)
    images = episode.depth[FRONT].read([2])
    assert (images.shape, images.dtype) == ((1, 24, 32), np.uint16)
    assert {*images.ravel().tolist()} == {expected}


def with_images(root: Path, name: str, values: Array, kind: str = "PNG") -> Path:
    """A set with a camera, and a column of images that info.json says nothing about."""

    def change(_number: int, columns: Columns) -> None:
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, kind)
        columns[name] = [{"bytes": stream.getvalue(), "path": None}] * len(columns["index"])

    folder = lerobot_dataset(root / "set", [3], change=change)
    declare(folder, **{name: {"dtype": "image", "shape": [24, 32, 1], "names": None}})
    return folder


@pytest.mark.parametrize("name", [DEPTH, "observation.images.front_other"])
def test_images_of_16_bits_are_depth_without_a_word_in_the_metadata(
    name: str, tmp_path: Path
) -> None:
    [episode] = episodes(with_images(tmp_path, name, np.full((24, 32), 1250, np.uint16)))
    assert [*episode.cameras] == [FRONT]
    [images] = episode.depth.values()
    assert {*images.read([1]).ravel().tolist()} == {1250}
    assert roles(episode)[name] == "depth"


@pytest.mark.parametrize("name", ["mask", "seg", "label"])
def test_images_of_8_bits_with_such_a_name_are_labels(name: str, tmp_path: Path) -> None:
    path = f"observation.images.front_{name}"
    [episode] = episodes(with_images(tmp_path, path, np.full((24, 32), 7, np.uint8)))
    assert ([*episode.cameras], [*episode.depth]) == ([FRONT], [])
    [images] = episode.labels.values()
    assert {*images.read([1]).ravel().tolist()} == {7}
    assert roles(episode)[path] == "labels"


@pytest.mark.parametrize(
    ("name", "kind"), [("observation.images.gray", "PNG"), ("observation.images.mask", "JPEG")]
)
def test_other_gray_images_are_a_camera(name: str, kind: str, tmp_path: Path) -> None:
    root = with_images(tmp_path, name, np.full((24, 32), 7, np.uint8), kind)
    [episode] = episodes(root)
    assert {*episode.cameras} == {FRONT, name}
    assert roles(episode)[name] == "camera"


# The list of episodes


def with_listed(root: Path, version: str, listed: Mapping[str, Any], **options: Any) -> Path:
    """A set of one episode of which the list of episodes says more."""
    folder = lerobot_dataset(root / "set", [3], cameras={}, version=version, **options)
    if version == "v3.0":
        write_list(folder, {**read_list(folder), **{name: [listed[name]] for name in listed}})
        return folder
    path = folder / "meta/episodes.jsonl"
    write_lines(path, [{**json.loads(line), **listed} for line in path.read_text().splitlines()])
    return folder


@pytest.mark.parametrize(("version", "prefix"), [("v2.1", ".jsonl"), ("v3.0", "")])
@pytest.mark.parametrize(("value", "success"), [(True, True), (0, False), (1.0, True)])
def test_what_the_list_of_episodes_says_is_used_or_named(
    value: Any, success: bool, version: str, prefix: str, tmp_path: Path
) -> None:
    listed = {"success": value, "comment": "good", "scores": [1, 2], "prompt": "do it"}
    [episode] = episodes(with_listed(tmp_path, version, listed))
    parts = {part.path: part for part in episode.parts if part.path.startswith("meta/")}
    folder = f"meta/episodes{prefix}/"
    assert {path.removeprefix(folder): part.role for path, part in parts.items()} == {
        "success": "success",
        **dict.fromkeys(("comment", "scores", "prompt"), "left_out"),
    }
    assert {part.content for part in parts.values() if part.role == "left_out"} == {"other"}
    assert (episode.success, episode.task) == (success, "put the ball in the box")
    [finding] = episode.findings
    assert (finding.code, "comment" in finding.message) == ("left_out.data", True)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_instruction_of_the_list_is_used_where_there_is_no_other(
    version: str, tmp_path: Path
) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns.pop("task_index")

    listed = {"language_instruction": "wipe it", "language_instruction_2": "clean it", "tasks": []}
    if version == "v3.0":
        listed["tasks"] = [""]
    root = with_listed(tmp_path, version, listed, change=change)
    [episode] = episodes(root)
    assert episode.language == {"original": ["wipe it"], "alternative": ["clean it"]}
    assert episode.task == "wipe it"
    assert codes_of(episode) == []
    found = [part.role for part in episode.parts if part.path.startswith("meta/")]
    assert found == ["language", "language"]
    (tmp_path / "mapping.yaml").write_text("fields: {a: action}\nrest: assign")
    [mapped] = episodes(root, mapping=str(tmp_path / "mapping.yaml"))
    assert mapped.task == "wipe it"


def test_success_of_the_rows_comes_before_that_of_the_list(tmp_path: Path) -> None:
    def change(_number: int, columns: Columns) -> None:
        columns["next.success"] = np.array([False, False, True])

    root = with_listed(tmp_path, "v2.1", {"success": False}, change=change)
    declare(root, next__success=number(dtype="bool"))
    [episode] = episodes(root)
    assert episode.success is True
    assert roles(episode)["meta/episodes.jsonl/success"] == "left_out"


# Metadata


def modality(root: Path, **sections: Any) -> Path:
    lerobot_dataset(root / "set", [3])
    (root / "set/meta/modality.json").write_text(json.dumps(sections))
    return root / "set"


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"state": {"arm": {"start": 0, "end": 20}}}, "0 to 20 of observation.state, which has 3"),
        ({"state": {"arm": {"start": 2, "end": 2}}}, "start 2, end 2"),
        ({"action": {"arm": {"start": 0, "end": 2, "original_key": "act"}}}, "names act"),
        ({"video": {"front": {"original_key": "images.front"}}}, "names images.front"),
    ],
)
def test_entries_of_modality_that_do_not_fit_are_reported(
    sections: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    [(code, message)] = source_findings(modality(tmp_path, **sections))
    assert code == "lerobot.bad_modality"
    assert problem in message


def test_entries_of_modality_that_fit_are_not_reported(tmp_path: Path) -> None:
    sections = {
        "state": {"arm": {"start": 0, "end": 3}},
        "video": {"front": {"original_key": FRONT}},
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }
    root = modality(tmp_path, **sections)
    assert source_findings(root) == []
    [episode] = episodes(root)
    assert episode.dimension_names["observation.state"] == ("arm.0", "arm.1", "arm.2")


def test_lance_tables_are_named(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", [3], version="v3.0")
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "storage_format": "lance"}))
    with pytest.raises(DataError, match="stores its rows in Lance tables") as caught:
        episodes(root)
    assert "lerobot" in (caught.value.hint or "")
