"""Folders of videos, images and tables."""

import cProfile
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.folder import (
    image,
    joints,
    table,
    write_episode,
    write_images,
    write_set,
    write_uneven_video,
    write_video,
)
from vlatool.config.resolve import config_of
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.media.images import encode_png
from vlatool.recordings.detect import detect_source
from vlatool.recordings.folder.reader import FolderConfig, FolderReader
from vlatool.recordings.folder.tables import read_table
from vlatool.recordings.select import episode_state
from vlatool.testing import check_reader
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample


def episodes(source: Path, **keys: object) -> list[Episode]:
    reader = FolderReader(FolderConfig.model_validate(keys))
    return [reader.read(ref) for ref in reader.discover([source])]


def folder_refs(source: Path, **keys: object) -> list[EpisodeRef]:
    return [*FolderReader(FolderConfig.model_validate(keys)).discover([source])]


def codes(episode: Episode) -> set[str]:
    return {finding.code for finding in episode.findings}


# What is read


def test_videos_a_table_and_a_json_are_an_episode(tmp_path: Path) -> None:
    first, _ = episodes(write_set(tmp_path))

    assert first.num_frames == 8
    assert first.fps == 30.0
    assert first.success is True
    assert [*first.cameras] == ["front", "wrist"]
    assert first.language == {"original": ["put the cup on the plate"]}
    assert first.action_fields == ("action",)
    assert first.proprioception_fields == ("q", "gripper")
    np.testing.assert_allclose(first.lowdim["q"], joints(8)[:, :6], atol=1e-6)
    assert first.dimension_names["q"] == ("q0", "q1", "q2", "q3", "q4", "q5")


def test_the_frames_of_a_video_are_those_of_its_rows(tmp_path: Path) -> None:
    first = episodes(write_set(tmp_path))[0]

    shown = first.cameras["front"].read([5])[0].astype(int)
    nearest = min(range(8), key=lambda frame: np.abs(shown - image(frame).astype(int)).sum())
    assert nearest == 5


def test_files_that_share_a_stem_are_an_episode(tmp_path: Path) -> None:
    for number in range(2):
        write_video(tmp_path / f"videos/front/take{number}.mp4", 8)
        (tmp_path / "states").mkdir(exist_ok=True)
        (tmp_path / f"states/take{number}.csv").write_text(table(8, seed=number))

    first, second = episodes(tmp_path)

    assert [first.id, second.id] == ["take0", "take1"]
    assert [*first.cameras] == ["front"]
    np.testing.assert_allclose(second.lowdim["q"], joints(8, 1)[:, :6], atol=1e-6)


def test_an_archive_of_numpy_is_an_episode(tmp_path: Path) -> None:
    images = np.stack([image(frame) for frame in range(5)])
    for number in range(2):
        path = tmp_path / f"demo_{number}.npz"
        np.savez(path, front=images, qpos=joints(5), action=joints(5), instruction="lift", fps=20)

    first = episodes(tmp_path)[0]

    assert first.fps == 20.0
    assert first.language == {"original": ["lift"]}
    np.testing.assert_array_equal(first.cameras["front"].read([0, 3]), images[[0, 3]])


def test_images_that_a_table_names_are_a_camera_in_its_order(tmp_path: Path) -> None:
    write_images(tmp_path / "e0", ["a.png", "b.png", "c.png"])
    (tmp_path / "e0/steps.csv").write_text("q0,q1,front\n0,1,c.png\n1,2,a.png\n2,3,b.png\n")

    cameras = episodes(tmp_path, fps=10)[0].cameras

    assert [*cameras] == ["front"]
    np.testing.assert_array_equal(cameras["front"].read([0])[0], image(2))


