"""Atomic folders of many files."""

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest

from vlatool.errors import StorageError
from vlatool.storage.atomic import bulk_folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_and_replace_a_folder_when_the_block_ends_without_error(
    tmp_path: Path,
) -> None:
    with suppress(KeyError), bulk_folder(tmp_path / "deep/a") as folder:
        folder.write("one", b"1")
        raise KeyError
    assert names(tmp_path) == set()
    (tmp_path / "deep/a").mkdir(parents=True)
    (tmp_path / "deep/a/old").touch()
    with bulk_folder(tmp_path / "deep/a") as folder:
        folder.write("one", b"12")
        assert names(tmp_path / "deep/a") == {"old"}
    assert names(tmp_path) == {"deep/a/one"}
    assert folder.files == {"one": (2, hashlib.sha256(b"12").hexdigest())}


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught, bulk_folder(tmp_path / "file/a"):
        pass
    assert caught.value.code == "storage.write"
