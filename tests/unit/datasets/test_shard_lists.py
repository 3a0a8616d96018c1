"""Lists, patterns and folders of shards."""

from pathlib import Path

import pytest

from vlatool.datasets.image_shards import layout as image_shards
from vlatool.datasets.image_shards.layout import expand_braces, find_shards, validation_positions
from vlatool.errors import DataError


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a}{}", ["{a}{}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_expanded(pattern: str, texts: list[str]) -> None:
    assert list(expand_braces(pattern)) == texts


def tars(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"s-{number}.tar").touch()
    (folder / "readme.md").touch()
    return folder


def names(text: object, split: str = "train") -> list[str]:
    return [path.name for path in find_shards(str(text), split)]  # pyright: ignore[reportArgumentType]


def test_folder_selects_the_tars_of_the_split_or_all_without_lists(tmp_path: Path) -> None:
    folder = tars(tmp_path / "a")
    assert names(folder) == ["s-0.tar", "s-1.tar", "s-2.tar"]
    (folder / "train_files.txt").write_text("s-2.tar\n\ns-0.tar\n")
    with pytest.raises(DataError) as caught:
        find_shards(str(folder), "val")
    assert caught.value.code == "data.no_samples"
    (folder / "val_files.txt").write_text("s-1.tar\n")
    assert names(folder) == ["s-2.tar", "s-0.tar"]
    assert names(folder, "val") == ["s-1.tar"]


def test_wildcards_are_expanded_in_folders(tmp_path: Path) -> None:
    tars(tmp_path / "a")
    tars(tmp_path / "b", 1)
    assert names(f"{tmp_path}/*/s-[01].tar") == ["s-0.tar", "s-1.tar", "s-0.tar"]


def test_paths_of_a_list_are_relative_to_it_or_to_the_working_directory_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tars(tmp_path / "a")
    for path in (tmp_path / "list.txt", folder / "list.txt"):
        path.write_text("a/s-1.tar\n")
    assert find_shards(str(tmp_path / "list.txt")) == [folder / "s-1.tar"]
    monkeypatch.chdir(tmp_path)
    assert find_shards("a/list.txt") == [Path("a/s-1.tar")]


@pytest.mark.parametrize(
    ("line", "code"), [("s-0.zip", "broken"), ("", "no_samples"), ("\udcff", "broken")]
)
def test_list_that_names_no_shards_is_refused(tmp_path: Path, line: str, code: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        find_shards(str(path))
    assert caught.value.code == f"data.{code}"


def test_pattern_of_too_many_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_shards, "_MAX_SHARDS", 1000)
    with pytest.raises(DataError) as caught:
        find_shards("a-{0..99999999999}.tar")
    assert caught.value.code == "data.mismatch"


# split of shards


@pytest.mark.parametrize(
    ("count", "ratio", "expected"),
    [
        (1, 0.01, [0]),
        (2, 0.01, [0]),
        (50, 0.01, [0]),
        (150, 0.01, [0, 75]),
        (1693, 0.01, list(range(0, 1585, 99))),
        (0, 0.5, []),
        (5, 0.3, [0, 2]),
        (5, 0.5, [0, 1, 2]),
        (2, 0.99, [0, 1]),
        (100, 0.01, [0]),
    ],
)
def test_ratio_is_spread_evenly_and_takes_the_next_whole_number(
    count: int, ratio: float, expected: list[int]
) -> None:
    assert validation_positions(count, ratio) == expected
