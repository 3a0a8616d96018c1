import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlatool.errors import StorageError, UsageError
from vlatool.storage.uri import is_remote, local_path, location

PATH = location("s3://bucket/a/b.tar.gz")


def test_local_locations_are_plain_paths_and_those_in_s3_shown_as_written() -> None:
    assert location("~/x") == Path.home() / "x"
    assert location("file:///x/y") == Path("/x/y")
    assert not is_remote(location("x"))

    assert is_remote(PATH)
    assert str(PATH) == f"{PATH}" == PATH.as_posix() == "s3://bucket/a/b.tar.gz"
    assert str(location("s3://bucket")) == "s3://bucket"
    assert location(PATH) == PATH


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *((f"{scheme}://host/x", "usage.unsupported") for scheme in ("hfs", "ftp", "abc")),
        ("s3://", "usage.bad_value"),
        pytest.param("a" * 256, "usage.bad_value", id="long name"),
        pytest.param("b/" * 3000, "usage.bad_value", id="long path"),
        pytest.param("a\0", "usage.bad_value", id="null"),
        pytest.param("\ud800", "usage.bad_value", id="lone surrogate"),
        ("~nobody-of-this-name", "usage.bad_value"),
    ],
)
def test_other_schemes_and_invalid_names_are_an_error(text: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        location(text)
    assert caught.value.code == code
    with pytest.raises(UsageError) as remote:
        local_path(PATH)
    assert remote.value.code == "usage.unsupported"


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
        ((PATH / "../c").resolve(), "s3://bucket/a/c"),
        (PATH.absolute(), "s3://bucket/a/b.tar.gz"),
    ],
)
def test_derived_paths_stay_in_s3(path: Path, expected: str) -> None:
    assert (str(path), is_remote(path)) == (expected, True)


def test_names_are_those_of_pathlib_and_only_a_path_in_s3_is_relative_to_another_there() -> None:
    assert (PATH.name, PATH.stem, PATH.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert PATH.parts == ("s3://bucket", "a", "b.tar.gz")
    assert PATH.is_absolute()

    relative = PATH.relative_to(location("s3://bucket"))
    assert (relative, is_remote(relative)) == (Path("a/b.tar.gz"), False)
    assert not PATH.is_relative_to(Path("/bucket"))
    assert not PATH.is_relative_to(location("s3://other"))
    with pytest.raises(ValueError, match="not below"):
        PATH.relative_to(Path("/bucket"))


def test_remote_paths_are_sorted_by_name_pickled_and_never_equal_to_local_ones() -> None:
    assert location("s3://bucket/a") == location("s3://bucket/x").with_name("a")
    assert Path("/bucket/a/b.tar.gz") != PATH
    assert len({PATH, Path("/bucket/a/b.tar.gz"), location(str(PATH))}) == 2

    paths = [location(f"s3://bucket/{name}") for name in ("b", "a/x", "a")]

    assert [path.name for path in sorted(paths)] == ["a", "x", "b"]

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

    assert (caught.value.code, caught.value.exit_code) == ("storage.unsupported", 5)