def test_numbers_in_names_of_images_part_the_cameras(tmp_path: Path) -> None:
    names = [f"{frame:06d}_color_{camera}.png" for camera in (0, 1) for frame in range(4)]
    write_images(tmp_path / "e0/colors", names)
    rows = [{"idx": frame, "states": {"arm": {"qpos": [0.1, frame]}}} for frame in range(4)]
    (tmp_path / "e0/data.json").write_text(json.dumps({"info": {"fps": 5}, "data": rows}))

    first = episodes(tmp_path)[0]

    assert [*first.cameras] == ["color_0", "color_1"]
    assert first.fps == 5.0
    np.testing.assert_array_equal(first.cameras["color_1"].read([2])[0], image(6))
    assert first.lowdim["states.arm.qpos"][:, 1].tolist() == [0, 1, 2, 3]


def test_images_of_16_bits_are_depth(tmp_path: Path) -> None:
    write_episode(tmp_path / "e0", 3)
    (tmp_path / "e0/depth").mkdir()
    for frame in range(3):
        data = encode_png(np.full((32, 32), 900 + frame, np.uint16))
        (tmp_path / f"e0/depth/{frame}.png").write_bytes(data)

    depth = episodes(tmp_path)[0].depth

    assert next(iter(depth.values())).read([2]).max() == 902


def test_stores_of_zarr_are_tables_with_clocks_of_their_own(tmp_path: Path) -> None:
    zarr: Any = pytest.importorskip("zarr")
    folder = tmp_path / "run_0/episode_0"
    arm = zarr.open_group(str(folder / "arm.zarr"), mode="w", zarr_format=2)
    arm.create_array("state_pos", data=joints(50))
    arm.create_array("state_timestamps", data=np.arange(50) * 0.005)
    camera = zarr.open_group(str(folder / "wrist_cam.zarr"), mode="w", zarr_format=2)
    camera.create_array("main_timestamps", data=np.arange(8) / 30)
    write_video(folder / "wrist_cam.zarr/main.mp4", 8)

    first = episodes(tmp_path)[0]

    assert (first.num_frames, first.fps) == (8, 30.0)
    rows = np.round(np.arange(8) / 30 / 0.005).astype(int)
    np.testing.assert_allclose(first.lowdim["state_pos"], joints(50)[rows])


def test_a_text_file_is_the_instruction(tmp_path: Path) -> None:
    write_episode(tmp_path / "e0")
    (tmp_path / "e0/meta.json").unlink()
    (tmp_path / "e0/task.txt").write_text("open the door\n")

    assert episodes(tmp_path)[0].language == {"original": ["open the door"]}


def test_the_built_in_world_as_a_folder_keeps_all_rules_of_readers(tmp_path: Path) -> None:
    output = str(tmp_path / "raw")
    sample(SampleConfig(layout="folder", output=output, episodes=2, frames=6, workers=1))

    first = check_reader(FolderReader, tmp_path / "raw")[0]

    assert (first.fps, first.action_fields, first.proprioception_fields) == (
        10.0,
        ("action",),
        ("state",),
    )


# Tables


@pytest.mark.parametrize(
    "text",
    [
        table(8),
        table(8, separator="\t"),
        table(8, separator=";").replace(".", ","),
    ],
    ids=["comma", "tab", "decimal comma"],
)
def test_a_csv_is_read_however_it_is_written(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)

    columns = read_table(tmp_path / "a.csv").columns

    np.testing.assert_allclose(columns["q"], joints(8)[:, :6], atol=1e-6)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
def test_a_csv_may_have_any_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("größe,b\n1.5,2\n", encoding=encoding)

    assert [*read_table(tmp_path / "a.csv").columns] == ["größe", "b"]


def test_the_numbered_header_of_pandas_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",0,1\n0,5.0,6.0\n1,7.0,8.0\n")

    assert read_table(tmp_path / "a.csv").columns["1"].tolist() == [6.0, 8.0]


def test_vectors_that_pandas_wrote_as_text_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('i,state\n0,"[0.5 1.  2]"\n1,"[1.5, 2.0, 3]"\n')

    assert read_table(tmp_path / "a.csv").columns["state"].tolist() == [[0.5, 1, 2], [1.5, 2, 3]]


