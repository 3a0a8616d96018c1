from pathlib import Path

import pytest

from vlatool.errors import DataError, StorageError
from vlatool.recordings.spartan.config import language_annotations


def load(folder: Path, text: str) -> dict[str, dict[str, list[str]]]:
    path = folder / "annotations.yaml"
    path.write_text(text)
    return language_annotations(str(path))


def test_missing_file_is_a_data_error_and_an_unreadable_one_a_storage_error(
    tmp_path: Path,
) -> None:
    assert language_annotations(None) == {}
    with pytest.raises(DataError) as missing:
        language_annotations(str(tmp_path / "missing.yaml"))
    assert missing.value.code == "data.broken"
    with pytest.raises(StorageError) as caught:
        language_annotations(str(tmp_path))
    assert caught.value.exit_code == 5


def test_known_kinds_are_exported_in_their_order(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "language_dict: {Task: {verbose: [c], other: [x], original: [a, b], randomized: []}}",
    )

    assert list(loaded["Task"].items()) == [("original", ["a", "b"]), ("verbose", ["c"])]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("language_dict: [a]", "language_dict"),
        ("a: [", "cannot be read"),
        ("language_dict: {Stack: [a]}", "Stack"),
        ("language_dict: {Stack: {original: do it}}", "Stack, kind original"),
        ("language_dict: {Stack: {original: [1]}}", "Stack, kind original"),
        ("language_dict: {Stack: {original: {a: b}}}", "Stack, kind original"),
    ],
)
def test_broken_file_is_rejected_with_its_location(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, text)

    assert (caught.value.code, caught.value.exit_code) == ("data.broken", 3)
    assert named in caught.value.message
