import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import shards as built
from vlatool.episode import Sample
from vlatool.errors import DataError
from vlatool.media.npz import array_headers, read_arrays
from vlatool.media.tar import TarWriter, member_bytes, open_shard, scan_tar
from vlatool.media.tar_sample import (
    ImageName,
    StoredSample,
    image_suffix,
    parse_image,
    read_members,
    sample_members,
)

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


# bytes of one sample


LONG = "k" * 120


def tar(*names: str) -> bytes:
    return b"".join(member_bytes(name, name.encode() * 99) for name in names)


@pytest.mark.parametrize("key", ["a", "folder/a", LONG, f"{LONG}/{LONG}"])
def test_members_of_a_sample(key: str) -> None:
    members = read_members(tar(f"{key}.b", f"{key}.C.d"))

    assert members.key == key
    assert members.contents == {"b": f"{key}.b".encode() * 99, "c.d": f"{key}.C.d".encode() * 99}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(1024),
        b"\xaa" * 512,
        tar("a.b")[:-1],
        tar("a.b")[:-512],
        tar("a.b")[512:],
        tar("a.b", "c.d"),
        tar("a.b", "a.B"),
        tar("nodot"),
        tar(f"{LONG}.b")[:-512],
        tar(f"{LONG}.b", "c.d"),
        tar("a.b") + bytes(512),
        tar("a.b").replace(b"a.b", b"a.c", 1),
        tar(f"{LONG}.b") + b"\xaa" * 1024,
    ],
)
def test_bytes_of_less_or_more_than_one_sample_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says which shard
        read_members(data)


# reading of stored samples


@pytest.fixture
def stored() -> StoredSample:
    return StoredSample("k", built.members(2))


@pytest.mark.parametrize(
    ("suffix", "name", "camera"),
    [
        ("front_t-1.jpg", ImageName("front", -1, is_auxiliary=False), "front"),
        ("front_t0.png", ImageName("front", 0, is_auxiliary=False), "front"),
        ("front_depth_t0.png", ImageName("front_depth", 0, is_auxiliary=True), "front"),
        ("front_depth_t0.jpg", ImageName("front_depth", 0, is_auxiliary=False), "front_depth"),
        (image_suffix("a_t1", -3), ImageName("a_t1", -3, is_auxiliary=False), "a_t1"),
        *((suffix, None, None) for suffix in ("lowdim.npz", "front.jpg", "_t0.jpg")),
        ("front_t1.jpg.txt", None, None),
    ],
)
def test_suffix_of_an_image_is_parsed(
    suffix: str, name: ImageName | None, camera: str | None
) -> None:
    parsed = parse_image(suffix)
    assert (parsed, parsed and parsed.base_camera) == (name, camera)


def test_a_sample_has_images_arrays_headers_and_instructions(stored: StoredSample) -> None:
    assert list(stored.image_suffixes()) == [
        ("front", -1),
        ("wrist", -1),
        ("front", 0),
        ("wrist", 0),
    ]
    assert stored.image_sizes()["front_t0.jpg"] == built.SIZE
    assert stored.metadata()["camera_names"] == list(built.CAMERAS)
    assert stored.language() == {"original": ["put it there"]}
    np.testing.assert_array_equal(stored.arrays(["action"])["action"], built.arrays(2)["action"])

    expected = {name: (a.shape, str(a.dtype)) for name, a in built.arrays(2).items()}
    assert stored.array_headers() == expected


@pytest.mark.parametrize(
    "header", ["{'descr': '<f8', 'shape': (3,)}", "{'descr': '<f8', 'shape': (3,", "\0", "1"]
)
def test_an_array_with_a_torn_header_is_a_broken_archive(header: str) -> None:
    data = built.npz_with_header("a", header)

    with pytest.raises(ValueError, match="broken npz"):
        read_arrays(data)
    assert list(array_headers(data)) == []


def test_a_missing_member_is_named_and_a_single_instruction_becomes_a_list() -> None:
    empty = StoredSample("k", {})
    with pytest.raises(KeyError, match="lowdim"):
        empty.arrays()
    assert (empty.metadata(), empty.language()) == ({}, {})
    sample = StoredSample("k", {"language_instructions.json": b'{"original": "go", "none": []}'})
    assert sample.language() == {"original": ["go"]}


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_broken_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="metadata"):
        StoredSample("k", {"metadata.json": data}).json("metadata.json")


def test_object_arrays_have_a_header_but_are_never_loaded() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2), b=np.array([{}], object))
    assert dict(array_headers(buffer.getvalue())) == {
        "a": ((2,), "float64"),
        "b": ((1,), "object"),
    }
    with pytest.raises(ValueError, match="Python objects"):
        read_arrays(buffer.getvalue())


def test_an_open_shard_reads_member_by_member(tmp_path: Path) -> None:
    path = built.shard_output(tmp_path / "out") / "episodes/episode_pick_1.tar"
    with open_shard(path) as shard:
        assert shard.keys == [built.key_of(2), built.key_of(3)]
        with shard.reading(built.key_of(3)) as sample:
            assert sample.members["front_t0.jpg"] == built.jpeg(3)
        with pytest.raises(DataError) as caught, shard.reading(built.key_of(3)) as sample:
            sample.arrays(["nothing"])
    assert caught.value.code == "data.broken"


def test_the_bytes_of_a_sample_hold_its_members(tmp_path: Path) -> None:
    path = built.shard_output(tmp_path / "out") / "episodes/episode_pick_1.tar"
    second = scan_tar(path).samples[1]
    data = path.read_bytes()[second.start : second.end]
    assert dict(second.stored(data).members) == built.members(3)


def test_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError) as caught, open_shard(tmp_path / "x.tar"):
        pass
    assert caught.value.code == "data.broken"