@pytest.mark.parametrize(
    ("header", "name"),
    [("q[0],q[1]", "q"), ("pose.x,pose.y", "pose"), ("j_1,j_2", "j"), ("pos_x,pos_y", "pos")],
)
def test_columns_of_one_vector_become_one_field(header: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n1,2\n3,4\n")

    assert read_table(tmp_path / "a.csv").columns[name].tolist() == [[1, 2], [3, 4]]


def test_a_row_with_fewer_cells_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n5,6\n")

    with pytest.raises(DataError, match="line 3: 1 cells, the header has 2"):
        read_table(tmp_path / "a.csv")


def test_a_last_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    write_episode(tmp_path / "e0", 8, text=table(9)[:-30])

    first = episodes(tmp_path)[0]

    assert first.num_frames == 8
    assert "folder.cut_row" in codes(first)


def test_pickled_objects_are_refused_with_the_way_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "demo_0.npz", a=np.array([{"a": 1}], object))

    with pytest.raises(DataError) as raised:
        read_table(tmp_path / "demo_0.npz")

    assert raised.value.details["finding"] == "pickle"
    assert "vlatool.record" in raised.value.hint


def test_a_row_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1," + "2" * 2**25 + "\n")

    with pytest.raises(DataError, match="a row is longer than"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("time,1,2\n0.0,10,20\n0.1,11,21\n", ["time", "1", "2"]),
        ("# made by us\na,b\n1,2\n3,4\n", ["a", "b"]),
        ("\na,b\n1,2\n3,4\n", ["a", "b"]),
        ("a,a,a-2\n1,2,3\n4,5,6\n", ["a", "a-2", "a-2-2"]),
    ],
)
def test_headers_of_all_kinds(text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)

    columns = read_table(tmp_path / "a.csv").columns

    assert [*columns] == names
    assert {len(values) for values in columns.values()} == {2}


@pytest.mark.parametrize(
    "text",
    [
        table(8, separator="|"),
        table(8, separator="|").replace(".", ","),
        table(8, separator="  "),
        table(8, separator="  ").replace(".", ","),
        "1.5  2.5\n3.5  4.5\n",
        "1,5  2,5\n3,5  4,5\n",
        table(8).replace("\n", "\n" + ",".join(["s"] + ["rad"] * 14) + "\n", 1),
    ],
    ids=["bar", "bar, comma", "spaces", "spaces, comma", "no header", "neither", "units"],
)
def test_a_table_of_a_form_that_is_not_read_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)

    with pytest.raises(DataError) as raised:
        read_table(tmp_path / "a.csv")

    assert raised.value.details["finding"] == "bad_table"


def test_a_column_of_texts_is_not_divided_at_its_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("task\npick 3 cups\npick 2 cups\n")

    assert [*read_table(tmp_path / "a.csv").columns] == ["task"]


def test_a_first_row_without_numbers_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n,\n1,2\n")

    assert read_table(tmp_path / "a.csv").columns["a"].tolist()[1:] == [1.0]


# Lengths and times


@pytest.mark.parametrize(("clip", "frames", "cut"), [(9, 8, 1), (7, 7, 1), (12, 8, 4)])
def test_a_clip_that_is_a_little_longer_or_shorter_is_cut(
    clip: int, frames: int, cut: int, tmp_path: Path
) -> None:
    first = episodes(write_set(tmp_path, clip=clip))[0]

    assert (first.num_frames, first.cut_frames) == (frames, cut)
    assert "source.frames_cut" in codes(first)


def test_a_clip_of_another_length_breaks_its_episode(tmp_path: Path) -> None:
    write_set(tmp_path, clip=20)

    with pytest.raises(DataError, match=r"data\.csv has 8 rows"):
        episodes(tmp_path)


