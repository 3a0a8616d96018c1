"""Codes of images: both layouts hold the same codes, and errors name the image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import codes_of, read_json_codes, tokenizer_digest, write_tree_codes
from vlatool.datasets.codes.layout import (
    CodesFolder,
    CodesLayout,
    EpisodeCodes,
    is_codes,
    parse_codes,
    write_codes,
)
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.tokens.build import select_codes

STEMS = ("X_image_episode_000000_frame_000000", "X_image_episode_000000_frame_000001")
GOOD = list(range(32))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folder with empty images of two episodes."""
    for episode in ("episode_000000", "episode_000001"):
        folder = tmp_path / "A/images" / episode
        folder.mkdir(parents=True)
        for stem in STEMS:
            (folder / f"{stem}.png").touch()
    return tmp_path / "A"


def error_of(folder: Path, episode: str = "episode_000000", **options: Any) -> VlatoolError:
    with pytest.raises(VlatoolError) as caught:
        CodesFolder.open(folder).read(episode, **options)
    return caught.value


def file_of(folder: Path) -> Path:
    return folder / "episode_000000" / f"{STEMS[0]}.json"


def test_published_files_hold_lists_of_one(tree: Path) -> None:
    path = file_of(write_tree_codes(tree, "json"))
    assert path.relative_to(tree).as_posix() == f"TiToken/episode_000000/{STEMS[0]}.json"
    value = json.loads(path.read_text())
    assert np.shape(value) == (32, 1)
    assert read_json_codes(path) == codes_of(STEMS[0]).tolist()


def test_nested_and_flat_lists_give_the_same_codes() -> None:
    assert parse_codes([[code] for code in GOOD]).tolist() == parse_codes(GOOD).tolist() == GOOD


@pytest.mark.parametrize(
    "value",
    [
        GOOD[:-1],
        [*GOOD, 0],
        [*GOOD[:-1], 4096],
        [*GOOD[:-1], -1],
        [*GOOD[:-1], 1.0],
        [*GOOD[:-1], "7"],
        [*GOOD[:-1], True],
        [*GOOD[:-1], None],
        [[code, code] for code in GOOD],
        [[[code]] for code in GOOD],
        [GOOD],
        {"codes": GOOD},
        None,
    ],
    ids=str,
)
def test_anything_but_32_codes_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_codes(value)


def test_both_layouts_hold_the_same_codes(tree: Path) -> None:
    folders = [CodesFolder.open(write_tree_codes(tree, layout)) for layout in ("json", "packed")]
    for episode in ("episode_000000", "episode_000001"):
        first, second = (folder.read(episode) for folder in folders)
        assert first.stems == second.stems == STEMS
        np.testing.assert_array_equal(first.codes, second.codes)
        assert first.digest == second.digest
    assert folders[0].manifest.digest == folders[1].manifest.digest
    assert [folder.episodes() for folder in folders] == [["episode_000000", "episode_000001"]] * 2


def test_packed_codes_are_small_integers_in_equal_bytes(tmp_path: Path) -> None:
    codes = EpisodeCodes.of("episode_000000", {stem: codes_of(stem) for stem in STEMS})
    entries = [write_codes(tmp_path / name, "packed", codes, "d") for name in "ab"]
    arrays = np.load(tmp_path / "a/episode_000000.npz", allow_pickle=False)
    assert entries[0] == entries[1]
    assert (arrays["codes"].dtype, arrays["codes"].shape) == (np.uint16, (2, 32))
    assert tuple(arrays["stems"]) == STEMS


def test_a_folder_is_read_without_digests_of_episodes_and_without_a_manifest(tree: Path) -> None:
    folder = write_tree_codes(tree, "json")
    content = json.loads((folder / "manifest.json").read_text())
    del content["episode_digests"]
    (folder / "manifest.json").write_text(json.dumps(content))
    assert CodesFolder.open(folder).read("episode_000000").stems == STEMS

    (folder / "manifest.json").unlink()
    opened = CodesFolder.open(folder)
    assert (opened.layout, opened.has_manifest) == ("json", False)
    assert opened.read("episode_000000").codes.shape == (2, 32)


