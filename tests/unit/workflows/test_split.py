"""`vlatool split`: lists of image shards, without reading images."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders.images import image_shards, window_tree
from vlatool.cli import app
from vlatool.datasets.image_shards.layout import read_list
from vlatool.errors import VlatoolError
from vlatool.storage.atomic import write_bytes
from vlatool.storage.remote_path import RemotePath
from vlatool.workflows.split import SplitConfig, split


def published(folder: Path, numbers: list[int]) -> Path:
    """Empty tar files with published names, and other files next to them."""
    for name in [*(f"train-episode_{number}.tar" for number in numbers), "other.tar", "notes.txt"]:
        write_bytes(folder / name, b"")
    return folder


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def split_error(**options: Any) -> VlatoolError:
    with pytest.raises(VlatoolError) as caught:
        split(SplitConfig(**options))
    return caught.value


def test_shards_are_sorted_by_their_numbers(tmp_path: Path) -> None:
    folder = published(tmp_path / "shards", [10, 9, 100, 1])

    result = split(SplitConfig(shards=str(folder), val_ratio=0.5))

    assert lines(folder / "val_files.txt") == ["train-episode_1.tar", "train-episode_10.tar"]
    assert lines(folder / "train_files.txt") == ["train-episode_9.tar", "train-episode_100.tar"]
    assert (result.train, result.val) == (2, 2)


@pytest.mark.parametrize("count", [2, 50])
def test_every_shard_is_in_one_list_and_a_pattern_selects_other_names(
    tmp_path: Path, count: int
) -> None:
    folder = published(tmp_path, list(range(count)))
    split(SplitConfig(shards=str(folder)))
    listed = [*lines(folder / "train_files.txt"), *lines(folder / "val_files.txt")]
    assert sorted(listed) == sorted(f"train-episode_{number}.tar" for number in range(count))
    for number in (3, 4):
        (folder / f"test-{number}.tar").touch()
    split(SplitConfig(shards=str(folder), file_pattern=r"^test-(\d+)\.tar$"))
    assert lines(folder / "val_files.txt") == ["test-3.tar"]


def test_the_split_equals_that_of_preprocess_and_needs_every_listed_shard(tmp_path: Path) -> None:
    tree = window_tree(tmp_path / "A", episodes=5, frames=1)
    image_shards(tree, tmp_path / "one", val_ratio=0.3)
    image_shards(tree, tmp_path / "two")

    split(SplitConfig(shards=str(tmp_path / "two"), val_ratio=0.3))

    for name in ("train_files.txt", "val_files.txt"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
        (tmp_path / "two" / name).unlink()
    next((tmp_path / "two").glob("*.tar")).unlink()
    assert split_error(shards=str(tmp_path / "two")).code == "data.missing"
    assert not (tmp_path / "two/train_files.txt").exists()


@pytest.mark.parametrize(
    ("train", "absolute", "line"),
    [
        ("lists/train.txt", False, "../shards/train-episode_2.tar"),
        ("train.txt", False, "shards/train-episode_2.tar"),
        ("train.txt", True, "{folder}/train-episode_2.tar"),
    ],
)
def test_paths_are_relative_to_their_list_unless_absolute_is_set(
    tmp_path: Path, train: str, absolute: bool, line: str
) -> None:
    folder = published(tmp_path / "shards", [1, 2])
    outputs = {"train_output": str(tmp_path / train), "val_output": str(tmp_path / "val.txt")}
    split(SplitConfig(shards=str(folder), absolute=absolute, **outputs))
    assert lines(tmp_path / train) == [line.format(folder=folder)]
    assert [path.resolve() for path in read_list(tmp_path / train)] == [
        folder / "train-episode_2.tar"
    ]


def test_the_published_command_works_with_its_own_option_names(tmp_path: Path) -> None:
    folder = published(tmp_path, [1, 2])
    names = [str(tmp_path / name) for name in ("t.txt", "v.txt")]
    words = ["--data_dir", str(folder), "--train_output", names[0], "--val_output", names[1]]
    assert app.run(["split", *words, "--val_ratio", "0.01", "-q"]) == 0
    assert lines(tmp_path / "v.txt") == ["train-episode_1.tar"]


def test_shards_in_s3_have_lists_there_and_here(tmp_path: Path, s3_bucket: str) -> None:
    folder = published(RemotePath(f"s3://{s3_bucket}/shards"), [1, 2])
    split(SplitConfig(shards=str(folder), val_output=str(tmp_path / "val.txt")))
    assert lines(folder / "train_files.txt") == ["train-episode_2.tar"]
    assert lines(tmp_path / "val.txt") == [f"{folder}/train-episode_1.tar"]
    assert read_list(tmp_path / "val.txt") == [folder / "train-episode_1.tar"]


class TestErrors:
    @pytest.mark.parametrize(
        ("numbers", "options", "code", "exit_code"),
        [
            ([7], {}, "data.no_samples", 3),
            ([], {}, "data.no_samples", 3),
            ([1], {"file_pattern": r"^(train).*\.tar$"}, "data.broken", 3),
            ([1, 2], {"train_output": "x.txt", "val_output": "x.txt"}, "usage.conflict", 2),
        ],
    )
    def test_shards_that_cannot_be_split(
        self,
        numbers: list[int],
        options: dict[str, str],
        code: str,
        exit_code: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        error = split_error(shards=str(published(tmp_path, numbers)), **options)
        assert (error.code, error.exit_code) == (code, exit_code)
        assert not list(tmp_path.glob("*_files.txt"))

    def test_a_file_that_is_not_a_list_is_not_replaced(self, tmp_path: Path) -> None:
        folder = str(published(tmp_path, [1, 2]))
        (tmp_path / "notes.txt").write_text("mine")
        error = split_error(shards=folder, val_output=str(tmp_path / "notes.txt"))
        assert (error.code, error.exit_code) == ("usage.output_exists", 2)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert not (tmp_path / "train_files.txt").exists()

    @pytest.mark.parametrize(
        "words", [["--val-ratio", "1"], ["--val-ratio", "0"], ["--file-pattern", "("]]
    )
    def test_invalid_values(self, tmp_path: Path, words: list[str]) -> None:
        assert app.run(["split", str(published(tmp_path, [1, 2])), *words, "-q"]) == 2
