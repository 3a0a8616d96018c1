"""Recordings made to hurt: each costs what is damaged in it, by name, in little memory and time."""

import bz2
import lzma
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders import bombs
from tests.builders.bombs import Build
from tests.builders.hostile import limited_memory
from vlatool.errors import DataError, UsageError
from vlatool.media.limits import most_bytes, possible_rate
from vlatool.recordings.detect import detect_source

pytestmark = pytest.mark.timeout(60)
_MOST_SECONDS = 20.0  # of the processor


@pytest.fixture(autouse=True)
def _memory_limit() -> Iterator[None]:
    with limited_memory():
        yield


def read_all(root: Path, keys: dict[str, str] | None = None) -> tuple[int, list[str]]:
    """Number of the episodes that can be read, and what is said about the others and of these."""
    start = time.process_time()
    messages: list[str] = []
    readable = 0
    try:
        source = detect_source(root, None, keys)
    except DataError as error:
        return 0, [f"{error.message}; {error.hint}"]
    messages += [finding.message for finding in source.reader.source_findings]
    for ref in source.refs:
        try:
            episode = source.reader.read(ref)
            for frames in episode.cameras.values():
                frames.read([0])
        except DataError as error:
            messages.append(f"{error.message}; {error.hint}")
            continue
        readable += 1
        messages += [finding.message for finding in episode.findings]
    assert time.process_time() - start < _MOST_SECONDS
    return readable, messages


def check(build: Build, root: Path, episodes: int, said: str) -> None:
    """`episodes`: number of those that stay readable."""
    root.mkdir(exist_ok=True)
    build(root)
    readable, messages = read_all(root)
    assert any(said in message for message in messages), messages
    assert readable == episodes