@pytest.mark.parametrize("layout", ["json", "packed"])
def test_an_image_or_episode_without_codes_is_named(tree: Path, layout: CodesLayout) -> None:
    folder = write_tree_codes(tree, layout)
    error = error_of(folder, stems=[STEMS[0], "other"])
    assert (error.code, error.details["pictures"]) == ("data.missing", ["other"])
    assert "other" in error.message
    error = error_of(folder, "episode_000009")
    assert (error.code, error.details["episode"]) == ("data.missing", "episode_000009")


@pytest.mark.parametrize("text", ["[[1]]", "", "[[1", json.dumps([*GOOD[:-1], 5000])])
def test_a_broken_file_is_named(tree: Path, text: str) -> None:
    folder = write_tree_codes(tree, "json")
    file_of(folder).write_text(text)
    error = error_of(folder)
    assert (error.code, error.details["picture"]) == ("data.broken", STEMS[0])


def test_a_packed_code_out_of_range_names_its_image_and_a_torn_file_is_refused(tree: Path) -> None:
    folder = write_tree_codes(tree, "packed")
    codes = EpisodeCodes("episode_000000", STEMS, np.array([GOOD, [*GOOD[:-1], 4096]], np.uint16))
    write_codes(folder, "packed", codes, tokenizer_digest("builder"))
    error = error_of(folder)
    assert (error.code, error.details["picture"]) == ("data.broken", STEMS[1])
    path = folder / "episode_000000.npz"
    path.write_bytes(path.read_bytes()[:-30])
    assert error_of(folder).code == "data.broken"


def test_codes_of_another_tokenizer_than_the_manifest_says_are_refused(tree: Path) -> None:
    folder = write_tree_codes(tree, "packed")
    other = write_tree_codes(tree, "packed", folder=tree / "other", name="another")
    (other / "episode_000000.npz").replace(folder / "episode_000000.npz")
    assert error_of(folder).code == "data.mismatch"
    assert CodesFolder.open(folder).read("episode_000001").stems == STEMS


@pytest.mark.parametrize(
    "change",
    [{"version": 9}, {"layout": "tar"}, {"codebook_size": 0}, {"pictures": "many"}],
    ids=str,
)
def test_an_invalid_manifest_is_refused(tree: Path, change: dict[str, Any]) -> None:
    path = write_tree_codes(tree, "packed") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert error_of(path.parent).code == "data.broken"
    assert is_codes(path.parent)


def test_packed_codes_are_preferred_if_both_are_of_one_tokenizer(tree: Path) -> None:
    with pytest.raises(DataError) as missing:
        select_codes(tree)
    assert missing.value.code == "data.missing"

    path = write_tree_codes(tree, "json") / "manifest.json"
    write_tree_codes(tree, "packed")
    assert select_codes(tree).path == tree / "tokens"
    assert select_codes(tree, tree / "TiToken").layout == "json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": "renamed"}))
    assert select_codes(tree).path == tree / "tokens", "a renamed tokenizer is the same"

    write_tree_codes(tree, "packed", name="another")
    with pytest.raises(UsageError) as caught:
        select_codes(tree)
    assert caught.value.code == "usage.conflict"


@pytest.mark.parametrize("layout", ["json", "packed"])
@pytest.mark.parametrize("stems", [None, STEMS[1:]])
def test_replaced_codes_are_an_error_of_their_episode(
    tree: Path, layout: CodesLayout, stems: Any
) -> None:
    folder = write_tree_codes(tree, layout)
    codes = EpisodeCodes("episode_000000", STEMS, np.array([GOOD, GOOD], np.uint16))
    write_codes(folder, layout, codes, tokenizer_digest("builder"))
    error = error_of(folder, stems=stems)
    assert (error.code, error.details["episode"]) == ("data.wrong_digest", "episode_000000")
    assert CodesFolder.open(folder).read("episode_000001").stems == STEMS


def test_codes_that_the_manifest_does_not_list_are_an_error(tree: Path) -> None:
    folder = write_tree_codes(tree, "packed")
    codes = EpisodeCodes("episode_000002", STEMS, np.array([GOOD, GOOD], np.uint16))
    write_codes(folder, "packed", codes, tokenizer_digest("builder"))
    assert error_of(folder, "episode_000002").code == "data.wrong_digest"
