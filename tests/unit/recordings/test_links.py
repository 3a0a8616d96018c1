"""Links in recordings that lead out of them."""

from pathlib import Path

import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.world_recordings import record_world
from vlatool.errors import DataError
from vlatool.recordings.detect import detect_source

# A file of an episode in each layout.
FILES = {
    "spartan": "**/metadata.yaml",
    "lerobot": "data/**/*.parquet",
    "hdf5": "**/*.hdf5",
    "zarr": "**/[0-9]*",
    "rlds": "**/*.tfrecord*",
    "mcap": "**/*.mcap",
    "folder": "**/*.csv",
}


@pytest.fixture(params=FILES)
def linked(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Recordings of which one file is a link to a place outside of them."""
    source = tmp_path / "source"
    record_world(request.param, source, episodes=2, frames=4)
    path = sorted(path for path in source.glob(FILES[request.param]) if path.is_file())[0]
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    return source


def test_a_link_that_leads_out_of_a_recording_is_refused(linked: Path) -> None:
    with pytest.raises(DataError, match=r"is a link to .*secret, outside of") as raised:
        detect_source(linked, None)
    assert raised.value.code == "data.unsafe"


def test_a_variable_allows_links(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_FOLLOW_LINKS", "1")
    assert len(detect_source(linked, None).refs) == 2


def test_the_links_of_a_snapshot_of_the_hub_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--lab--pick"
    snapshot = lerobot_dataset(repository / "snapshots/0123", (3, 4))
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.rglob("*.*"))):
        if path.is_file():
            path.rename(repository / f"blobs/{number}")
            path.symlink_to(repository / f"blobs/{number}")

    found = detect_source(snapshot, None)

    assert [found.reader.read(ref).num_frames for ref in found.refs] == [3, 4]