def test_rows_of_a_faster_table_are_paired_by_time(tmp_path: Path) -> None:
    write_set(tmp_path, clip=12, text=table(80, rate=200.0))

    first = episodes(tmp_path)[0]

    assert first.num_frames == 12
    assert first.fps == 30.0
    assert "folder.paired_by_time" in codes(first)
    rows = np.round(np.arange(12) / 30 * 200).astype(int)
    np.testing.assert_allclose(first.lowdim["q"], joints(80)[rows, :6], atol=1e-6)


def test_images_are_paired_by_the_times_in_their_names(tmp_path: Path) -> None:
    write_images(tmp_path / "e0/front", [f"{1700000000 + f / 10:.3f}.png" for f in range(6)])
    rows = [f"{1700000000 + f / 100:.3f},{f},{f}" for f in range(20, 60)]
    (tmp_path / "e0/robot.csv").write_text("time,q0,q1\n" + "\n".join(rows))

    first = episodes(tmp_path)[0]

    assert first.fps == 10.0
    assert first.lowdim["q"][:, 0].tolist() == [20.0, 30.0, 40.0, 50.0]
    np.testing.assert_array_equal(first.cameras["front"].read([0])[0], image(2))


def test_the_times_of_a_video_may_be_uneven(tmp_path: Path) -> None:
    seconds = np.cumsum([0, 0.03, 0.05, 0.02, 0.04, 0.06, 0.03, 0.04])
    write_uneven_video(tmp_path / "e0/front.mp4", seconds.tolist())
    (tmp_path / "e0/data.csv").write_text(table(8, rate=25.0))

    assert episodes(tmp_path)[0].num_frames == 8


def test_tables_with_one_clock_keep_their_distance(tmp_path: Path) -> None:
    write_video(tmp_path / "e0/front.mp4", 60)
    for name, start in (("left", 0.0), ("right", 0.1)):
        rows = [f"{1.7e9 + start + step / 100:.3f},{step},{step}" for step in range(205)]
        (tmp_path / f"e0/{name}.csv").write_text("time,q0,q1\n" + "\n".join(rows) + "\n")

    fields = episodes(tmp_path)[0].lowdim

    difference = fields["left.csv.q"][:, 0] - fields["right.csv.q"][:, 0]
    assert set(difference[1:].tolist()) == {10.0}


def test_the_rate_is_that_of_the_frames_not_of_a_faster_table(tmp_path: Path) -> None:
    write_set(tmp_path, clip=60, text=table(400, rate=200.0))
    for number in range(2):
        facts = {"control_freq": 200, "camera_fps": 30}
        (tmp_path / f"episode_{number}/meta.json").write_text(json.dumps(facts))

    assert episodes(tmp_path)[0].fps == 30.0


def test_times_of_a_kilohertz_table_are_read_with_their_rounding(tmp_path: Path) -> None:
    lines = ["time_ms,q0,q1"] + [f"{step},{step},{step}" for step in range(1000)]
    write_set(tmp_path, clip=30, text="\n".join(lines) + "\n")

    assert episodes(tmp_path)[0].num_frames == 30


def test_times_that_run_backwards_are_an_error(tmp_path: Path) -> None:
    text = table(8).replace("\n0.233333", "\n0.000001")
    with pytest.raises(DataError) as raised:
        episodes(write_set(tmp_path, text=text))
    assert raised.value.details["finding"] == "times_backwards"


def test_a_rate_that_its_times_contradict_is_said(tmp_path: Path) -> None:
    first = episodes(write_set(tmp_path, text=table(8, rate=10.0)))[0]

    assert first.fps == 10.0
    assert "folder.other_rate" in codes(first)


def test_a_rate_that_you_give_is_not_contradicted(tmp_path: Path) -> None:
    first = episodes(write_set(tmp_path, text=table(8, rate=10.0)), fps=30)[0]

    assert first.fps == 30.0
    assert "folder.other_rate" not in codes(first)


