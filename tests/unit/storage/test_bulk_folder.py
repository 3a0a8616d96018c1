"""Atomic folders of many files."""

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest

from vlatool.errors import StorageError
from vlatool.storage.atomic import bulk_folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_when_the_block_ends(tmp_path: Path) -> None:
    with bulk_folder(tmp_path / "deep/a") as folder:
        folder.write("one", b"1")
        assert not (tmp_path / "deep/a").exists()
    assert names(tmp_path) == {"deep/a/one"}


def test_sizes_and_digests_are_those_of_the_files(tmp_path: Path) -> None:
    with bulk_folder(tmp_path / "a") as folder:
        folder.write("one", b"12")
    assert folder.files == {"one": (2, hashlib.sha256(b"12").hexdigest())}


def test_existing_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").touch()
    with bulk_folder(tmp_path / "a") as folder:
        folder.write("new", b"")
    assert names(tmp_path) == {"a/new"}


def test_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with suppress(KeyError), bulk_folder(tmp_path / "a") as folder:
        folder.write("one", b"1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught, bulk_folder(tmp_path / "file/a"):
        pass
    assert caught.value.code == "storage.write"
