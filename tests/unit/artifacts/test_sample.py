import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.artifacts.tar import TarWriter, member_bytes
from vlatool.artifacts.tar_sample import sample_members
from vlatool.episode import Sample

KEY = "00000000-0000-0000-0000-000000000000"
IMAGES = {
    "left_t-1.jpg": b"a" * 700,
    "right_t-1.jpg": b"b",
    "left_t0.jpg": b"c",
    "right_t0.jpg": b"d",
}


def sample(**metadata: Any) -> Sample:
    return Sample(
        key=KEY,
        anchor=3,
        image_frames={-1: 2, 0: 3},
        lowdim={"action": np.arange(6.0).reshape(3, 2), "text": np.array(["go", "go", "go"])},
        language={"original": ["tu das, für mich"]},
        metadata={"anchor_relative_idx": 1, **metadata},
    )


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard_000000.tar"
    with path.open("wb") as file:
        tar = TarWriter(file)
        tar.append(b"".join(member_bytes(*member) for member in sample_members(sample(), IMAGES)))
        tar.finish()
    return path


def test_members_have_the_published_names_and_order() -> None:
    names = [name.removeprefix(f"{KEY}.") for name, _ in sample_members(sample(), IMAGES)]

    assert names == [
        "left_t-1.jpg",
        "right_t-1.jpg",
        "left_t0.jpg",
        "right_t0.jpg",
        "lowdim.npz",
        "metadata.json",
        "language_instructions.json",
    ]


def test_tar_without_owner_and_time_equals_the_one_the_standard_library_writes(
    shard: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "expected.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sample_members(sample(), IMAGES):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

    assert shard.read_bytes() == (tmp_path / "expected.tar").read_bytes()
    with tarfile.open(shard) as archive:
        infos = archive.getmembers()
    assert {(info.mode, info.uid, info.gid, info.mtime) for info in infos} == {(0o644, 0, 0, 0)}
    assert {(info.uname, info.gname, info.isreg()) for info in infos} == {("", "", True)}


def test_webdataset_reads_one_sample_with_every_member(shard: Path) -> None:
    wds = pytest.importorskip("webdataset")
    (read,) = list(wds.WebDataset(str(shard), shardshuffle=False))

    assert read["__key__"] == KEY
    assert read["left_t-1.jpg"] == IMAGES["left_t-1.jpg"]
    assert json.loads(read["metadata.json"])["anchor_relative_idx"] == 1
    assert json.loads(read["language_instructions.json"]) == {"original": ["tu das, für mich"]}


def test_npz_loads_without_pickle_and_no_member_is_a_pickle_or_lax_json() -> None:
    members = dict(sample_members(sample(), {}))
    with np.load(io.BytesIO(members[f"{KEY}.lowdim.npz"]), allow_pickle=False) as arrays:
        assert arrays["action"].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert arrays["text"].tolist() == ["go", "go", "go"]
    broken = Sample(KEY, 0, {}, {"bad": np.array([object()])}, {}, {})
    with pytest.raises(ValueError, match="pickle"):
        list(sample_members(broken, {}))
    with pytest.raises(ValueError, match="JSON"):
        list(sample_members(sample(fps=float("nan")), {}))


def test_append_returns_the_byte_range_of_a_sample(tmp_path: Path) -> None:
    first, second = member_bytes("a.x", b"1" * 600), member_bytes("b.x", b"2")
    with (tmp_path / "x.tar").open("wb") as file:
        tar = TarWriter(file)
        ranges = [tar.append(first), tar.append(second)]
        tar.finish()

    content = (tmp_path / "x.tar").read_bytes()
    assert [content[start : start + size] for start, size in ranges] == [first, second]
