"""Tables with several episodes: their images, their ends, and the names of their columns."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.builders.errors import fails
from tests.builders.folder import image, joints, table, write_images, write_video
from vlatool.episode import Episode
from vlatool.media.images import encode_png
from vlatool.recordings.cuts import find_cuts
from vlatool.recordings.detect import detect_source
from vlatool.recordings.inventory import Stored, decide, is_action
from vlatool.workflows.preprocess import PreprocessConfig

FRAMES = 8


def episodes(root: Path) -> list[Episode]:
    found = detect_source(root, None)
    return [found.reader.read(ref) for ref in found.refs]


def numbered(root: Path) -> None:
    """A table of two episodes by the column `episode`."""
    root.mkdir(parents=True)
    lines = table(2 * FRAMES).splitlines()
    rows = [f"{line},{row // FRAMES}" for row, line in enumerate(lines[1:])]
    (root / "data.csv").write_text("\n".join([f"{lines[0]},episode", *rows]) + "\n")


def test_images_of_a_parquet_file_follow_lists(tmp_path: Path) -> None:
    pictures = [encode_png(image(row)) for row in range(FRAMES)]
    columns = {"action": list(joints(FRAMES)), "image": pictures}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert [*episodes(tmp_path)[0].cameras] == ["image"]


def test_images_of_an_archive_are_cut_by_its_list_of_ends(tmp_path: Path) -> None:
    pictures = np.stack([image(row) for row in range(2 * FRAMES)])
    values = joints(2 * FRAMES)
    ends = np.array([FRAMES, 2 * FRAMES])
    np.savez(tmp_path / "a.npz", state=values, action=values, img=pictures, episode_ends=ends)
    second = episodes(tmp_path)[1]
    assert np.array_equal(second.cameras["img"].read([1])[0], image(FRAMES + 1))


def test_a_video_of_one_episode_is_not_used_for_all(tmp_path: Path) -> None:
    numbered(tmp_path / "in")
    for number in range(2):
        write_video(tmp_path / "in" / f"ep{number}.mp4", FRAMES - number)
    with fails("data.broken", 3) as raised:
        episodes(tmp_path / "in")
    assert raised.value.details["finding"] == "shared_video"


def test_images_that_a_table_names_for_another_episode_are_no_camera(tmp_path: Path) -> None:
    numbered(tmp_path / "in")
    names = [f"{row:03d}.png" for row in range(2 * FRAMES)]
    write_images(tmp_path / "in" / "shots", names)
    lines = (tmp_path / "in" / "data.csv").read_text().splitlines()
    rows = [f"{line},shots/{name}" for line, name in zip(lines[1:], names, strict=True)]
    (tmp_path / "in" / "data.csv").write_text("\n".join([f"{lines[0]},front", *rows]) + "\n")
    assert [[*each.cameras] for each in episodes(tmp_path / "in")] == [["front"], ["front"]]


@pytest.mark.parametrize("name", ["trial", "session", "attempt"])
def test_other_words_for_an_episode_cut(name: str) -> None:
    cuts = find_cuts({name: np.repeat([0, 1, 2], FRAMES)}, 3 * FRAMES)
    assert cuts is not None
    assert cuts.stops == (FRAMES, 2 * FRAMES, 3 * FRAMES)


@pytest.mark.parametrize("name", ["prev_action", "obs/last_actions", "previous.action"])
def test_an_earlier_action_is_no_command(name: str) -> None:
    assert not is_action(name)


def test_columns_with_their_number_in_the_middle_are_one_field(tmp_path: Path) -> None:
    values = joints(FRAMES)
    names = [*(f"q{number}" for number in range(7)), *(f"q{number}_target" for number in range(7))]
    rows = np.hstack([values, np.vstack([values[1:], values[-1:]])])
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header=",".join(names), comments="")
    assert episodes(tmp_path)[0].action_fields == ("q_target",)


def test_an_attribute_states_the_rate(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["action"] = file["qpos"] = joints(FRAMES)
        file.attrs["fps"] = 25
    assert episodes(tmp_path)[0].fps == 25


def test_a_mapping_tells_the_format_of_a_layout_that_nobody_knows(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["follower/joints"] = joints(FRAMES)
    (tmp_path / "m.yaml").write_text('fields: {q: "follower/joints"}\n')
    tree = {"sources": [str(tmp_path)], "mapping": str(tmp_path / "m.yaml")}
    assert PreprocessConfig.specialize(tree).model_fields["format"].default == "hdf5"


def test_texts_of_hdf5_name_its_episodes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["action"] = file["qpos"] = joints(2 * FRAMES)
        file["episode_name"] = np.repeat([b"first", b"second"], FRAMES)
    assert [each.num_frames for each in episodes(tmp_path)] == [FRAMES, FRAMES]


def test_a_period_states_the_rate(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["action"] = file["qpos"] = joints(FRAMES)
        file.attrs["dt"] = 0.02
    assert episodes(tmp_path)[0].fps == 50


def test_a_row_without_the_name_of_its_episode_is_an_error() -> None:
    with pytest.raises(ValueError, match="row 8"):
        find_cuts({"episode": np.repeat([0, np.nan], FRAMES)}, 2 * FRAMES)


def test_numbers_of_rows_that_begin_again_are_an_error(tmp_path: Path) -> None:
    numbered(tmp_path / "in")
    text = (tmp_path / "in" / "data.csv").read_text().replace("timestamp", "x").splitlines()
    rows = [f"{line.rpartition(',')[0]},{row % FRAMES}" for row, line in enumerate(text[1:])]
    head = text[0].replace("episode", "step")
    (tmp_path / "in" / "data.csv").write_text("\n".join([head, *rows]) + "\n")
    with fails("data.broken", 3) as raised:
        episodes(tmp_path / "in")
    assert raised.value.details["finding"] == "times_backwards"


def test_a_column_that_names_episodes_is_no_field_of_some_of_them(tmp_path: Path) -> None:
    numbered(tmp_path / "in")
    (tmp_path / "in" / "data.csv").rename(tmp_path / "in" / "a.csv")
    lines = (tmp_path / "in" / "a.csv").read_text().splitlines()
    (tmp_path / "in" / "b.csv").write_text("\n".join(lines[: FRAMES + 1]) + "\n")
    assert len({frozenset(each.lowdim) for each in episodes(tmp_path / "in")}) == 1


@pytest.mark.parametrize("name", ["semantic", "front_instance"])
def test_gray_images_named_as_labels_are_labels(name: str) -> None:
    stored = Stored(name, "png", (8, 8), "uint8", FRAMES)
    assert decide(stored).role == "labels"
