"""HDF5 recordings, against the library that writes them."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.builders import hdf5
from tests.builders.s3_server import Proxy, S3Server
from vlatool.episode import Episode, LanguageSpan
from vlatool.errors import DataError
from vlatool.media.video import encode_video
from vlatool.recordings.hdf5.reader import Hdf5Config, Hdf5Reader
from vlatool.storage.uri import location
from vlatool.testing import check_reader
from vlatool.workflows.sample import SampleConfig, sample

_BESIDE = Path(__file__).parents[4] / "shared" / "data" / "formats"
ISAAC = Path(os.environ.get("VLATOOL_RECORDINGS", _BESIDE)) / "isaaclab/dataset.hdf5"


def read(path: Path, number: int = 0, **options: Any) -> Episode:
    reader = Hdf5Reader(Hdf5Config(**options))
    return reader.read(list(reader.discover([path]))[number])


def test_recordings_of_the_world_keep_the_rules_of_readers(tmp_path: Path) -> None:
    output = str(tmp_path / "raw")
    sample(SampleConfig(layout="hdf5", output=output, episodes=2, frames=4, workers=1))
    check_reader(Hdf5Reader, tmp_path / "raw")
    episode = read(tmp_path / "raw")
    assert (episode.fps, episode.success) == (10, False)
    assert episode.language["original"][0].startswith("put the")


@pytest.mark.skipif(not ISAAC.is_file(), reason="VLATOOL_RECORDINGS has no file of Isaac Lab")
def test_values_of_a_real_file_are_those_of_h5py() -> None:
    reader = Hdf5Reader(Hdf5Config(fps=20, instruction="stack the cubes"))
    refs = list(reader.discover([ISAAC]))
    assert reader.layout == "Isaac Lab"
    assert [ref.number for ref in refs] == [0, 1, 2, 6, 8, 9, 12, 13, 14, 16]
    with h5py.File(ISAAC) as file:
        for ref in refs:
            group, episode = file[f"data/demo_{ref.number}"], reader.read(ref)
            assert episode.success is True
            assert episode.num_frames == group.attrs["num_samples"]
            for name, values in episode.lowdim.items():
                np.testing.assert_array_equal(values, group[name.replace(".", "/")])
    assert "obs.eef_quat" in episode.proprioception_fields
    assert episode.action_fields == ("actions",)


def test_robomimic_is_found_by_structure(tmp_path: Path) -> None:
    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_10": 3, "demo_2": 2})
    reader = Hdf5Reader(Hdf5Config())
    refs = list(reader.discover([path]))
    assert [ref.id for ref in refs] == ["lift_demo_2", "lift_demo_10"]
    assert reader.layout == "robomimic"
    episode = reader.read(refs[1])
    assert (episode.fps, episode.task, episode.num_frames) == (20, "Lift", 3)
    assert [*episode.lowdim] == ["actions", "obs.object", "obs.robot0_eef_pos"]
    assert episode.proprioception_fields == ("obs.robot0_eef_pos",)
    np.testing.assert_array_equal(
        episode.cameras["front_image"].read([2, 0]), hdf5.images()[[2, 0]]
    )
    assert {finding.code for finding in episode.findings} == {"left_out.data", "source.no_language"}
    assert reader.survey(refs).frames == 5


def test_mask_selects_episodes(tmp_path: Path) -> None:
    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_0": 3, "demo_1": 2})
    refs = Hdf5Reader(Hdf5Config(mask="train")).discover([path])
    assert [ref.number for ref in refs] == [0]
    with pytest.raises(DataError, match="no mask 'valid'") as caught:
        list(Hdf5Reader(Hdf5Config(mask="valid")).discover([path]))
    assert caught.value.hint == "choose from: train"


def test_demos_of_one_name_in_two_files_have_two_ids(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hdf5.robomimic(tmp_path / name / "lift.hdf5", {"demo_0": 2})
    refs = list(Hdf5Reader(Hdf5Config()).discover([tmp_path]))
    assert [ref.id for ref in refs] == ["lift_demo_0", "lift_demo_0-2"]
    assert refs[0].path != refs[1].path


@pytest.mark.parametrize("form", ["padded", "vlen", "opaque"])
def test_encoded_rows_are_the_stored_images(form: str, tmp_path: Path) -> None:
    rows = [hdf5.encoded(row) for row in hdf5.images()]
    path = hdf5.aloha(tmp_path / "episode_0.hdf5", rows, form)
    episode = read(path, fps=50)
    camera = pickle.loads(pickle.dumps(episode.cameras["cam_high"]))
    np.testing.assert_array_equal(camera.read(range(5)), hdf5.images())
    assert camera.encoded(3) == rows[3]
    assert episode.proprioception_fields == ("observations.qpos",)


MAPPING = """
episodes: runs/*
cameras:
  front: {path: rgb, bgr: true}
  side: {video: "{stem}_{episode}.mp4"}
fields: {state: arm/q, command: arm/u}
action_fields: [command]
proprioception_fields: [state]
instruction: "@task"
success: result@ok
fps: /@rate
"""


def own_layout(folder: Path) -> Path:
    with h5py.File(folder / "day.h5", "w") as file:
        file.attrs["rate"] = 12.5
        for name in ("r1", "r2"):
            run = file.create_group(f"runs/{name}")
            run.attrs["task"] = "wipe the table"
            run.create_group("result").attrs["ok"] = 1
            run["rgb"] = hdf5.images()[..., ::-1]
            run["arm/q"] = np.arange(10.0).reshape(5, 2)
            run["arm/u"] = np.arange(5, dtype=np.int16)
            (folder / f"day_{name}.mp4").write_bytes(encode_video(hdf5.images()[:, :, :24], 12))
    (folder / "mapping.yaml").write_text(MAPPING)
    return folder / "day.h5"


def test_a_mapping_names_the_parts_of_any_layout(tmp_path: Path) -> None:
    path = own_layout(tmp_path)
    episode = read(path, 1, mapping=str(tmp_path / "mapping.yaml"))
    assert (episode.id, episode.fps, episode.success) == ("day_r2", 12.5, True)
    assert episode.language == {"original": ["wipe the table"]}
    assert {name: values.shape for name, values in episode.lowdim.items()} == {
        "state": (5, 2),
        "command": (5, 1),
    }
    np.testing.assert_array_equal(episode.cameras["front"].read([4])[0], hdf5.image(4))
    assert episode.cameras["front"].encoded(0) is None
    assert episode.cameras["side"].size == (24, 24)


def test_a_reference_from_the_root_is_followed_to_the_pixels(tmp_path: Path) -> None:
    path = own_layout(tmp_path)
    (tmp_path / "root.yaml").write_text("episodes: runs/*\ncameras: {front: {path: /runs/r1/rgb}}")
    camera = read(path, 1, mapping=str(tmp_path / "root.yaml")).cameras["front"]
    np.testing.assert_array_equal(camera.read([4])[0], hdf5.image(4)[..., ::-1])


def test_options_come_before_what_is_stored(tmp_path: Path) -> None:
    path = own_layout(tmp_path)
    options = {"fps": 5, "instruction": "wave", "mapping": str(tmp_path / "mapping.yaml")}
    episode = read(path, **options)
    assert (episode.fps, episode.language["original"]) == (5, ["wave"])


@pytest.mark.parametrize("kind", ["S8", h5py.string_dtype()])
def test_texts_of_frames_in_a_mapping_are_spans(kind: Any, tmp_path: Path) -> None:
    def change(file: Any) -> None:
        rows = np.array([b"reach", b"reach", b"lift"], kind)
        file["data/demo_0"].create_dataset("said", data=rows)
        file["data/demo_0"].create_dataset("part", data=rows[::-1].reshape(3, 1))

    path = hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": 3}, change)
    assert "texts here: ['part', 'said']" in (Hdf5Reader.propose(path) or "")
    mapping = "episodes: data/*\nfields: {action: actions}\ninstruction: said\n"
    (tmp_path / "mapping.yaml").write_text(f"{mapping}language: {{subtask: part}}")
    episode = read(path, mapping=str(tmp_path / "mapping.yaml"))
    assert episode.language == {}
    assert episode.language_spans == (
        LanguageSpan("original", "reach", 0, 1),
        LanguageSpan("original", "lift", 2, 2),
        LanguageSpan("subtask", "lift", 0, 0),
        LanguageSpan("subtask", "reach", 1, 2),
    )


def test_a_proposed_mapping_reads_the_file_it_was_proposed_for(tmp_path: Path) -> None:
    path = own_layout(tmp_path)
    text = Hdf5Reader.propose(path)
    assert text is not None
    assert '"arm.q": "arm/q"  # float64 [5, 2]' in text
    assert 'fps: "/@rate"' in text
    (tmp_path / "proposed.yaml").write_text(text)
    episode = read(path, mapping=str(tmp_path / "proposed.yaml"))
    assert ([*episode.lowdim], [*episode.cameras]) == (["arm.q", "arm.u"], ["rgb"])
    assert episode.fps == 12.5


def external(file: Any) -> None:
    del file["data/demo_0/actions"]
    outside = [("outside.raw", 0, 24)]
    file["data/demo_0"].create_dataset("actions", (3, 2), "f4", external=outside)


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 3))
    file["data/demo_0"].create_virtual_dataset("obs/joint", layout)


def link(file: Any) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = h5py.ExternalLink("other.h5", "/x")


def bomb(file: Any) -> None:
    shape = (3, 30_000, 30_000)
    file["data/demo_0"].create_dataset("obs/map", shape, "u1", chunks=shape, compression="gzip")


def changed(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        demo = file["data/demo_0"]
        if name in demo:
            del demo[name]
        if value is not None:
            demo[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (external, "data_outside"),
        (virtual, "data_outside"),
        (link, "data_outside"),
        (bomb, "too_large"),
        (changed("obs/object", np.zeros((1, 4))), "length_mismatch"),
        (changed("obs/front_image", hdf5.images(1)), "length_mismatch"),
        (changed("actions", np.zeros((0, 2))), "empty_episode"),
        (changed("actions", np.zeros(())), "not_numeric"),
        (changed("actions", None), "unknown_layout"),
        (changed("actions", np.array([b"a", b"b", b"c"])), "not_numeric"),
    ],
)
def test_damaged_files_are_errors_with_their_place(
    change: Callable[[Any], None], finding: str, tmp_path: Path
) -> None:
    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_0": 3}, change)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.details["finding"] == finding
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"no hdf5", None], ids=["empty", "text", "cut"])
def test_file_that_is_cut_or_none_is_unreadable(content: bytes | None, tmp_path: Path) -> None:
    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_0": 3})
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(DataError, match=r"lift\.hdf5: cannot be read") as caught:
        read(path)
    assert caught.value.code == "data.broken"


def test_a_damaged_image_names_its_frame(tmp_path: Path) -> None:
    rows = [hdf5.encoded(row) for row in hdf5.images()]
    rows[3] = rows[3][: len(rows[3]) // 2]
    path = hdf5.aloha(tmp_path / "episode_0.hdf5", rows)
    camera = read(path, fps=50).cameras["cam_high"]
    with pytest.raises(DataError, match="images/cam_high: frame 3"):
        camera.read([2, 3])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cameras: {front: {}}", "set either path or video"),
        ("colour: red", "colour: Extra inputs"),
        ("fields: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_mapping_are_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(text)
    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_0": 3})
    with pytest.raises(DataError, match=reason) as caught:
        read(path, mapping=str(tmp_path / "mapping.yaml"))
    assert caught.value.code == "data.broken"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fields: {a: actions}\nlanguage: {subtask: actions}", "actions: is float32, not text"),
        (
            "fields: {a: actions}\ninstruction: /mask/two",
            "two: has 2 texts, but the episode has 3 frames",
        ),
    ],
)
def test_a_mapping_of_what_is_not_there_is_an_error(text: str, reason: str, tmp_path: Path) -> None:
    def change(file: Any) -> None:
        file["mask/two"] = np.array([b"a", b"b"])

    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_0": 3}, change)
    (tmp_path / "mapping.yaml").write_text(f"episodes: data/*\n{text}")
    with pytest.raises(DataError, match=reason):
        read(path, mapping=str(tmp_path / "mapping.yaml"))


def test_a_count_that_differs_is_a_warning(tmp_path: Path) -> None:
    def change(file: Any) -> None:
        file["data/demo_0"].attrs["num_samples"] = 7

    path = hdf5.robomimic(tmp_path / "lift.hdf5", {"demo_0": 3}, change)
    (finding,) = [f for f in read(path).findings if f.code == "hdf5.not_counted"]
    assert "num_samples is 7, but there are 3 frames" in finding.message


def test_remote_file_is_read_in_few_requests(
    s3: S3Server, s3_bucket: str, s3_proxy: Proxy, tmp_path: Path
) -> None:
    path = hdf5.robomimic(tmp_path / "lift.hdf5", {f"demo_{index}": 40 for index in range(20)})
    s3.client().upload_file(str(path), s3_bucket, "lift.hdf5")
    s3_proxy.faults.requests.clear()
    local = read(path, 7)
    remote = read(location(f"s3://{s3_bucket}/lift.hdf5"), 7)
    np.testing.assert_array_equal(remote.lowdim["actions"], local.lowdim["actions"])
    np.testing.assert_array_equal(
        remote.cameras["front_image"].read([39]), local.cameras["front_image"].read([39])
    )
    assert len(s3_proxy.faults.requests) <= 8