def test_a_missing_image_breaks_the_episode(tmp_path: Path) -> None:
    write_images(tmp_path / "e0/front", ["0.png", "1.png", "3.png", "4.png"])
    (tmp_path / "e0/robot.csv").write_text("q0,q1\n1,2\n3,4\n5,6\n7,8\n")

    with pytest.raises(DataError, match="number 2 is missing"):
        episodes(tmp_path)


def test_values_of_another_length_are_left_out_by_name(tmp_path: Path) -> None:
    write_set(tmp_path, frames=12)
    for number in range(2):
        (tmp_path / f"episode_{number}/events.csv").write_text("kind,size\n1,2\n3,4\n")

    parts = {part.path: part for part in episodes(tmp_path)[0].parts}

    assert parts["events.csv/size"].role == "left_out"
    assert parts["events.csv/size"].note == "it has 2 rows, the episode has 12 frames"


# Which files are an episode


@pytest.mark.parametrize("name", ["data.csv", "wrist.mp4"])
def test_an_episode_without_a_file_of_the_others_is_broken(name: str, tmp_path: Path) -> None:
    write_set(tmp_path, 3)
    (tmp_path / "episode_1" / name).unlink()
    reader = FolderReader(FolderConfig())
    refs = list(reader.discover([tmp_path]))

    assert len(refs) == 3
    with pytest.raises(DataError, match=f"has no {name}"):
        reader.read(refs[1])


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    for number in range(2):
        for name in (".DS_Store", "Thumbs.db", "._front.mp4"):
            (tmp_path / f"set/episode_{number}" / name).write_bytes(b"x")

    first = episodes(tmp_path / "set")[0]

    assert not [part for part in first.parts if part.role == "left_out"]


def test_a_table_beside_the_episodes_is_no_episode(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "labels.csv").write_text("episode,ok\n0,1\n1,0\n")
    reader = FolderReader(FolderConfig())

    assert [ref.id for ref in reader.discover([tmp_path])] == ["episode_0", "episode_1"]
    assert [finding.code for finding in reader.source_findings] == ["folder.stray_files"]


def test_a_folder_of_images_alone_stays_of_the_format_images(tmp_path: Path) -> None:
    write_images(tmp_path / "episode_0", ["0.png", "1.png"])

    assert detect_source(tmp_path, None).format == "images"


def test_a_table_beside_images_makes_it_a_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "episode_0", ["0.png", "1.png"])
    (tmp_path / "episode_0/states.csv").write_text("q0,q1\n1,2\n3,4\n")

    assert detect_source(tmp_path, None).format == "folder"


