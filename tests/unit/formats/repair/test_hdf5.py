"""HDF5 files that are cut off are told from whole ones."""

from pathlib import Path
from typing import Any

import pytest

from vlatool.formats.hdf5 import repair
from vlatool.formats.media.repair import NothingWhole

h5py: Any = pytest.importorskip("h5py")


def test_a_cut_file_is_not_whole_and_the_tool_that_helps_is_named(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.h5", tmp_path / "cut.h5"
    with h5py.File(whole, "w") as file:
        file["data"] = list(range(5000))
    cut.write_bytes(whole.read_bytes()[:8000])

    assert (repair.is_whole(whole), repair.is_whole(cut)) == (True, False)
    with pytest.raises(NothingWhole, match=r"h5clear -s --increment cut\.h5"):
        repair.salvage(cut, tmp_path / "healthy.h5", iter(()))
