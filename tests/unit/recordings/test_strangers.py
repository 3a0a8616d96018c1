"""Recordings of strangers: sentences in JSON, unstated rates, lost cameras, proposals."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
import zarr

from tests.builders import hdf5
from tests.builders.errors import fails
from tests.builders.folder import image, table, write_episode, write_set, write_video
from tests.surface.invoke import run_vlatool
from vlatool.episode import Episode
from vlatool.media.images import encode_jpeg
from vlatool.plugins import FORMATS
from vlatool.recordings.detect import detect_source
from vlatool.recordings.propose import rate_of_times
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

FRAMES = 8


def episodes(root: Path, **keys: Any) -> list[Episode]:
    found = detect_source(root, None, keys)
    return [found.reader.read(ref) for ref in found.refs]


# Sentences


def test_a_sentence_in_json_of_an_attribute_is_the_instruction(tmp_path: Path) -> None:
    def change(file: Any) -> None:
        meta = {"lang": "pick the cup", "layout": 3, "style": {"lang": "x y"}}
        file["data/demo_0"].attrs["ep_meta"] = json.dumps(meta)

    hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": FRAMES}, change)
    assert episodes(tmp_path)[0].language == {"original": ["pick the cup"]}


def test_a_sentence_in_json_of_a_metadata_file_is_the_instruction(tmp_path: Path) -> None:
    folder = write_episode(tmp_path / "episode_0")
    (folder / "meta.json").write_text(json.dumps({"ep_meta": {"lang": "pick the cup"}}))
    assert episodes(tmp_path)[0].language == {"original": ["pick the cup"]}


def test_a_code_of_a_language_is_no_instruction(tmp_path: Path) -> None:
    folder = write_episode(tmp_path / "episode_0")
    (folder / "meta.json").write_text(json.dumps({"lang": "en"}))
    assert not episodes(tmp_path)[0].language


# Rates


def test_a_layout_has_no_rate_by_its_name(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rows = [hdf5.encoded(hdf5.image(number), "JPEG") for number in range(FRAMES)]
    hdf5.aloha(source / "a.hdf5", rows)
    with h5py.File(source / "a.hdf5", "a") as file:
        file["base_action"] = np.zeros((FRAMES, 2))
    assert episodes(source)[0].fps == 0
    with fails("usage.missing_key", 2) as raised:
        preprocess(PreprocessConfig(sources=[str(source)], output=str(tmp_path / "out")))
    assert "--fps 30" in raised.value.hint


def test_only_times_that_ascend_show_a_rate() -> None:
    assert rate_of_times(np.array([0, 0, 0, 1])) is None
    assert rate_of_times(np.arange(20) / 50) == 50
    assert rate_of_times(np.round(1000 * np.arange(20) / 30)) == 30


# Options of the detected format


def test_options_of_the_detected_format_need_no_format(tmp_path: Path) -> None:
    hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": FRAMES})
    words = ["preprocess", str(tmp_path / "a.hdf5"), "--mask", "train", "-o", str(tmp_path / "out")]
    code, text = run_vlatool(*words, "--max-padding-right", "20")
    assert code == 0, text


def test_an_option_of_another_format_is_unknown(tmp_path: Path) -> None:
    write_set(tmp_path / "in")
    words = ["preprocess", str(tmp_path / "in"), "--mask", "train", "-o", str(tmp_path / "out")]
    assert run_vlatool(*words)[0] == 2


def test_a_format_that_cannot_be_told_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("x")
    words = ["preprocess", str(tmp_path), "--fps", "10", "-o", str(tmp_path / "out"), "--json"]
    code, text = run_vlatool(*words)
    assert (code, json.loads(text)["error"]["code"]) == (3, "data.no_episodes")


# Files


def test_a_file_of_all_episodes_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    for folder in write_set(tmp_path).iterdir():
        np.save(folder / "times.npy", np.array({"a": 1}), allow_pickle=True)
    first = episodes(tmp_path)[0]
    assert first.action_fields == ("action",)
    assert [part.path for part in first.parts if part.content == "unusable"] == ["times.npy"]


def test_a_file_that_the_others_can_use_costs_its_episode(tmp_path: Path) -> None:
    write_set(tmp_path, episodes=3)
    (tmp_path / "episode_2/data.csv").write_text("a,b\n1\n2,3,4,5\n")
    found = detect_source(tmp_path, None)
    assert found.reader.read(found.refs[0]).num_frames == FRAMES
    with fails("data.broken"):
        found.reader.read(found.refs[2])


def test_rows_by_number_in_an_object_are_a_table(tmp_path: Path) -> None:
    write_video(tmp_path / "e0/front.mp4", 12)
    rows = {str(number): {"xyz": [number, 0, 0], "grip": 0.5} for number in range(12)}
    (tmp_path / "e0/labels.json").write_text(json.dumps(rows))
    first = episodes(tmp_path)[0]
    assert first.lowdim["xyz"][:, 0].tolist() == [*range(12)]


@pytest.mark.parametrize("start", ["", "data:image/jpeg;base64,"])
def test_images_in_base64_are_cameras(tmp_path: Path, start: str) -> None:
    lines: list[str] = []
    for number in range(FRAMES):
        text = start + base64.b64encode(encode_jpeg(image(number), 95)).decode()
        row = {"t": number / 10, "obs": {"front": text}, "action": [number, 1]}
        lines.append(json.dumps(row))
    (tmp_path / "episode_0.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "episode_1.jsonl").write_text("\n".join(lines) + "\n")
    first = episodes(tmp_path)[0]
    assert first.cameras["front"].encoded(3) == encode_jpeg(image(3), 95)
    assert first.action_fields == ("action",)


def test_packed_tables_are_read(tmp_path: Path) -> None:
    folder = write_episode(tmp_path / "episode_0")
    (folder / "data.csv").unlink()
    (folder / "data.csv.gz").write_bytes(gzip.compress(table(FRAMES).encode()))
    assert episodes(tmp_path)[0].action_fields == ("action",)


def test_images_in_a_tree_beside_the_tables_are_of_their_episode(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/episode_{number}.csv").write_text(table(FRAMES))
        for camera in ("left", "right"):
            folder = tmp_path / f"images/cam_{camera}/episode_{number}"
            folder.mkdir(parents=True)
            for frame in range(FRAMES):
                (folder / f"image_{frame}.jpg").write_bytes(encode_jpeg(image(frame), 95))
    several = episodes(tmp_path)
    assert [sorted(episode.cameras) for episode in several] == [["cam_left", "cam_right"]] * 2


# Cameras


def store(path: Path) -> Path:
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    states = np.linspace(0, 1, 3 * FRAMES).reshape(FRAMES, 3)
    for name in ("action", "state"):
        root.create_array(f"data/{name}", data=states)
    root.create_array("data/img", data=hdf5.images(FRAMES))
    root.create_array("meta/episode_ends", data=np.array([FRAMES]))
    return path


def test_an_episode_that_lost_a_camera_is_broken(tmp_path: Path) -> None:
    for number in range(3):
        store(tmp_path / f"in/s{number}.zarr")
    damaged = tmp_path / "in/s1.zarr/data/img/.zarray"
    damaged.write_bytes(damaged.read_bytes()[:20])
    words = ["preprocess", "zarr", str(tmp_path / "in"), "--fps", "10", "-o", str(tmp_path / "out")]
    code, text = run_vlatool(*words, "--max-padding-right", "20", "--json")
    failures = json.loads(text)["error"]["details"]["failures"]
    assert (code, [row["episode"] for row in failures]) == (4, ["s1_episode_000000"])


def test_colors_of_labels_are_no_camera(tmp_path: Path) -> None:
    def change(file: Any) -> None:
        file["data/demo_0/obs/front_seg"] = hdf5.images(FRAMES)

    hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": FRAMES}, change)
    first = episodes(tmp_path)[0]
    assert [*first.cameras] == ["front_image"]


# Proposals


def recording(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["state/joints"] = np.linspace(0, 1, 2 * FRAMES).reshape(FRAMES, 2)
        file.attrs["llm_description"] = f"fold towel {path.stem}"


def test_a_video_of_the_same_name_is_proposed_for_each_recording(tmp_path: Path) -> None:
    for number in range(2):
        recording(tmp_path / f"{number}.hdf5")
        write_video(tmp_path / f"{number}.mp4", FRAMES)
    proposed = yaml.safe_load(FORMATS.get("hdf5").propose(tmp_path) or "")
    assert proposed["cameras"] == {"image": {"video": "{stem}.mp4"}}
    assert proposed["instruction"] == "@llm_description"


def test_a_video_of_several_episodes_is_an_error(tmp_path: Path) -> None:
    for number in range(2):
        recording(tmp_path / f"{number}.hdf5")
        write_video(tmp_path / f"{number}.mp4", FRAMES)
    mapping = tmp_path / "map.yaml"
    mapping.write_text("cameras: {front: {video: 0.mp4}}\nfields: {q: state/joints}\n")
    with fails("data.broken") as raised:
        episodes(tmp_path, mapping=str(mapping))
    assert raised.value.details["finding"] == "shared_video"


def test_of_two_forms_of_the_actions_one_is_proposed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name in ("joint_actions", "joint_actions_abs", "state"):
            file[f"run_1/{name}"] = np.linspace(0, 1, 2 * FRAMES).reshape(FRAMES, 2)
    proposed = yaml.safe_load(FORMATS.get("hdf5").propose(tmp_path) or "")
    assert proposed["action_fields"] == ["joint_actions"]


def test_a_proposal_passes_over_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "0.hdf5").write_bytes(b"x")
    recording(tmp_path / "1.hdf5")
    proposed = yaml.safe_load(FORMATS.get("hdf5").propose(tmp_path) or "")
    assert proposed["fields"] == {"state.joints": "state/joints"}


def test_a_mapping_without_actions_writes_no_training_data(tmp_path: Path) -> None:
    recording(tmp_path / "0.hdf5")
    mapping = tmp_path / "map.yaml"
    mapping.write_text("fields: {q: state/joints}\naction_fields: []\nfps: 10\n")
    words = ["preprocess", "hdf5", str(tmp_path), "--mapping", str(mapping)]
    code, text = run_vlatool(*words, "-o", str(tmp_path / "out"), "--json")
    assert (code, json.loads(text)["error"]["code"]) == (2, "usage.missing_key")
