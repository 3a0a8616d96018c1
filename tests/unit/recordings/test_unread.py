"""Hints for files that vlatool does not read: what they are, and the way on."""

from pathlib import Path

import pytest

from tests.builders.errors import fails
from vlatool.recordings.detect import detect_source
from vlatool.recordings.folder.reader import FolderReader
from vlatool.recordings.unread import UNREAD, unread_hint, unread_text

KINDS = {
    "pickle": ("ep0/0.pkl", "vlatool.record"),
    "torch": ("demo.pt", "vlatool.record"),
    "arrow": ("train/data-00000-of-00001.arrow", "load_from_disk"),
    "rerun": ("a.rrd", "rerun.dataframe"),
    "webdataset": ("shard-000000.tar", "WebDataset"),
    "archive": ("demos.tar.gz", "unpack"),
    "matlab": ("a.MAT", "loadmat"),
    "lmdb": ("data.mdb", "lmdb"),
    "zed": ("a.svo2", "ZED"),
}


def written(root: Path, name: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"?")
    return root


@pytest.mark.parametrize(("name", "way"), KINDS.values(), ids=KINDS)
def test_a_source_of_unread_files_is_told_the_way_on(name: str, way: str, tmp_path: Path) -> None:
    written(tmp_path, name)
    with fails("data.no_episodes", 3) as caught:
        detect_source(tmp_path, None)
    assert way in caught.value.hint
    with fails("data.no_episodes", 3) as caught:
        list(FolderReader(FolderReader.Config()).discover([tmp_path]))
    assert way in caught.value.hint


def test_each_row_has_a_case_here() -> None:
    told = {unread_text(name) for name, _ in KINDS.values()}
    assert told == {text for _, text in UNREAD}


def test_the_most_frequent_kind_is_told(tmp_path: Path) -> None:
    for name in ("a.mat", "b.rrd", "c.rrd", "notes.json"):
        written(tmp_path, name)
    assert "Rerun" in unread_hint(tmp_path)


def test_other_files_have_the_usual_hint(tmp_path: Path) -> None:
    assert unread_hint(written(tmp_path, "notes.odt")) == ""
    assert unread_hint(tmp_path / "gone.pkl") == ""
