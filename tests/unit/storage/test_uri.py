import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlatool.errors import StorageError, UsageError
from vlatool.storage.uri import is_remote, local_path, location

PATH = location("s3://bucket/a/b.tar.gz")


def test_local_locations_are_plain_paths() -> None:
    assert location("~/x") == Path.home() / "x"
    assert location("file:///x/y") == Path("/x/y")
    assert not is_remote(location("x"))


def test_s3_location_is_shown_as_it_was_written() -> None:
    assert is_remote(PATH)
    assert str(PATH) == f"{PATH}" == PATH.as_posix() == "s3://bucket/a/b.tar.gz"
    assert str(location("s3://bucket")) == "s3://bucket"
    assert location(PATH) == PATH


@pytest.mark.parametrize("text", ["hfs://datasets/x", "ftp://host/x", "gs://bucket/x"])
def test_other_schemes_are_an_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        location(text)

    assert caught.value.code == "usage.unsupported_scheme"


def test_location_without_a_bucket_is_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        location("s3://")

    assert caught.value.code == "usage.bad_location"


@pytest.mark.parametrize(
    "text",
    ["a" * 256, "b/" * 3000, "a\0", "\ud800", "~nobody-of-this-name"],
    ids=["long name", "long path", "null", "lone surrogate", "unknown user"],
)
def test_invalid_file_name_is_an_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        location(text)

    assert caught.value.code == "usage.bad_location"


def test_local_path_of_a_remote_location_is_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        local_path(PATH)

    assert caught.value.code == "usage.unsupported_scheme"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PATH / "c" / "d", "s3://bucket/a/b.tar.gz/c/d"),
        (PATH / Path("c/d"), "s3://bucket/a/b.tar.gz/c/d"),
        (PATH.joinpath("c", "d"), "s3://bucket/a/b.tar.gz/c/d"),
        (PATH.parent, "s3://bucket/a"),
        (PATH.parents[1], "s3://bucket"),
        (PATH.with_name("c"), "s3://bucket/a/c"),
        (PATH.with_suffix(".x"), "s3://bucket/a/b.tar.x"),
        (PATH.with_stem("c"), "s3://bucket/a/c.gz"),
        ((PATH / "../c").resolve(), "s3://bucket/a/c"),
        (PATH.absolute().expanduser(), "s3://bucket/a/b.tar.gz"),
    ],
)
def test_derived_paths_stay_in_s3(path: Path, expected: str) -> None:
    assert (str(path), is_remote(path)) == (expected, True)


def test_names_are_those_of_pathlib() -> None:
    assert (PATH.name, PATH.stem, PATH.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert PATH.parts == ("s3://bucket", "a", "b.tar.gz")
    assert PATH.match("*.gz")
    assert PATH.is_absolute()


def test_relative_path_is_local() -> None:
    relative = PATH.relative_to(location("s3://bucket"))

    assert (relative, is_remote(relative)) == (Path("a/b.tar.gz"), False)


def test_nothing_in_s3_is_relative_to_a_local_folder() -> None:
    assert not PATH.is_relative_to(Path("/bucket"))
    assert not PATH.is_relative_to(location("s3://other"))
    with pytest.raises(ValueError, match="not below"):
        PATH.relative_to(Path("/bucket"))


def test_remote_and_local_paths_are_never_equal() -> None:
    assert location("s3://bucket/a") == location("s3://bucket/x").with_name("a")
    assert Path("/bucket/a/b.tar.gz") != PATH
    assert Path("/bucket/a/b.tar.gz") != PATH
    assert len({PATH, Path("/bucket/a/b.tar.gz"), location(str(PATH))}) == 2


def test_paths_are_sorted_by_name() -> None:
    paths = [location(f"s3://bucket/{name}") for name in ("b", "a/x", "a")]

    assert [path.name for path in sorted(paths)] == ["a", "x", "b"]


def test_pickled_path_is_the_same() -> None:
    assert pickle.loads(pickle.dumps(PATH)) == PATH


@pytest.mark.parametrize(
    "act",
    [
        os.fspath,
        shutil.rmtree,
        open,
        lambda path: path.touch(),
        lambda path: path.rmdir(),
        lambda path: path.rename("x"),
        lambda path: path.replace("x"),
        lambda path: path.chmod(0o600),
        lambda path: path.symlink_to("x"),
        lambda path: path.open("wb"),
    ],
)
def test_operations_of_local_paths_raise_immediately(act: Callable[[Path], object]) -> None:
    with pytest.raises(StorageError) as caught:
        act(PATH)

    assert (caught.value.code, caught.value.exit_code) == ("storage.needs_local_file", 5)
