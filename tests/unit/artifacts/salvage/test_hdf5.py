"""Whole rows of HDF5 files that are cut off or were never closed, by the library itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.artifacts.salvage import hdf5
from vlatool.artifacts.salvage.base import NothingWhole

h5py: Any = pytest.importorskip("h5py")


def recorded(path: Path, version: str, chunks: int | None) -> bytes:
    """Writes three demonstrations of 40 rows in the layout of robomimic."""
    rng = np.random.default_rng(0)
    compression = None if chunks is None else "gzip"
    with h5py.File(path, "w", libver=version) as file:
        file.create_group("data").attrs["total"] = 120
        for number in range(3):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = 40
            images = rng.integers(1, 255, (40, 16, 16, 3), np.uint8)
            parts = {"actions": rng.random((40, 7)), "obs/wrist": images}
            for name, values in parts.items():
                size = chunks and (chunks, *values.shape[1:])
                demo.create_dataset(name, data=values, chunks=size, compression=compression)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.4, 0.6, 0.95])
@pytest.mark.parametrize("chunks", [None, 5])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_rows_before_the_cut_are_equal_and_the_rest_is_named(
    tmp_path: Path, version: str, chunks: int | None, share: float
) -> None:
    whole, cut, healthy = (tmp_path / name for name in ("whole.h5", "cut.h5", "healthy.h5"))
    data = recorded(whole, version, chunks)
    cut.write_bytes(data[: int(len(data) * share)])
    assert (hdf5.is_whole(whole), hdf5.is_whole(cut)) == (True, False)
    salvaged = hdf5.salvage(cut, healthy, ())
    assert hdf5.is_whole(healthy)
    with h5py.File(healthy) as file, h5py.File(whole) as expected:
        counts = {name: len(demo["actions"]) for name, demo in file["data"].items()}
        for name, count in counts.items():
            demo, before = file["data"][name], expected["data"][name]
            assert demo.attrs["num_samples"] == count
            for field in ("actions", "obs/wrist"):
                assert np.array_equal(demo[field], before[field][:count])
        assert 0 < sum(counts.values()) < 120
        assert file["data"].attrs["total"] == sum(counts.values())
    lost = {name for name in ("demo_0", "demo_1", "demo_2") if counts.get(name) != 40}
    assert all(any(name in part for part in salvaged.lost) for name in lost)


RECORDER = """
import os, sys, h5py
file = h5py.File(sys.argv[1], "w", libver=sys.argv[2])
action = file.create_dataset("action", (0, 3), "f4", maxshape=(None, 3), chunks=(10, 3))
if sys.argv[2] == "latest":
    file.swmr_mode = True
for row in range(25):
    action.resize(row + 1, axis=0)
    action[row] = row + 1
    if row == 16:
        file.flush()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_rows_of_a_recorder_that_was_killed_are_those_that_it_had_flushed(
    tmp_path: Path, version: str
) -> None:
    path, healthy = tmp_path / "recording.h5", tmp_path / "healthy.h5"
    subprocess.run([sys.executable, "-c", RECORDER, path, version], check=False)
    hdf5.salvage(path, healthy, ())
    with h5py.File(healthy) as file:
        assert np.array_equal(file["action"][:, 0], np.arange(17) + 1)


def test_a_file_that_lost_its_root_has_nothing_whole(tmp_path: Path) -> None:
    data = recorded(tmp_path / "whole.h5", "earliest", None)
    (tmp_path / "cut.h5").write_bytes(data[:100])
    with pytest.raises(NothingWhole):
        hdf5.salvage(tmp_path / "cut.h5", tmp_path / "healthy.h5", ())


def test_a_single_value_behind_the_end_is_lost_and_no_zero(tmp_path: Path) -> None:
    path, healthy = tmp_path / "cut.h5", tmp_path / "healthy.h5"
    with h5py.File(path, "w") as file:
        file["action"] = np.ones((9, 2))
        file.create_dataset("none", (9, 0), "f4", chunks=(3, 1), maxshape=(9, 4))
        file["rate"] = 20.0
        end = file["rate"].id.get_offset()
    path.write_bytes(path.read_bytes()[:end])
    salvaged = hdf5.salvage(path, healthy, ())
    with h5py.File(healthy) as file:
        assert ([*file], len(file["action"])) == (["action", "none"], 9)
    assert salvaged.lost == ("/rate: rows 0 to 1",)
