"""Mappings, known layouts, and what is cut, against the library that writes the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.builders import hdf5
from vlatool.episode import Episode
from vlatool.errors import ConfigError, DataError, UsageError
from vlatool.media.video import encode_video
from vlatool.recordings.detect import with_mapping
from vlatool.recordings.hdf5.reader import Hdf5Config, Hdf5Reader
from vlatool.recordings.mapping import file_beside
from vlatool.recordings.propose import rate_of_times
from vlatool.storage.atomic import write_bytes
from vlatool.storage.uri import location
from vlatool.testing import check_reader

FRAMES = 5


def rows(width: int, count: int = FRAMES, start: float = 0.0) -> np.ndarray:
    return np.arange(start, start + count * width, dtype=np.float32).reshape(count, width)


def write(path: Path, parts: dict[str, Any], **attributes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in parts.items():
            file[name] = values
        file.attrs.update(attributes)
    return path


def read(source: Path, number: int = 0, mapping: str = "", **options: Any) -> Episode:
    if mapping:
        path = source.parent / "mapping.yaml"
        path.write_text(mapping)
        options["mapping"] = str(path)
    reader = Hdf5Reader(Hdf5Config(**options))
    return reader.read(list(reader.discover([source]))[number])


def maniskill(folder: Path) -> Path:
    parts: dict[str, Any] = {}
    for number in range(2):
        at = f"traj_{number}"
        parts |= {
            f"{at}/actions": rows(7),
            f"{at}/success": np.arange(FRAMES) == FRAMES - 1,
            f"{at}/terminated": np.zeros(FRAMES, bool),
            f"{at}/truncated": np.zeros(FRAMES, bool),
            f"{at}/obs/agent/qpos": rows(9, FRAMES + 1),
            f"{at}/obs/sensor_data/base_camera/rgb": hdf5.images(FRAMES + 1),
            f"{at}/obs/sensor_data/hand_camera/rgb": hdf5.images(FRAMES + 1)[:, ::-1],
        }
    return write(folder / "trajectory.h5", parts)


def droid(folder: Path) -> Path:
    for number, serials in enumerate((("11", "12"), ("21", "22"))):
        episode = folder / f"lab/{number}"
        videos = episode / "recordings/MP4"
        videos.mkdir(parents=True)
        parts = {
            "action/joint_velocity": rows(7),
            "action/gripper_position": rows(1)[:, 0],
            "observation/robot_state/joint_positions": rows(7),
            "observation/robot_state/cartesian_position": rows(6),
            "observation/robot_state/gripper_position": rows(1)[:, 0],
            "observation/controller_info/movement_enabled": np.ones(FRAMES, bool),
        }
        write(episode / "trajectory.h5", parts, success=number == 0)
        for serial in serials:
            (videos / f"{serial}.mp4").write_bytes(encode_video(hdf5.images(FRAMES - 1), 15))
        facts = {
            "current_task": "put the pen into the cup",
            "wrist_mp4_path": f"lab/recordings/MP4/{serials[1]}.mp4",
        }
        (episode / "metadata_X.json").write_text(json.dumps(facts))
    return folder


def robotwin(folder: Path) -> Path:
    images = np.array([hdf5.encoded(image, "JPEG") for image in hdf5.images()])
    parts = {
        "joint_action/vector": rows(14),
        "observation/head_camera/rgb": images,
        "observation/left_camera/rgb": images,
    }
    (folder / "instructions").mkdir(parents=True)
    document = {"seen": ["beat the block", "hit it"]}
    (folder / "instructions/episode0.json").write_text(json.dumps(document))
    return write(folder / "data/episode0.hdf5", parts)


def agibot(folder: Path) -> Path:
    parts = {"state/joint/position": rows(14), "state/effector/position": rows(2)}
    parts["state/end/orientation"] = rows(4)
    videos = folder / "observations/327/648/videos"
    videos.mkdir(parents=True)
    (videos / "head_color.mp4").write_bytes(encode_video(hdf5.images(), 30))
    (folder / "task_info").mkdir()
    tasks = [{"episode_id": 648, "task_name": "pick up the cup"}]
    (folder / "task_info/task_327.json").write_text(json.dumps(tasks))
    return write(folder / "proprio_stats/327/648/proprio_stats.h5", parts)


def agilex(folder: Path) -> Path:
    depth = np.full((FRAMES, 24, 32), 700, np.uint16)
    parts = {
        "action": rows(14),
        "base_action": rows(2),
        "observations/qpos": rows(14),
        "observations/images/cam_high": hdf5.images(),
        "observations/images_depth/cam_high": depth,
    }
    return write(folder / "episode_0.hdf5", parts)


@pytest.mark.parametrize(
    ("make", "layout", "cameras", "frames"),
    [
        (maniskill, "ManiSkill", ["base_camera", "hand_camera"], FRAMES),
        (droid, "DROID", ["wrist"], FRAMES - 1),
        (robotwin, "RoboTwin", ["head_camera", "left_camera"], FRAMES - 1),
        (agibot, "AgiBot World", ["head"], FRAMES - 1),
        (agilex, "AgileX ALOHA", ["cam_high"], FRAMES),
    ],
)
def test_known_layouts_are_recognized_by_structure(
    make: Callable[[Path], Path], layout: str, cameras: list[str], frames: int, tmp_path: Path
) -> None:
    source = make(tmp_path / "raw")
    reader = Hdf5Reader(Hdf5Config())
    refs = list(reader.discover([source]))
    episode = reader.read(refs[0])
    assert (reader.layout, [*episode.cameras], episode.num_frames) == (layout, cameras, frames)
    assert episode.action_fields
    assert episode.proprioception_fields
    check_reader(Hdf5Reader, source, {"fps": 10})


def test_the_observation_after_the_last_action_is_cut_and_counted(tmp_path: Path) -> None:
    episode = read(maniskill(tmp_path))
    assert (episode.num_frames, episode.cut_frames, episode.success) == (FRAMES, 1, True)
    np.testing.assert_array_equal(episode.lowdim["obs.agent.qpos"], rows(9))
    np.testing.assert_array_equal(episode.cameras["hand_camera"].read([4])[0], hdf5.image(4)[::-1])
    assert "source.frames_cut" in [finding.code for finding in episode.findings]


def test_videos_are_found_by_a_value_of_a_file_beside(tmp_path: Path) -> None:
    episode = read(droid(tmp_path), 1)
    assert episode.language == {"original": ["put the pen into the cup"]}
    assert (episode.fps, episode.success) == (15, False)
    (left,) = [part for part in episode.parts if part.role == "left_out"]
    assert (left.path, left.is_loss) == ("recordings/MP4/21.mp4", True)


def test_the_next_row_of_a_state_is_an_action(tmp_path: Path) -> None:
    episode = read(robotwin(tmp_path))
    np.testing.assert_array_equal(episode.lowdim["state"], rows(14)[:-1])
    np.testing.assert_array_equal(episode.lowdim["state_next"], rows(14)[1:])
    assert episode.action_fields == ("state_next",)
    assert episode.language == {"original": ["beat the block"]}


def test_depth_and_labels_are_no_fields(tmp_path: Path) -> None:
    meters = np.full((3, 24, 32, 1), 0.5, np.float32)

    def change(file: Any) -> None:
        file["data/demo_0/obs/view_depth"] = meters
        file["data/demo_0/obs/view_segmentation"] = np.ones((3, 24, 32, 1), np.uint8)

    episode = read(hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": 3}, change))
    assert episode.depth["view_depth"].read([1]).tolist() == [[[500] * 32] * 24]
    assert episode.labels["view_segmentation"].read([0]).max() == 1
    assert not {"obs.view_depth", "obs.view_segmentation"} & {*episode.lowdim}


LAYOUT = {
    "runs/1/q": rows(2),
    "runs/1/u": rows(2, start=9),
    "runs/1/a/rgb": hdf5.images(),
    "runs/1/say": np.array([b"", b"", b"", b"", b""]),
    "runs/1/say2": np.array([b"lift"] * FRAMES),
    "runs/1/at": np.array([0, 2, 4]),
}


@pytest.mark.parametrize(
    ("mapping", "check"),
    [
        ("cameras: {c: {path: '*/rgb'}}", lambda e: [*e.cameras] == ["c"]),
        ("fields: {q: q, n: next(q)}", lambda e: e.lowdim["n"].tolist() == rows(2)[1:].tolist()),
        (
            "fields: {q: q, u: u}",
            lambda e: [p.path for p in e.parts if p.role == "field"] == ["q", "u"],
        ),
        ("fields: {a: q, b: q}", lambda e: [*e.lowdim] == ["a", "b"]),
        ("fields: {q: '/runs/{episode}/q'}", lambda e: e.lowdim["q"].shape == (5, 2)),
        (
            "fields: {q: q}\ninstruction: [say, say2]",
            lambda e: e.language == {"original": ["lift"]},
        ),
        ("fields: {q: q}\nfps: 30", lambda e: e.fps == 30),
        (
            "fields: {q: q}\nrows: {index: at}",
            lambda e: e.lowdim["q"].tolist() == rows(2)[[0, 2, 4]].tolist(),
        ),
        (
            "fields: {x: q}\nrest: assign",
            lambda e: {*e.lowdim} == {"x", "u"} and [*e.cameras] == ["a"],
        ),
        (
            "fields: {x: q}\nrest: assign\nproprioception_fields: ['*']",
            lambda e: e.proprioception_fields == ("x", "u"),
        ),
    ],
)
def test_keys_of_a_mapping(mapping: str, check: Any, tmp_path: Path) -> None:
    parts = {name: values for name, values in LAYOUT.items() if "at" not in name or "at" in mapping}
    path = write(tmp_path / "a.h5", parts)
    assert check(read(path, mapping=f"episodes: runs/*\n{mapping}"))


def test_datasets_of_a_pattern_are_episodes(tmp_path: Path) -> None:
    parts = {f"{kind}/ep_{n}": rows(2, start=n) for n in range(2) for kind in ("q", "u")}
    mapping = (
        "episodes: q/ep_*\nfields: {state: ., command: '/u/{episode}'}\naction_fields: [command]"
    )
    episode = read(write(tmp_path / "a.h5", parts), 1, mapping=mapping)
    np.testing.assert_array_equal(episode.lowdim["state"], rows(2, start=1))
    np.testing.assert_array_equal(episode.lowdim["command"], rows(2, start=1))


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ("fields: {q: qq}", "runs/1/qq: is missing; there is q"),
        ("fields: {q: a}", "runs/1/a: is a group, not a dataset"),
        ("fields: {q: 's*'}", "fits several parts, say, say2"),
        ("cameras: {c: {path: q}}", "which are no images"),
        ("cameras: {c: {video: '{nope}.mp4'}}", "{nope} is unknown"),
        ("fields: {q: q}\naction_fields: [next(u)]", "'u' is not listed under fields"),
        ("fields: {q: q}\nfps: '@rate'", "there is version"),
        (
            "episodes: walks/*\nfields: {q: q}",
            "no group or dataset fits 'walks/*'; its root has 'runs'",
        ),
    ],
)
def test_a_wrong_reference_says_what_is_there(mapping: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", LAYOUT)
    with h5py.File(path, "a") as file:
        file["runs/1"].attrs["version"] = 3
    text = mapping if mapping.startswith("episodes") else f"episodes: runs/*\n{mapping}"
    with pytest.raises(DataError) as caught:
        read(path, mapping=text)
    assert reason in caught.value.message
    assert "again" not in caught.value.hint


def test_a_value_of_a_file_beside_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "raw/a.h5", {"q": rows(2)})
    (tmp_path / "secret.mp4").write_bytes(encode_video(hdf5.images(), 10))
    (tmp_path / "raw/facts.json").write_text(json.dumps({"video": "../secret.mp4"}))
    mapping = "cameras: {c: {video: '{facts.json@video}'}}\nfields: {q: q}"
    with pytest.raises(DataError, match=r"raw/secret\.mp4: is missing"):
        read(path, mapping=mapping)


def test_a_file_beside_remote_data_is_looked_up_as_beside_local_data(memory: str) -> None:
    write_bytes(location(f"{memory}/raw/front.mp4"), b"")
    with pytest.raises(DataError, match=r"raw/side\.mp4: is missing; there is front\.mp4"):
        file_beside("side.mp4", location(f"{memory}/raw/a.h5"))


def test_one_broken_file_of_a_set_costs_only_its_episode(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        hdf5.aloha(tmp_path / f"{name}.hdf5", [hdf5.encoded(row) for row in hdf5.images()])
    (tmp_path / "b.hdf5").write_bytes((tmp_path / "b.hdf5").read_bytes()[:3000])
    reader = Hdf5Reader(Hdf5Config())
    refs = list(reader.discover([tmp_path]))
    assert [ref.id for ref in refs] == ["a", "b", "c"]
    assert reader.survey(refs).episodes == 2
    with pytest.raises(DataError, match=r"b\.hdf5: cannot be read"):
        reader.read(refs[1])


@pytest.mark.parametrize("chunks", [None, (2, 3)])
def test_rows_that_were_never_written_break_the_episode(chunks: Any, tmp_path: Path) -> None:
    def change(file: Any) -> None:
        states = file["data/demo_0"].create_dataset("obs/late", (3, 3), "f4", chunks=chunks)
        if chunks:
            states[:2] = 1

    path = hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": 3}, change)
    with pytest.raises(DataError, match="were never written") as caught:
        read(path)
    assert caught.value.code == "data.broken"


@pytest.mark.parametrize(("factor", "rate"), [(1e9, 30.0), (1e6, 30.0), (1e3, 30.0), (1.0, 30.0)])
@pytest.mark.parametrize("start", [0.0, 1_780_000_000.0])
def test_the_rate_follows_from_times_in_any_unit(factor: float, rate: float, start: float) -> None:
    times = (start + np.arange(20) / rate) * factor
    assert rate_of_times(times) == pytest.approx(rate, rel=0.01)


def test_links_within_the_file_are_followed_and_links_out_of_it_are_named(tmp_path: Path) -> None:
    write(tmp_path / "other.h5", {"x": rows(2)})

    def change(file: Any) -> None:
        file["shared/q"] = rows(4, 3)
        file["data/demo_0/obs/q"] = h5py.SoftLink("/shared/q")
        file["data/demo_0/obs/gone"] = h5py.SoftLink("/shared/nothing")
        file["data/demo_0/obs/x"] = h5py.ExternalLink("other.h5", "/x")

    episode = read(hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": 3}, change))
    np.testing.assert_array_equal(episode.lowdim["obs.q"], rows(4, 3))
    left = {part.path for part in episode.parts if part.role == "left_out"}
    assert {"obs/gone", "obs/x"} <= left


def test_attributes_of_an_episode_are_named(tmp_path: Path) -> None:
    def change(file: Any) -> None:
        file["data/demo_0"].attrs["operator"] = "ann"

    episode = read(hdf5.robomimic(tmp_path / "a.hdf5", {"demo_0": 3}, change))
    (part,) = [part for part in episode.parts if part.path == "@operator"]
    assert part.role == "left_out"
    assert part.note.startswith("a text, but not an instruction")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_dark_episode_does_not_decide_about_the_others(order: Any, tmp_path: Path) -> None:
    for name, bright in zip(("a", "b"), order, strict=True):
        images = np.full((3, 24, 32, 3), bright * 100, np.float32)

        def change(file: Any, images: np.ndarray = images) -> None:
            file["data/demo_0/obs/view/rgb"] = images

        hdf5.robomimic(tmp_path / f"{name}.hdf5", {"demo_0": 3}, change)
    reader = Hdf5Reader(Hdf5Config())
    pixels = [reader.read(ref).cameras["view"].read([0]) for ref in reader.discover([tmp_path])]
    assert [int(values.max()) for values in pixels] == [100 * bright for bright in order]


def test_webp_of_strings_of_fixed_length_is_decoded(tmp_path: Path) -> None:
    images = np.array([hdf5.encoded(row, "WEBP") for row in hdf5.images()])
    path = write(
        tmp_path / "a.h5", {"data/demo_0/obs/c/rgb": images, "data/demo_0/actions": rows(2)}
    )
    assert read(path).cameras["c"].read([*range(FRAMES)]).shape == (FRAMES, 24, 32, 3)


@pytest.mark.parametrize(("stored", "value"), [(True, True), ("failure", False), ("yes", True)])
def test_success_of_a_mapping_may_be_a_flag_or_a_text(
    stored: Any, value: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.h5", {"q": rows(2)}, outcome=stored)
    assert read(path, mapping="fields: {q: q}\nsuccess: '@outcome'").success is value


@pytest.mark.parametrize(
    "text",
    [
        "fields: {q: q, n: next(n)}",
        "fields: {q: q}\nfps: 0",
        "depth: {d: {path: a/rgb}}",
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError)):
        read(write(tmp_path / "a.h5", LAYOUT), mapping=f"episodes: runs/*\n{text}")


def test_a_proposal_has_the_rate_of_timestamps_and_what_is_left_out(tmp_path: Path) -> None:
    parts = {
        "action": rows(3),
        "obs/qpos": rows(3),
        "obs/timestamp": 1_780_000_000_000 + np.arange(FRAMES) * 50,
        "obs/points": np.ones((FRAMES, 64, 3)),
        "obs/front/rgb": hdf5.images(),
    }
    path = write(tmp_path / "a.h5", parts, task_description="open the drawer")
    text = Hdf5Reader.propose(path) or ""
    assert "fps: 20.0  # by the times of obs/timestamp" in text
    assert 'instruction: "@task_description"' in text
    assert "# left out: obs/points: points [64, 3]" in text
    episode = read(path, mapping=text)
    assert (episode.fps, [*episode.cameras], episode.action_fields) == (20, ["front"], ("action",))
    assert episode.language == {"original": ["open the drawer"]}


def test_a_mapping_that_is_not_there_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nope\.yaml: does not exist"):
        with_mapping({}, str(tmp_path / "nope.yaml"))
    with pytest.raises(UsageError, match="there is no preset 'nope'"):
        with_mapping({}, "nope")
