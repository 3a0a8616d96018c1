import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.disks import limited_disk
from vlatool.errors import DataError, StorageError
from vlatool.storage import atomic
from vlatool.storage.crash_points import VARIABLE


def test_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep/file.bin"

    with atomic.open_atomic(path) as file:
        file.write(b"abc")
        assert not path.exists()

    assert path.read_bytes() == b"abc"


def write_and_fail(path: Path, error: BaseException) -> None:
    with atomic.open_atomic(path) as file:
        file.write(b"new")
        raise error


def fill_and_fail(path: Path) -> None:
    with atomic.atomic_folder(path) as folder:
        (folder / "a").touch()
        raise DataError("broken")


def test_error_inside_the_block_leaves_nothing_behind_and_keeps_the_earlier_file(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError):
        write_and_fail(tmp_path / "file", DataError("broken"))

    assert list(tmp_path.iterdir()) == []

    atomic.write_text(tmp_path / "file", "old")

    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "file", KeyboardInterrupt())

    assert (tmp_path / "file").read_text() == "old"


def test_path_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError) as caught:
        atomic.write_text(tmp_path / "file" / "below", "x")

    assert (caught.value.code, caught.value.exit_code) == ("storage.write", 5)
    assert caught.value.details["path"] == str(tmp_path / "file" / "below")


def test_json_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "file", float("nan"))

    assert list(tmp_path.iterdir()) == []


def test_folder_appears_and_replaces_an_earlier_one_only_when_the_block_ends(
    tmp_path: Path,
) -> None:
    for name in ("old", "new"):
        before = os.listdir(tmp_path)
        with atomic.atomic_folder(tmp_path / "out") as folder:
            (folder / name).write_text("1")
            assert [path for path in os.listdir(tmp_path) if path[0] != "."] == before
        assert os.listdir(tmp_path / "out") == [name]


def test_error_or_missing_input_inside_a_block_is_no_write_error_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError):
        fill_and_fail(tmp_path / "out")

    assert list(tmp_path.iterdir()) == []

    with pytest.raises(FileNotFoundError), atomic.open_atomic(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(FileNotFoundError), atomic.atomic_folder(tmp_path / "folder"):
        (tmp_path / "missing").read_bytes()

    assert list(tmp_path.iterdir()) == []


def test_only_partial_files_of_killed_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/.a.tar.17.partial").touch()
    (tmp_path / ".folder.18.partial").mkdir()
    others = ["a.tar", "notes.partial", ".download.partial", ".notes.txt.partial", ".partial"]
    others.append(".x.12a.partial")
    for name in others:
        (tmp_path / "shards" / name).touch()

    atomic.remove_partials(tmp_path)

    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["shards", *others])


def test_file_that_grows_too_large_is_a_storage_error_with_its_path(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(StorageError) as caught:
            atomic.write_text(tmp_path / "file", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    assert caught.value.code == "storage.write"
    assert caught.value.details["path"] == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_reported_with_a_hint() -> None:
    with (
        pytest.raises(StorageError) as caught,
        atomic.GuardedFile(Path("/dev/full"), Path("out")) as file,
    ):
        file.write(b"x")

    assert "No space left" in caught.value.message
    assert "free space" in caught.value.hint


def test_removed_tree_is_gone_and_removing_missing_files_does_nothing(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "folder/below/file", "x")

    atomic.remove_tree(tmp_path / "folder")

    assert list(tmp_path.iterdir()) == []

    atomic.remove_tree(tmp_path / "folder")
    atomic.remove_file(tmp_path / "file")


def test_files_that_a_library_made_private_get_the_mode_of_all_others(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic.atomic_folder(tmp_path / "out") as folder:
            os.close(os.open(folder / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
        atomic.write_text(tmp_path / "other", "x")
    finally:
        os.umask(before)

    assert (tmp_path / "out/weights").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o640


def write_file(path: Path) -> None:
    atomic.write_text(path, "x")


def write_folder(path: Path) -> None:
    with atomic.atomic_folder(path) as folder:
        (folder / "a").touch()


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_parent_folder_is_synced_after_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "steps"))
    write(tmp_path / "parent/out")

    lines = (tmp_path / "steps").read_text().splitlines()
    assert lines[-1].startswith("sync after ")
    assert lines[-1].endswith("/parent")
    assert "rename after parent/out" in lines


def test_partial_files_of_live_writers_are_kept(tmp_path: Path) -> None:
    ended = 2**22 + 1  # no process has such a number
    live, dead = f".page.html.{os.getpid()}-ab.partial", f".page.html.{ended}-ab.partial"
    for name in (live, dead, f".other.html.{ended}-ab.partial", ".page.html.mine.partial"):
        (tmp_path / name).touch()

    atomic.remove_partials_of(tmp_path / "page.html")

    assert not (tmp_path / dead).exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_interrupted_removal_leaves_a_partial_folder(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000006"
    folder.mkdir()
    (folder / "weights").touch()
    program = (
        "import sys; from pathlib import Path; from vlatool.storage.atomic import remove_atomically"
    )
    words = [sys.executable, "-c", f"{program}; remove_atomically(Path(sys.argv[1]))", str(folder)]

    ended = subprocess.run(words, env={**os.environ, VARIABLE: "2"}, check=False)

    assert ended.returncode == -signal.SIGKILL
    assert (folder.exists(), len(list(tmp_path.iterdir()))) == (False, 1)
    atomic.remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import pathlib, sys
from vlatool.errors import StorageError
from vlatool.storage.atomic import write_bytes
try:
    write_bytes(pathlib.Path(sys.argv[1]) / "file", b"x" * 5000)
except StorageError as error:
    print(f"{error.code} {error.message} {error.hint}")
"""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"DISK_RENAME": "ENOSYS"}, "--output s3://"),
        ({"DISK_RENAME": "EOPNOTSUPP"}, "--output s3://"),
        ({"DISK_QUOTA": "3000"}, "your quota there is used up"),
    ],
)
def test_disk_that_cannot_rename_or_has_a_quota_is_named_with_what_helps(
    settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    environ = {**os.environ, **limited_disk(folder, tmp_path, **settings)}
    command = [sys.executable, "-c", WRITER, str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"storage.write {folder}/file: cannot be written: ")
    assert words in done.stdout
    assert not list(folder.iterdir())