SMALL = "inflates to more than"
HEADER = "its header says"
ZARR: dict[str, tuple[Build, int, str]] = {
    "zstd": (bombs.zarr_chunk("zstd", lambda: bombs.zstd(bombs.BOMB)), 1, HEADER),
    "zstd without a size": (
        bombs.zarr_chunk("zstd", lambda: bombs.zstd(bombs.BOMB, is_sized=False)),
        1,
        "too small",
    ),
    "gzip": (bombs.zarr_chunk("gzip", lambda: bombs.deflated(bombs.BOMB, 31)), 1, SMALL),
    "zlib": (bombs.zarr_chunk("zlib", lambda: bombs.deflated(bombs.BOMB)), 1, SMALL),
    "bz2": (bombs.zarr_chunk("bz2", lambda: bz2.compress(bytes(bombs.BOMB))), 1, SMALL),
    "lzma": (bombs.zarr_chunk("lzma", lambda: lzma.compress(bytes(bombs.BOMB))), 1, SMALL),
    "lz4": (bombs.zarr_chunk("lz4", lambda: b"\xff\xff\xff\x7f" + bytes(30)), 1, HEADER),
    "blosc": (bombs.zarr_chunk("blosc", lambda: b"\2\1\x21\x08" + b"\xff" * 12), 1, "is cut off"),
    "zlib in gzip": (
        bombs.zarr_edit("data/robot0_eef_pos/.zarray", filters=[{"id": "zlib", "level": 1}]),
        0,
        "cannot be read",
    ),
    "ends": (
        bombs.zarr_edit("meta/episode_ends/.zarray", shape=[2**30], chunks=[2**30]),
        0,
        "8,589,934,592 bytes at once",
    ),
    "rows": (
        bombs.zarr_edit("data/action/.zarray", shape=[9, 2**31], chunks=[1, 2**31]),
        2,
        "2147483648 numbers per row",
    ),
    "texts": (
        bombs.zarr_edit("data/action/.zarray", dtype="<U400000000", shape=[9, 1], chunks=[9, 1]),
        0,
        "cannot be read",
    ),
    "unsigned ends that descend": (bombs.zarr_ends(9, 4), 0, "does not divide"),
    "huge ends": (bombs.zarr_ends(4, 2**63 + 5, 9), 0, "does not divide"),
    "more ends than rows": (bombs.zarr_ends(*[9] * 1000), 0, "1,000 ends of episodes for 9 rows"),
    "attributes": (bombs.zarr_file(".zattrs", lambda path: path.write_text("{")), 2, "is not JSON"),
    "attributes of an array": (
        bombs.zarr_file("data/action/.zattrs", lambda path: path.write_text("")),
        2,
        "is not JSON",
    ),
    "an array": (
        bombs.zarr_file("data/robot0_eef_pos/.zarray", lambda path: path.write_text("{")),
        2,
        "data/robot0_eef_pos/.zarray: is not JSON",
    ),
    "an array of Zarr 3": (
        bombs.zarr_file("data/robot0_eef_pos/zarr.json", lambda path: path.write_text("{"), 3),
        2,
        "data/robot0_eef_pos/zarr.json: is not JSON",
    ),
    "a pipe": (
        bombs.zarr_file("data/robot0_eef_pos/c/0/0", bombs.pipe, 3),
        1,
        "is a folder, a pipe or a link to nothing",
    ),
    "a link to nothing": (
        bombs.zarr_file("data/robot0_eef_pos/c/0/0", lambda path: path.symlink_to("/none"), 3),
        1,
        "is a folder, a pipe or a link to nothing",
    ),
    "behind the end of a shard": (bombs.zarr_shard(10**6, 20, 10**6, 20), 1, "cannot be read"),
    "around the end of a number": (bombs.zarr_shard(-10, 30, -10, 30), 1, "cannot be read"),
    "half an absent chunk": (bombs.zarr_shard(-1, 30, 0, 10**9), 1, "cannot be read"),
}
HDF5: dict[str, tuple[Build, int, str]] = {
    "a wide row": (
        bombs.hdf5_dataset("data/demo_0/obs/x", (5, 2**31), "f8", chunks=(1, 2**20)),
        3,
        "numbers per row",
    ),
    "a wide row of bytes": (
        bombs.hdf5_dataset("data/demo_0/obs/x", (5, 2**33), "u1", chunks=(1, 2**20)),
        3,
        "bytes at once",
    ),
    "a wide image": (
        bombs.hdf5_dataset("data/demo_0/obs/x", (5, 40_000, 40_000, 3), "f8", chunks=True),
        2,
        "bytes at once",
    ),
    "a wide list of names": (
        bombs.hdf5_dataset("mask/valid", (2**31,), "S8", chunks=(2**20,)),
        3,
        "left out",
    ),
    "rows of one number": (bombs.hdf5_file(bombs.hdf5_rows), 2, "the other parts have 200000000"),
    "texts that are one": (bombs.hdf5_file(bombs.hdf5_texts), 0, "bytes at once"),
    "a group in itself": (bombs.hdf5_link("data/demo_0/obs/x", "data/demo_0/obs"), 3, "twice"),
    "the root in a group": (bombs.hdf5_link("data/demo_0/x", "/", 40), 3, "twice"),
    "links of links": (bombs.hdf5_file(bombs.hdf5_soft_links), 3, "not followed"),
    "a type": (
        bombs.hdf5_file(lambda file: file.__setitem__("data/demo_0/obs/t", np.dtype("f8"))),
        3,
        "a type, no dataset",
    ),
    "infinite num_samples": (
        bombs.hdf5_attribute("data/demo_0", "num_samples", np.inf),
        3,
        "num_samples is inf",
    ),
    "num_samples of text": (
        bombs.hdf5_attribute("data/demo_0", "num_samples", "many"),
        3,
        "num_samples is many",
    ),
}
PARTS = "an example of more than 1,048,576 parts"
RLDS: dict[str, tuple[Build, int, str]] = {
    "packed numbers": (bombs.rlds_list(3, bombs.packed(bytes(2**26))), 2, "a list of 536,870,912"),
    "many packed lists": (bombs.rlds_list(3, bombs.packed(bytes(2**20)) * 64), 2, "a list of 536"),
    "empty packed lists": (bombs.rlds_list(3, b"\x0a\x00" * 2**21), 2, PARTS),
    "empty texts": (bombs.rlds_list(1, b"\x0a\x00" * 2**21), 2, PARTS),
    "floats of 3 bytes": (bombs.rlds_list(2, bombs.packed(b"abc")), 2, "floats has 3 bytes"),
    "an endless shape": (
        bombs.rlds_features(action=bombs.tensor("float32", float("inf"))),
        0,
        "features.json",
    ),
    "a pipe for features": (bombs.rlds_file("features.json", bombs.pipe), 0, "features.json"),
    "a pipe for a shard": (
        bombs.rlds_file("toy-train.tfrecord-00001-of-00002", bombs.pipe),
        3,
        "cannot be read",
    ),
    "a folder for a shard": (
        bombs.rlds_file("toy-train.tfrecord-00001-of-00002", Path.mkdir),
        3,
        "cannot be read",
    ),
    "a narrow type": (
        bombs.rlds_features(count=bombs.tensor("uint8")),
        3,
        "features.json says uint8, but it holds int64",
    ),
    "whole numbers for floats": (
        bombs.rlds_features(action=bombs.tensor("int32", 3)),
        3,
        "features.json says int32, but it holds float32",
    ),
    "a header": (bombs.rlds_header, 2, "wrong checksum of a length"),
}
_NUMBER = bombs.mcap_topic("std_msgs/msg/Float64", "ros2msg", "float64 data", "cdr")
_ZERO = b"\0\1\0\0" + bytes(8)
_NESTED = "B[9999] b\n{0}\nMSG: x/B\nC[9999] c\n{0}\nMSG: x/C\nfloat64[9999] d\n".format("=" * 80)
ITEMS = "more than 100,000 items"
MCAP: dict[str, tuple[Build, int, str]] = {
    "many arrays": (
        bombs.ros_type("\n".join(f"float64[99999] a{number}" for number in range(90))),
        2,
        ITEMS,
    ),
    "arrays of arrays": (bombs.ros_type(_NESTED), 2, ITEMS),
    "a type in itself": (bombs.ros_type("A[2] a\nfloat64 v"), 2, ITEMS),
    "small records": (
        bombs.hostile_bag(bombs.mcap_chunk(bombs.mcap_record(128, b"") * 2**20)),
        2,
        "more records than bytes",
    ),
    "small messages": (
        bombs.hostile_bag(_NUMBER, bombs.mcap_chunk(bombs.mcap_message(_ZERO) * 2**19)),
        3,
        "more records than bytes",
    ),
    "half records": (
        bombs.hostile_bag(
            bombs.mcap_chunk(bombs.mcap_record(3, b"\1"), is_compressed=False) * 5_000
        ),
        2,
        "a record is left out",
    ),
    "half chunks": (
        bombs.hostile_bag(bombs.mcap_chunk(b"\5", is_compressed=False) * 5_000),
        2,
        "is damaged from its byte",
    ),
    "a chunk that says it is small": (
        bombs.hostile_bag(bombs.mcap_chunk(bytes(2**22), size=100)),
        2,
        "wrong checksum or size",
    ),
    "a message in itself": (bombs.proto_in_itself, 2, "contains itself"),
    "a chunk elsewhere": (bombs.mcap_index(8, 16, 3), 3, "no usable index"),
    "a chunk of other times": (bombs.mcap_index(8, 0, 2**63), 3, "no usable index"),
    "metadata elsewhere": (
        bombs.mcap_index(13, 0, 40, change=lambda writer: writer.add_metadata("m", {"a": "b"})),
        3,
        "no usable index",
    ),
}


