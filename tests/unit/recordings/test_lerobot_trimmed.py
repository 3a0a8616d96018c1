"""LeRobot sets that were trimmed, copied or left unfinished by people and recorders."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.builders.errors import fails
from tests.builders.lerobot import encoded_image, frame_of, image, lerobot_dataset, write_video
from tests.builders.lerobot_shared import read_list, write_list
from tests.surface.invoke import run_vlatool
from vlatool.episode import Episode
from vlatool.recordings.detect import detect_source
from vlatool.recordings.lerobot.depth import code_millimeters
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.verify import InspectConfig, inspect

FRONT = "observation.images.front"
FRAMES = 12


def episodes(root: Path) -> list[Episode]:
    found = detect_source(root, None)
    return [found.reader.read(ref) for ref in found.refs]


def data_file(root: Path, number: int = 0) -> Path:
    return root / f"data/chunk-000/episode_{number:06d}.parquet"


def trim(root: Path, first: int) -> Path:
    """Deletes the first rows of the first episode, as pandas does; its video stays."""
    table = pq.read_table(data_file(root)).slice(first)
    pq.write_table(table, data_file(root))
    path = root / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["length"] = FRAMES - first
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_rows_after_deleted_ones_have_the_frames_of_their_times(tmp_path: Path) -> None:
    root = trim(lerobot_dataset(tmp_path / "set", (FRAMES, FRAMES)), 3)
    first = episodes(root)[0]
    assert first.num_frames == FRAMES - 3
    assert frame_of(first.cameras[FRONT].read([0])[0]) == 3
    assert [finding.code for finding in first.findings] == ["lerobot.rows_deleted"]


def test_the_last_row_without_a_frame_is_cut_and_counted(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (FRAMES, FRAMES))
    write_video(root / f"videos/chunk-000/{FRONT}/episode_000000.mp4", FRAMES - 1)
    first, second = episodes(root)
    assert (first.num_frames, first.cut_frames, second.cut_frames) == (FRAMES - 1, 1, 0)
    assert {len(values) for values in first.lowdim.values()} == {FRAMES - 1}


def test_a_copy_of_a_cut_episode_has_as_many_rows_as_frames(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (FRAMES, FRAMES))
    write_video(root / f"videos/chunk-000/{FRONT}/episode_000000.mp4", FRAMES - 1)
    config = PreprocessConfig.specialize({"format": "lerobot", "sink": "lerobot"})
    out = tmp_path / "out"
    preprocess(config(format="lerobot", sources=[str(root)], output=str(out), workers=1))
    first = episodes(out)[0]
    assert (first.num_frames, first.cut_frames) == (FRAMES - 1, 0)


def test_images_that_wait_for_their_video_are_read(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (4, 4), version="v3.0", per_file=1)
    columns = read_list(root)
    for name in columns:
        if name.startswith("videos/"):
            columns[name][1] = None
    write_list(root, columns)
    folder = root / f"images/{FRONT}/episode-000001"
    folder.mkdir(parents=True)
    for frame in range(4):
        (folder / f"frame-{frame:06d}.png").write_bytes(encoded_image(frame + 20))
    last = episodes(root)[1]
    assert np.array_equal(last.cameras[FRONT].read([3])[0], image(23))


def test_two_sessions_in_one_folder_are_to_be_read_apart(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (4, 4), version="v3.0", per_file=1)
    listed = next((root / "meta/episodes").rglob("*.parquet"))
    (listed.parent / "file-001.parquet").write_bytes(listed.read_bytes())
    with fails("data.broken") as raised:
        episodes(root)
    assert "preprocess lerobot A B" in raised.value.hint


def test_bytes_of_links_count_once(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "cache/snapshots/aaaa", (4,))
    whole = inspect(InspectConfig(location=str(root))).report.facts["bytes"]
    blobs = tmp_path / "cache/blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(root.rglob("*.*"))):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    facts = inspect(InspectConfig(location=str(tmp_path / "cache"))).report.facts
    assert (facts["episodes"], facts["bytes"]) == (1, whole)


def test_a_folder_above_a_cache_of_the_hub_is_its_newest_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "hub/datasets--user--pick"
    lerobot_dataset(cache / "snapshots/aaaa", (4,))
    lerobot_dataset(cache / "snapshots/bbbb", (6,))
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("aaaa")
    assert [episode.num_frames for episode in episodes(tmp_path)] == [4]
    (cache / "refs/main").write_text("bbbb")
    assert [episode.num_frames for episode in episodes(tmp_path)] == [6]


@pytest.mark.parametrize("name", ["seg_instance_id.head", "front.mask", "labels"])
def test_a_video_of_labels_is_no_color_camera(tmp_path: Path, name: str) -> None:
    labels = f"observation.images.{name}"
    root = lerobot_dataset(tmp_path / "set", (4,), cameras={FRONT: "video", labels: "video"})
    episode = episodes(root)[0]
    assert [*episode.cameras] == [FRONT]
    assert [part.path for part in episode.parts if part.role == "left_out"] == [labels]


def test_codes_of_16_bits_and_an_option_for_their_range() -> None:
    quantizer = {"depth_min": 0.0, "depth_max": 10.0, "shift": 3.5, "use_log": True}
    millimeters = code_millimeters(quantizer, 16)
    assert len(millimeters) == 2**16
    assert (millimeters[0], millimeters[-1]) == (0, 10_000)
    assert (np.diff(millimeters[1:].astype(int)) >= 0).all()


def of_two_sizes(root: Path) -> Path:
    """Two episodes of a folder whose camera has other sizes in each."""
    for number, size in enumerate(((32, 32), (40, 48))):
        images = root / f"episode_{number}/front"
        images.mkdir(parents=True)
        rows = np.linspace(0, 1, 12).reshape(4, 3)
        text = "\n".join(",".join(map(str, (*row, *row))) for row in rows)
        (images.parent / "data.csv").write_text(f"q0,q1,q2,action0,action1,action2\n{text}\n")
        for frame in range(4):
            Image.fromarray(image(frame, *size)).save(images / f"{frame:06d}.png")
    return root


def test_images_of_several_sizes_are_told_before_work(tmp_path: Path) -> None:
    words = ["folder", str(of_two_sizes(tmp_path / "in")), "--sink", "lerobot", "--fps", "10"]
    out = tmp_path / "out"
    assert run_vlatool("preprocess", *words, "-o", str(out))[0] == 3
    assert not out.exists()
    assert run_vlatool("preprocess", *words, "-o", str(out), "--resize-images-size", "24")[0] == 0
    assert {episode.cameras[FRONT].size for episode in episodes(out)} == {(24, 24)}
