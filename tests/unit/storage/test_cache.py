"""Copies of files in a folder shared by processes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.errors import fails
from vlatool.errors import StorageError
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder


def version(path: Path, size: int = 10) -> FileVersion:
    path.write_bytes(path.name.encode().ljust(size, b"."))
    return FileVersion.of(path)


def copies(cache: FileCache) -> int:
    return len(list(cache.folder.glob("*.copy")))


def counting(calls: list[str]) -> Callable[[], bytes]:
    def make() -> bytes:
        calls.append("call")
        return b"content"

    return make


def test_copy_of_each_version_of_a_file_is_made_once(tmp_path: Path) -> None:
    file, cache = version(tmp_path / "a"), FileCache(tmp_path / "cache")
    for _ in range(2):
        with cache.open_copy(file) as copy:
            assert copy.read() == b"a........."
        (tmp_path / "a").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        FileVersion.of(tmp_path / "a")
    assert version(tmp_path / "a").name != file.name


def test_a_torn_copy_is_made_again(tmp_path: Path) -> None:
    file, cache = version(tmp_path / "a"), FileCache(tmp_path / "cache")
    cache.open_copy(file).close()
    (cache.folder / f"{file.name}.copy").write_bytes(b"")
    with cache.open_copy(file) as copy:
        assert copy.read() == b"a........."


def test_a_newer_version_is_not_stored_under_an_older_name(tmp_path: Path) -> None:
    file, cache = version(tmp_path / "a"), FileCache(tmp_path / "cache")
    (tmp_path / "a").write_bytes(b"b" * 10)
    os.utime(tmp_path / "a", (1, 1))
    with pytest.raises(StorageError) as caught:
        cache.open_copy(file)
    assert caught.value.code == "storage.changed"
    assert not copies(cache)


def test_least_recently_opened_copies_are_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", limit=25)
    files = [version(tmp_path / name) for name in "abc"]
    for second, file in enumerate(files[:2]):
        cache.open_copy(file).close()
        os.utime(cache.folder / f"{file.name}.copy", (second, second))
    cache.open_copy(files[0]).close()

    cache.open_copy(files[2]).close()

    assert copies(cache) == 2
    assert not (cache.folder / f"{files[1].name}.copy").exists()


def test_value_of_a_file_is_created_once(tmp_path: Path) -> None:
    file, calls = version(tmp_path / "a"), list[str]()

    results = {
        FileCache(tmp_path / "cache").get_or_create(file, ".index", counting(calls))
        for _ in range(3)
    }

    assert (results, calls) == ({b"content"}, ["call"])


def test_cache_that_cannot_be_written_is_an_error_and_its_folder_that_of_the_desktop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = version(tmp_path / "a")
    with pytest.raises(StorageError) as caught:
        FileCache(tmp_path / "a" / "cache").open_copy(file)
    assert caught.value.code == "storage.write"

    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/vlatool")


def test_files_that_belong_together_are_copied_once_for_each_version(tmp_path: Path) -> None:
    (tmp_path / "run/below").mkdir(parents=True)
    version(tmp_path / "run/a")
    version(tmp_path / "run/below/b")
    cache = FileCache(tmp_path / "cache")

    first = cache.local_copy(tmp_path / "run", ["a", "below/b"])
    again = cache.local_copy(tmp_path / "run", ["a", "below/b"])
    version(tmp_path / "run/a", 11)

    assert first == again
    assert (first / "below/b").read_bytes() == (tmp_path / "run/below/b").read_bytes()
    assert cache.local_copy(tmp_path / "run", ["a", "below/b"]) != first


def test_unused_copies_of_folders_are_removed_after_a_month(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache")
    for name in ("unused", "used", "new"):
        (tmp_path / name).mkdir()
        version(tmp_path / name / "a")
    old = [cache.local_copy(tmp_path / name, ["a"]) for name in ("unused", "used")]
    for folder in old:
        os.utime(folder, (0, 0))

    cache.local_copy(tmp_path / "used", ["a"])
    cache.local_copy(tmp_path / "new", ["a"])

    assert [folder.is_dir() for folder in old] == [False, True]


@pytest.mark.parametrize("home", ["file", "~nobody-is-called-so"])
def test_cache_that_cannot_be_written_is_in_the_temporary_folder_with_a_warning(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    text = home if home.startswith("~") else str(tmp_path / home / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", text)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = default_cache_folder()
    assert folder.parent == tmp_path / "temporary"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "XDG_CACHE_HOME" in caplog.text
    assert "data.dataset_cache.cache_dir" in caplog.text


def test_folder_of_another_kind_is_no_temporary_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"vlatool-cache-{os.getuid()}").symlink_to(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-is-called-so/again")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with fails("storage.write"):
        default_cache_folder()