def placed(root: Path, names: list[str]) -> list[str]:
    """Ids of the episodes of files of these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            path.write_text(table(8))
        else:
            write_video(path, 8)
    return [ref.id for ref in FolderReader(FolderConfig()).discover([root])]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["data_0/a.mp4", "data_0/a.csv", "data_1/a.mp4", "data_1/a.csv"], ["data_0", "data_1"]),
        (
            [f"{name}/{file}" for name in ("open_top", "open_side") for file in ("a.mp4", "a.csv")],
            ["open_side", "open_top"],
        ),
        (["video_0.mp4", "video_1.mp4", "state_0.csv", "state_1.csv"], ["0", "1"]),
        (["clip_0.mp4", "clip_1.mp4", "traj_0.csv", "traj_1.csv"], ["0", "1"]),
        (["pick.mp4", "pick.csv", "place.mp4", "place.csv"], ["pick", "place"]),
        (["pick/pick.mp4", "pick/pick.csv", "put/put.mp4", "put/put.csv"], ["pick", "put"]),
        (["pick/a.mp4", "pick/a.csv", "put/a.mp4", "put/a.csv"], ["pick", "put"]),
        (["e_01.mp4", "e_1.csv", "e_02.mp4", "e_2.csv"], ["e_01", "e_02"]),
        (["videos/e0/a.mp4", "data/e0/a.csv", "videos/e1/a.mp4", "data/e1/a.csv"], ["e0", "e1"]),
        (["e0/front.mp4", "e0/kuka1.csv", "e0/kuka2.csv"], ["e0"]),
        (["e0/cam_1.mp4", "e0/cam_10.mp4", "e0/data.csv"], ["e0"]),
        (["Épisode 1/Caméra Haut.mp4", "Épisode 1/Données.csv"], ["pisode_1"]),
        (["e0/overview.mp4", "e0/robot_log.csv"], ["e0"]),
        (["p.mp4", "p.csv", "p_2.mp4", "p_2.csv"], ["p", "p_2"]),
        (
            ["a/data/e0/f.mp4", "a/data/e0/f.csv", "b/data/e0/f.mp4", "b/data/e0/f.csv"],
            ["a_data_e0", "b_data_e0"],
        ),
        (
            ["a/videos/e0.mp4", "a/data/e0.csv", "a/videos/e1.mp4", "a/data/e1.csv"],
            ["a_e0", "a_e1"],
        ),
        (
            [f"e_{e}_cam_{n}.mp4" for e in (0, 1) for n in (0, 1)] + ["e_0.csv", "e_1.csv"],
            ["e_0", "e_1"],
        ),
        (
            ["t/ep0/f.mp4", "t/ep0/f.csv", "t/ep1/f.mp4", "t/ep1/f.csv", "t/all.csv"],
            ["t_ep0", "t_ep1"],
        ),
    ],
)
def test_episodes_are_told_from_their_parts(
    names: list[str], found: list[str], tmp_path: Path
) -> None:
    assert placed(tmp_path, names) == found


def test_times_of_a_camera_are_those_with_its_whole_name(tmp_path: Path) -> None:
    for name, start in (("front", 0.0), ("front_left", 5.0)):
        write_video(tmp_path / f"e0/{name}.mp4", 8)
        rows = "\n".join(f"{start + step / 30}" for step in range(8))
        (tmp_path / f"e0/{name}_timestamps.csv").write_text(f"time\n{rows}\n")
    rows = [f"{5 + step / 30},{step},1" for step in range(8)]
    (tmp_path / "e0/d.csv").write_text("time,q0,q1\n" + "\n".join(rows) + "\n")

    assert [*episodes(tmp_path)[0].cameras] == ["front", "front_left"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("frame_index,q0,q1\n0,1,2\n2,3,4\n3,5,6\n", "frame_index is 2 after 0"),
        ("frame_index,q0,q1\n2,1,2\n1,3,4\n0,5,6\n", "frame_index is 1 after 2"),
        ("q0,q1\n", "has no column of numbers"),
        ("a,b\nx,y\nz,w\nv,u\n", "has no column of numbers"),
    ],
)
def test_a_table_that_says_that_rows_are_missing_breaks_the_episode(
    text: str, problem: str, tmp_path: Path
) -> None:
    write_set(tmp_path, frames=3, text=text)

    with pytest.raises(DataError, match=problem):
        episodes(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        [f"2024-05-01_10-00-0{second}.{part}00.png" for second in range(3) for part in (0, 5)],
        [f"170000000{second}_{part}00000000.png" for second in range(3) for part in (0, 5)],
    ],
)
def test_dates_in_names_of_images_are_times_of_one_camera(names: list[str], tmp_path: Path) -> None:
    write_images(tmp_path / "e0/front", names)
    (tmp_path / "e0/d.csv").write_text("q0,q1\n" + "1,2\n" * 6)

    first = episodes(tmp_path)[0]

    assert [*first.cameras] == ["front"]
    assert first.fps == 2.0


def test_outputs_of_commands_are_no_recordings(tmp_path: Path) -> None:
    write_set(tmp_path / "raw", frames=20)
    options = {"format": "folder", "sources": [str(tmp_path / "raw")], "sink": {"type": "frames"}}
    options |= {"output": str(tmp_path / "out/frames"), "workers": 1}
    preprocess(config_of(PreprocessConfig, options))

    with pytest.raises(DataError) as raised:
        detect_source(tmp_path / "out", None)
    assert raised.value.code == "data.no_episodes"


# Mappings


def test_a_mapping_names_fields_and_the_next_state_as_action(tmp_path: Path) -> None:
    write_set(tmp_path / "set", frames=8)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        "cameras: {scene: {video: front.mp4}}\nfields: {joints: data.csv/q}\n"
        "action_fields: [next(joints)]\nproprioception_fields: [joints]\n"
        "instruction: meta.json@instruction\nfps: meta.json@fps\n"
    )

    first = episodes(tmp_path / "set", mapping=str(mapping))[0]

    assert [*first.cameras] == ["scene"]
    assert first.action_fields == ("joints_next",)
    np.testing.assert_allclose(first.lowdim["joints_next"], joints(8)[1:, :6], atol=1e-6)


def test_a_wrong_path_of_a_mapping_lists_what_is_there(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("fields: {joints: data.csv/joints}\n")

    with pytest.raises(DataError, match=r"data\.csv/q"):
        episodes(tmp_path / "set", mapping=str(mapping))


def test_a_proposal_reads_as_it_is(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    proposal = FolderReader.propose(tmp_path / "set")
    assert proposal is not None
    (tmp_path / "mapping.yaml").write_text(proposal)

    first = episodes(tmp_path / "set", mapping=str(tmp_path / "mapping.yaml"))[0]

    assert first.action_fields == ("action",)
    assert [*first.cameras] == ["front", "wrist"]


# Files of an episode, whose change is noticed


def changed_states(source: Path, name: str, **keys: object) -> list[bool]:
    """Whether the input of each episode counts as changed after a file has become longer."""
    refs = folder_refs(source, **keys)
    before = [episode_state(ref).digest for ref in refs]
    (source / name).write_bytes((source / name).read_bytes() + b" ")
    return [episode_state(ref).digest != digest for ref, digest in zip(refs, before, strict=True)]


def stems(root: Path) -> Path:
    for number in range(3):
        write_video(root / f"take{number}.mp4", 8)
        (root / f"take{number}.csv").write_text(table(8, seed=number))
        (root / f"take{number}_meta.json").write_text('{"instruction": "lift"}')
    return root


@pytest.mark.parametrize("name", ["take1.mp4", "take1.csv", "take1_meta.json"])
def test_a_changed_file_changes_its_own_episode_alone(name: str, tmp_path: Path) -> None:
    assert changed_states(stems(tmp_path), name) == [False, True, False]


def test_a_changed_file_that_a_mapping_names_changes_all_episodes(tmp_path: Path) -> None:
    source = stems(tmp_path / "set")
    (source / "tasks.json").write_text('{"take0": "lift", "take1": "put", "take2": "push"}')
    mapping = tmp_path / "mapping.yaml"
    fields = "fields: {state: '{episode}.csv/q0'}\ncameras: {front: {path: '{episode}.mp4'}}\n"
    mapping.write_text(f"{fields}instruction: tasks.json@{{episode}}\n")
    assert changed_states(source, "tasks.json", mapping=str(mapping)) == [True] * 3


@pytest.mark.parametrize("has_facts", [False, True])
def test_the_work_per_episode_does_not_grow_with_the_episodes(
    has_facts: bool, tmp_path: Path
) -> None:
    calls: list[float] = []
    for count in (50, 200):
        for number in range(count):
            (tmp_path / f"take{number}.csv").write_text(table(2))
            if has_facts:
                (tmp_path / f"take{number}_meta.json").write_text("{}")
        profile = cProfile.Profile()
        profile.runcall(lambda: [*map(episode_state, folder_refs(tmp_path))])
        calls.append(sum(entry.callcount for entry in profile.getstats()) / count)
    assert calls[1] < 1.5 * calls[0]
