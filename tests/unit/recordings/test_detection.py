"""Detection of the format of a source that several formats recognize."""

from pathlib import Path

import pytest

from tests.builders.lerobot import lerobot_dataset
from vlatool.errors import DataError, UsageError
from vlatool.recordings.detect import detect_source

READERS = """\
from vlatool.recordings.lerobot.reader import LeRobotReader

class Kitchen(LeRobotReader):
    base_format = "lerobot"

class Island(Kitchen):
    base_format = "kitchen"

class Twin(LeRobotReader):
    pass
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lerobot_dataset(tmp_path / "pick", [3], cameras={})


def install(root: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Installs a distribution with the named formats."""
    info = root / "kitchen_formats-1.dist-info"
    info.mkdir(parents=True)
    (root / "kitchen_formats.py").write_text(READERS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kitchen_formats\nVersion: 1\n")
    lines = [f"{name} = kitchen_formats:{name.title()}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[vlatool.formats]", *lines]))
    monkeypatch.syspath_prepend(str(root))


@pytest.mark.parametrize(
    ("names", "expected"), [(["kitchen"], "kitchen"), (["island", "kitchen"], "island")]
)
def test_most_specific_format_takes_precedence(
    names: list[str], expected: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, *names)
    assert detect_source(source, None).format == expected
    assert detect_source(source, "lerobot").format == "lerobot"


def test_unrelated_formats_are_ambiguous(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, "twin")
    with pytest.raises(UsageError) as caught:
        detect_source(source, None)
    assert caught.value.code == "usage.conflict"
    assert caught.value.details["formats"] == ["lerobot", "twin"]


def test_an_unknown_folder_says_what_is_in_it_and_the_ways_on(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy", "notes.csv"):
        (tmp_path / name).write_bytes(b"0")
    with pytest.raises(DataError, match="only files: 2 npy, 1 csv") as caught:
        detect_source(tmp_path, None)
    for way in ("hdf5", "docs/formats/folder.md", "docs/guides/plugins.md"):
        assert way in caught.value.hint


def test_keys_of_a_format_choose_among_formats(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format has the options colour"):
        detect_source(tmp_path, None, {"colour": 1})


def test_a_memory_that_is_no_number_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_MEMORY_GB", "much")
    with pytest.raises(UsageError, match="VLATOOL_MEMORY_GB is 'much'"):
        detect_source(source, None)
