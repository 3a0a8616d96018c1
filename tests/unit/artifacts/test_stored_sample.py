"""Reading of stored samples, valid and broken."""

import io
from pathlib import Path

import numpy as np
import pytest

from tests.builders import shards as built
from vlatool.artifacts.tar import open_shard, scan_tar
from vlatool.artifacts.tar_sample import (
    ImageName,
    StoredSample,
    array_headers,
    image_suffix,
    parse_image,
    read_arrays,
)
from vlatool.errors import DataError


@pytest.fixture
def sample() -> StoredSample:
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


def test_a_sample_has_images_arrays_and_instructions(sample: StoredSample) -> None:
    assert list(sample.image_suffixes()) == [
        ("front", -1),
        ("wrist", -1),
        ("front", 0),
        ("wrist", 0),
    ]
    assert sample.image_sizes()["front_t0.jpg"] == built.SIZE
    assert sample.metadata()["camera_names"] == list(built.CAMERAS)
    assert sample.language() == {"original": ["put it there"]}
    np.testing.assert_array_equal(sample.arrays(["action"])["action"], built.arrays(2)["action"])


def test_array_headers_are_read_without_the_values(sample: StoredSample) -> None:
    expected = {name: (a.shape, str(a.dtype)) for name, a in built.arrays(2).items()}
    assert sample.array_headers() == expected


@pytest.mark.parametrize(
    "header", ["{'descr': '<f8', 'shape': (3,)}", "{'descr': '<f8', 'shape': (3,", "\0", "1"]
)
def test_an_array_with_a_torn_header_is_a_broken_archive(header: str) -> None:
    data = built.npz_with_header("a", header)

    with pytest.raises(ValueError, match="broken npz"):
        read_arrays(data)
    assert list(array_headers(data)) == []


def test_a_missing_member_is_named() -> None:
    empty = StoredSample("k", {})
    with pytest.raises(KeyError, match="lowdim"):
        empty.arrays()
    assert (empty.metadata(), empty.language()) == ({}, {})


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_broken_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="metadata"):
        StoredSample("k", {"metadata.json": data}).json("metadata.json")


def test_a_single_instruction_becomes_a_list() -> None:
    sample = StoredSample("k", {"language_instructions.json": b'{"original": "go", "none": []}'})
    assert sample.language() == {"original": ["go"]}


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
    assert caught.value.code == "data.broken_sample"


def test_the_bytes_of_a_sample_hold_its_members(tmp_path: Path) -> None:
    path = built.shard_output(tmp_path / "out") / "episodes/episode_pick_1.tar"
    second = scan_tar(path).samples[1]
    data = path.read_bytes()[second.start : second.end]
    assert dict(second.stored(data).members) == built.members(3)


def test_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError) as caught, open_shard(tmp_path / "x.tar"):
        pass
    assert caught.value.code == "data.broken_shard"
