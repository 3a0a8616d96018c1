"""Changed bytes in any file of a recording end in findings or data errors, never in a bug."""

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.builders.world_recordings import record_world
from vlatool.errors import DataError
from vlatool.recordings.base import FormatReader
from vlatool.recordings.folder.reader import FolderConfig, FolderReader
from vlatool.recordings.hdf5.reader import Hdf5Config, Hdf5Reader
from vlatool.recordings.rlds.reader import RldsConfig, RldsReader
from vlatool.recordings.zarr.reader import ZarrConfig, ZarrReader

READERS: dict[str, tuple[Any, Any]] = {
    "folder": (FolderReader, FolderConfig),
    "hdf5": (Hdf5Reader, Hdf5Config),
    "rlds": (RldsReader, RldsConfig),
    "zarr": (ZarrReader, ZarrConfig),
}


@pytest.mark.parametrize("layout", READERS)
def test_changed_bytes_end_in_findings_or_data_errors(layout: Any, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("zarr")
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    record_world(layout, whole, episodes=1, frames=4)
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    rng, readable = random.Random(3), 0
    for number in range(80):
        shutil.copytree(whole, copy)
        path = copy / rng.choice(files).relative_to(whole)
        changed = bytearray(path.read_bytes())
        place = rng.randrange(len(changed))
        changed[place : place + rng.choice([1, 1, 8])] = rng.choice([b"\0", b"\xff", b"9"])
        path.write_bytes(changed if number % 6 else changed[:place])
        reader_class, config = READERS[layout]
        with suppress(DataError):
            read_everything(reader_class(config(fps=10)), copy)
            readable += 1
        shutil.rmtree(copy)
    assert 0 < readable < 80


def read_everything(reader: FormatReader, source: Path) -> None:
    refs = list(reader.discover([source]))
    reader.survey(refs)
    for ref in refs:
        for camera in reader.read(ref).cameras.values():
            camera.read(range(len(camera)))
