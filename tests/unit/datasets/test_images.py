"""Folders of images as episodes."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.builders.codes import CAMERAS, published_windows
from tests.builders.images import HEIGHT, WIDTH, image, saved, window_tree, write
from tests.builders.lerobot import lerobot_dataset
from tests.builders.spartan import spartan_task
from vlatool.datasets.image_shards.images_reader import CAMERA, ImagesConfig, ImagesReader
from vlatool.datasets.jsonl.layout import WindowManifest, write_manifest
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.recordings.detect import detect_source
from vlatool.testing.readers import check_reader


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return window_tree(tmp_path / "A", episodes=2, frames=2)


def read(source: Path, **keys: object) -> list[Episode]:
    reader = ImagesReader(ImagesConfig.model_validate(keys))
    return [reader.read(ref) for ref in reader.discover([source])]


def codes(source: Path, *, deep: bool = False) -> Counter[str]:
    """Number of findings of a source per code."""
    reader = ImagesReader(ImagesConfig())
    refs = list(reader.discover([source]))
    findings = [
        *reader.source_findings,
        *(finding for ref in refs for finding in reader.check(ref, deep=deep)),
    ]
    return Counter(finding.code for finding in findings)


def test_reader_passes_the_contract_checks_and_a_good_tree_has_no_findings(tree: Path) -> None:
    check_reader(ImagesReader, tree)
    assert codes(tree, deep=True) == {}


@pytest.mark.parametrize("subfolder", ["", "images"])
def test_episodes_are_in_the_folder_or_in_its_images(tree: Path, subfolder: str) -> None:
    episodes = read(tree / subfolder)

    assert [episode.id for episode in episodes] == ["episode_000000", "episode_000001"]
    assert {episode.task for episode in episodes} == {"A"}
    assert [episode.num_frames for episode in episodes] == [4, 4]


def test_frames_are_in_the_order_of_names_and_episodes_in_that_of_numbers(tmp_path: Path) -> None:
    names = ["a_10.png", "B_1.PNG", "a_2.png"]
    for number, name in enumerate(names):
        write(tmp_path, f"episode_9/{name}", saved(image(number)))
    write(tmp_path, "episode_10/a.png", saved(image(3)))

    episode, _ = read(tmp_path)

    assert episode.frame_metadata["file"] == ("B_1.PNG", "a_10.png", "a_2.png")
    expected = np.stack([np.asarray(image(number)) for number in (1, 0, 2)])
    assert np.array_equal(episode.cameras[CAMERA].read([0, 1, 2]), expected)
    refs = list(ImagesReader(ImagesConfig()).discover([tmp_path]))
    assert [ref.number for ref in refs] == [9, 10]
    (single,) = read(tmp_path / "episode_9")
    assert (single.id, single.num_frames) == ("episode_9", 3)


def test_other_extensions_can_be_named_and_a_folder_without_images_has_no_episodes(
    tree: Path, tmp_path: Path
) -> None:
    write(tree, "images/episode_000000/x.tiff", saved(image(0), "TIFF"))
    assert [episode.num_frames for episode in read(tree, extensions=["TIFF", ".png"])] == [5, 4]

    write(tmp_path / "empty", "episode_000000/notes.txt")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "empty")
    assert caught.value.code == "data.no_episodes"


def test_images_of_other_sizes_are_read_one_at_a_time(tree: Path) -> None:
    write(tree, "images/episode_000000/z.png", saved(image(0, 8, 8)))
    camera = read(tree)[0].cameras[CAMERA]
    assert camera.read([4]).shape == (1, 8, 8, 3)
    assert camera.size == (HEIGHT, WIDTH)
    with pytest.raises(DataError) as caught:
        camera.read([3, 4])
    assert caught.value.code == "data.broken"


class TestFindings:
    def add_file(self, tree: Path, name: str, content: bytes = b"") -> Path:
        return write(tree, f"images/episode_000000/{name}", content)

    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [
            (".DS_Store", b"", "hidden_files"),
            ("x.png.tmp", b"", "hidden_files"),
            ("notes.txt", b"", "other_files"),
            ("z.png", b"", "picture_unreadable"),
            ("z.png", saved(image(0))[:99], "picture_unreadable"),
            ("z.png", saved(image(0).convert("L")), "not_rgb"),
            ("z.png", saved(image(0).convert("RGBA")), "not_rgb"),
            ("z.png", saved(image(0, 9, 9)), "mixed_sizes"),
            ("z.png", saved(image(0), save_all=True, append_images=[image(1)]), "several_frames"),
        ],
    )
    def test_other_files_are_counted_and_each_defect_of_an_image_has_a_code(
        self, tree: Path, name: str, content: bytes, code: str
    ) -> None:
        self.add_file(tree, name, content)
        assert codes(tree) == {f"images.{code}": 1}

    def test_link_to_an_image_is_read_and_a_broken_one_reported(self, tree: Path) -> None:
        target = self.add_file(tree, "y.png", saved(image(0)))
        os.symlink(target, tree / "images/episode_000000/z.png")
        assert read(tree)[0].num_frames == 6
        assert codes(tree) == {}
        os.symlink(tree / "nothing.png", tree / "images/episode_000000/zz.png")
        assert codes(tree) == {"images.missing_file": 1}

    def test_file_over_the_limit_is_reported(self, tree: Path) -> None:
        os.truncate(self.add_file(tree, "z.png"), 2**28 + 1)  # sparse file, no bytes on disk
        assert codes(tree) == {"images.picture_too_large": 1}

    def test_episode_without_images_is_reported(self, tree: Path) -> None:
        write(tree, "images/episode_000007/notes.txt")
        assert codes(tree) == {"images.other_files": 1, "images.no_pictures": 1}

    def test_pixels_of_a_jpeg_are_checked_with_full(self, tree: Path) -> None:
        self.add_file(tree, "z.jpg", saved(image(0), "JPEG")[:-40])
        assert codes(tree) == {}
        assert codes(tree, deep=True) == {"pictures.unreadable": 1}


class TestDetection:
    def test_images_are_detected_unless_they_are_beside_recordings(
        self, tree: Path, tmp_path: Path
    ) -> None:
        assert detect_source(tree, None).format == "images"

        source = lerobot_dataset(tmp_path / "pick", [3], cameras={})
        write(source, "preview.png", saved(image(0)))
        assert detect_source(source, None).format == "lerobot"

        source = spartan_task(tmp_path / "raw", 1, 2)
        folder = next(source.rglob("episode_*")).parent
        assert detect_source(folder, None).format == "spartan"
        shutil.rmtree(folder)


@pytest.mark.parametrize("subfolder", ["", "images", "images/episode_000001"])
@pytest.mark.parametrize(
    "removed",
    [
        "images/episode_000001/*_frame_000003.png",
        "images/episode_000001/X_image_episode_000001_frame_000001.png",
        "images/episode_000001",
    ],
)
def test_images_that_the_manifest_of_windows_counts_are_missed(
    tmp_path: Path, removed: str, subfolder: str
) -> None:
    tree = published_windows(tmp_path / "A", 2, 4)
    steps = (16, 16, "both", None, 2, 8, 16, 16, 16)
    write_manifest(tree, WindowManifest(("X",), CAMERAS, 10.0, (), (), 7, *steps))
    assert [len(episode.cameras[CAMERA]) for episode in read(tree)] == [8, 8]
    for path in tree.glob(removed):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not (tree / subfolder).is_dir():
        return  # an error of the source
    *_, last = ImagesReader(ImagesConfig()).discover([tree / subfolder])
    with pytest.raises(DataError) as caught:
        ImagesReader(ImagesConfig()).read(last)
    assert (last.id[-14:], caught.value.code) == ("episode_000001", "data.missing")


def test_without_an_index_of_lines_gaps_are_found(tmp_path: Path) -> None:
    tree = published_windows(tmp_path / "A", 1, 4)
    steps = (16, 16, "both", None, 1, 4, 8, 8, 8)
    write_manifest(tree, WindowManifest(("X",), CAMERAS, 10.0, (), (), 7, *steps))
    (tree / "data/episode_000000.index.npz").unlink()
    (tree / "images/episode_000000/X_wrist_image_episode_000000_frame_000001.png").unlink()
    with pytest.raises(DataError) as caught:
        read(tree)
    assert caught.value.details["pictures"] == ["X_wrist_image_episode_000000_frame_000001.png"]