RECORDINGS = {"zarr": ZARR, "hdf5": HDF5, "rlds": RLDS, "mcap": MCAP}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, rows in RECORDINGS.items() for name in rows]
)
def test_a_recording_costs_what_is_damaged(kind: str, name: str, tmp_path: Path) -> None:
    build, episodes, said = RECORDINGS[kind][name]
    check(build, tmp_path, episodes, said)


def test_absent_inner_chunks_are_the_fill_value_or_an_error(tmp_path: Path) -> None:
    bombs.zarr_shard(-1, -1, -1, -1)(tmp_path)

    filled, _ = read_all(tmp_path)
    refused, messages = read_all(tmp_path, {"missing_chunks": "error"})

    assert (filled, refused) == (2, 1)
    assert any("a chunk in a shard is missing" in message for message in messages)


def test_a_chunk_of_gzip_inflates_to_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATOOL_MEMORY_GB", "0.1")

    check(bombs.hdf5_file(bombs.hdf5_bomb), tmp_path, 2, "inflates to more than the 120 bytes")


def test_the_key_of_the_hint_allows_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bombs.zarr_store(tmp_path / "a.zarr")
    monkeypatch.setenv("VLATOOL_MEMORY_GB", "1e-7")

    refused, messages = read_all(tmp_path)
    monkeypatch.setenv("VLATOOL_MEMORY_GB", "0.1")
    read, _ = read_all(tmp_path)

    assert (refused, read) == (0, 2)
    assert any("set VLATOOL_MEMORY_GB=" in message for message in messages)


@pytest.mark.parametrize("value", ["much", "0", "-1", "inf", "nan"])
def test_memory_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_MEMORY_GB", value)

    with pytest.raises(UsageError, match="not a number of gigabytes"):
        most_bytes()


@pytest.mark.parametrize("rate", [10**400, 1e-300, 1e300, float("inf"), float("nan"), "10", None])
def test_a_rate_that_no_robot_has_is_none(rate: object) -> None:
    assert possible_rate(rate) == 0.0
