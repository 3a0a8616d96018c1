"""Small recordings that ask for much memory or time, or that contradict themselves.

Each function writes a healthy recording, and something hostile in it or beside it.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import h5py
import numcodecs
import numpy as np
import zarr
import zstandard
from google.protobuf import descriptor_pb2
from zarr.codecs import ZstdCodec

from tests.builders import hdf5, mcap
from tests.builders.tfrecords import example, record
from vlatool.media.tfrecord import varint

BOMB = 2**26  # bytes that a bomb inflates to; its declared content is far smaller
STOPS = (4, 9)

Build = Callable[[Path], Any]


def zstd(size: int, *, is_sized: bool = True) -> bytes:
    """Zeros as a frame that says its size, or does not."""
    output = io.BytesIO()
    compressor = zstandard.ZstdCompressor(level=1)
    with compressor.stream_writer(output, size=size if is_sized else -1, closefd=False) as writer:
        for _ in range(size // 2**20):
            writer.write(bytes(2**20))
    return output.getvalue()


def deflated(size: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Zeros as zlib, or with 31 as gzip."""
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return stream.compress(bytes(size)) + stream.flush()


# Zarr

CODECS: dict[str, Any] = {
    "blosc": numcodecs.Blosc(),
    "zstd": numcodecs.Zstd(),
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
    "lz4": numcodecs.LZ4(),
}


def zarr_store(path: Path, codec: str = "zstd", version: Literal[2, 3] = 2) -> Path:
    """Two episodes of 4 and 5 frames; Zarr 3 in shards of 4 rows with inner chunks of 2."""
    arrays: dict[str, Any] = {
        "data/action": np.arange(18.0).reshape(9, 2),
        "data/robot0_eef_pos": np.arange(27, dtype=np.float32).reshape(9, 3),
        "meta/episode_ends": np.array(STOPS),
    }
    root = zarr.open_group(str(path), mode="w", zarr_format=version)
    compressor = CODECS[codec] if version == 2 else ZstdCodec()
    for name, values in arrays.items():
        is_sharded = version == 3 and values.ndim > 1
        root.create_array(
            name,
            data=values,
            chunks=(2 if is_sharded else 4, *values.shape[1:]),
            shards=(4, *values.shape[1:]) if is_sharded else None,
            compressors=[compressor],
        )
    return path


def edited(path: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def zarr_chunk(codec: str, data: Callable[[], bytes]) -> Build:
    def build(root: Path) -> None:
        path = zarr_store(root / "a.zarr", codec)
        (path / "data/action/0.0").write_bytes(data())

    return build


def zarr_edit(name: str, *gone: str, **changes: Any) -> Build:
    """A store of Zarr 2 with other metadata of an array, and without some files."""

    def build(root: Path) -> None:
        path = zarr_store(root / "a.zarr")
        edited(path / name, **changes)
        for file in gone:
            (path / file).unlink()

    return build


def zarr_shard(*index: int) -> Build:
    """A store of Zarr 3 with other offsets and lengths of the inner chunks of a shard."""

    def build(root: Path) -> None:
        path = zarr_store(root / "a.zarr", version=3) / "data/robot0_eef_pos/c/0/0"
        content = path.read_bytes()[:-36]
        places = struct.pack("<4Q", *[number % 2**64 for number in index])
        path.write_bytes(content + places + struct.pack("<I", google_crc32c.value(places)))

    return build


def zarr_file(name: str, change: Callable[[Path], Any], version: Literal[2, 3] = 2) -> Build:
    """A store with a file that is replaced by something else."""

    def build(root: Path) -> None:
        path = zarr_store(root / "a.zarr", version=version) / name
        path.unlink(missing_ok=True)
        change(path)

    return build


def zarr_ends(*stops: int, dtype: str = "u8") -> Build:
    def build(root: Path) -> None:
        path = zarr_store(root / "a.zarr")
        ends = numcodecs.Zstd().encode(np.array(stops, dtype))
        edited(path / "meta/episode_ends/.zarray", shape=[len(stops)], chunks=[len(stops)])
        edited(path / "meta/episode_ends/.zarray", dtype=f"<{dtype}")
        (path / "meta/episode_ends/0").write_bytes(bytes(ends))

    return build


# HDF5


def hdf5_file(change: Callable[[Any], None]) -> Build:
    """Three episodes of 5 frames; `change` edits the open file."""
    lengths = {"demo_0": 5, "demo_1": 5, "demo_2": 5}
    return lambda root: hdf5.robomimic(root / "a.hdf5", lengths, change)


def hdf5_dataset(name: str, shape: tuple[int, ...], dtype: Any, **options: Any) -> Build:
    """A dataset that was never written."""
    return hdf5_file(lambda file: file.create_dataset(name, shape, dtype, **options) and None)


def hdf5_attribute(place: str, name: str, value: Any) -> Build:
    return hdf5_file(lambda file: file[place].attrs.__setitem__(name, value))


def hdf5_link(place: str, target: str, count: int = 8) -> Build:
    """Links that lead to a group above."""

    def change(file: Any) -> None:
        for number in range(count):
            file[f"{place}{number}"] = file[target]

    return hdf5_file(change)


def hdf5_soft_links(file: Any) -> None:
    """Links whose paths are links."""
    file["k0"] = file["/"]
    for level in range(1, 9):
        file[f"k{level}"] = h5py.SoftLink("/" + "/".join([f"k{level - 1}"] * 60))
    for number in range(20):
        file[f"data/demo_0/obs/t{number}"] = h5py.SoftLink("/" + "/".join(["k8"] * 60))


def hdf5_bomb(file: Any) -> None:
    """A chunk of gzip that inflates to more than it declares."""
    shape = (5, 3)
    pose = file.create_dataset("data/demo_0/obs/pose", shape, "f8", chunks=shape, compression=1)
    pose.id.write_direct_chunk((0, 0), deflated(BOMB))


def hdf5_rows(file: Any) -> None:
    """Rows of one number by the hundred million."""
    count = 2 * 10**8
    del file["data/demo_0/actions"]
    shape = (count, 1)
    actions = file.create_dataset("data/demo_0/actions", shape, "i1", chunks=shape, compression=1)
    actions.id.write_direct_chunk((0, 0), deflated(count))


def hdf5_texts(file: Any) -> None:
    """Many rows that are one text of the file."""
    for number in range(3):
        del file[f"data/demo_{number}"]
    group = file.create_group("data/demo_0")
    group["actions"] = np.zeros((2000, 2))
    texts = group.create_dataset("instruction", 2000, h5py.string_dtype(), chunks=(2000,))
    texts[0] = "x" * 10**6
    row = texts.id.read_direct_chunk((0,))[1][:16]
    texts.id.write_direct_chunk((0,), row * 2000)


# RLDS


def tensor(dtype: str, *shape: Any) -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [*shape]}, "dtype": dtype, "encoding": "none"}}


def rlds(root: Path, first: bytes | None = None, **features: Any) -> Path:
    """Three episodes of 4 steps; `first`: another first record; `features`: other features."""
    folder = root / "toy"
    folder.mkdir(parents=True)
    declared = {"action": tensor("float32", 3), "count": tensor("int32"), **features}
    steps = {"sequence": {"feature": {"featuresDict": {"features": declared}}}}
    document = {"featuresDict": {"features": {"steps": steps}}}
    (folder / "features.json").write_text(json.dumps(document))
    rows: list[bytes] = []
    for number in range(3):
        action = np.arange(12, dtype=np.float32) + number + 0.5
        values = {"steps/action": action, "steps/count": np.array([0, -1, 300, 2**31 - 1])}
        rows.append(record(example(values)))
    if first is not None:
        rows[0] = record(first)
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(b"".join(rows))
    return folder


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def rlds_list(kind: int, content: bytes) -> Build:
    """A record whose feature `count` is a list of a kind (1 bytes, 2 floats, 3 integers)."""
    action = _field(2, _field(1, np.zeros(12, "<f4").tobytes()))
    entries = b""
    for name, feature in (("action", action), ("count", _field(kind, content))):
        entries += _field(1, _field(1, f"steps/{name}".encode()) + _field(2, feature))
    return lambda root: rlds(root, _field(1, entries))


def packed(data: bytes) -> bytes:
    """Content of a list with one packed part."""
    return _field(1, data)


def rlds_features(**features: Any) -> Build:
    return lambda root: rlds(root, **features)


def rlds_file(name: str, change: Callable[[Path], Any]) -> Build:
    def build(root: Path) -> None:
        path = rlds(root) / name
        path.unlink(missing_ok=True)
        change(path)

    return build


def rlds_header(root: Path) -> None:
    """The header of the first record has another byte."""
    path = rlds(root) / "toy-train.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[3] ^= 255
    path.write_bytes(content)


# MCAP


def bags(root: Path, count: int = 2, **options: Any) -> None:
    """Bags of 5 messages a topic."""
    for number in range(count):
        mcap.bag(root / f"bag{number}.mcap", mcap.standard(), **options)


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(data)) + data


def mcap_record(kind: int, body: bytes) -> bytes:
    return struct.pack("<BQ", kind, len(body)) + body


def mcap_topic(name: str, encoding: str, text: str | bytes, message: str) -> bytes:
    """Records of a schema and of a channel with its number."""
    schema = struct.pack("<H", 1) + _text(name) + _text(encoding) + _text(text)
    channel = struct.pack("<HH", 1, 1) + _text("/a") + _text(message) + struct.pack("<I", 0)
    return mcap_record(3, schema) + mcap_record(4, channel)


def mcap_message(data: bytes, time: int = 5) -> bytes:
    return mcap_record(5, struct.pack("<HIQQ", 1, 0, time, time) + data)


def mcap_chunk(records: bytes, *, is_compressed: bool = True, size: int | None = None) -> bytes:
    data = zstandard.ZstdCompressor().compress(records) if is_compressed else records
    head = struct.pack("<QQQI", 0, 2**40, len(records) if size is None else size, 0)
    name = "zstd" if is_compressed else ""
    return mcap_record(6, head + _text(name) + struct.pack("<Q", len(data)) + data)


def hostile_bag(*records: bytes) -> Build:
    """Two healthy bags, and one of these records without a summary."""

    def build(root: Path) -> None:
        bags(root)
        magic = b"\x89MCAP0\r\n"
        start = magic + mcap_record(1, _text("ros2") + _text("x"))
        end = mcap_record(15, bytes(4)) + mcap_record(2, bytes(20)) + magic
        (root / "hostile.mcap").write_bytes(start + b"".join(records) + end)

    return build


def ros_type(text: str, data: bytes = bytes(100)) -> Build:
    """A bag of messages of a type."""
    return hostile_bag(mcap_topic("x/msg/A", "ros2msg", text, "cdr"), mcap_message(data))


def proto_in_itself(root: Path) -> None:
    """A bag of messages that may contain themselves."""
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="x.proto", package="x", syntax="proto3")
    message = file.message_type.add(name="M")
    message.field.add(name="v", number=1, label=1, type=1)
    message.field.add(name="m", number=2, label=1, type=11, type_name=".x.M")
    topic = mcap_topic("x.M", "protobuf", files.SerializeToString(), "protobuf")
    hostile_bag(topic, mcap_message(b""))(root)


def mcap_index(kind: int, place: int, value: int, **options: Any) -> Build:
    """A bag with another number at a place of the first record of a kind in its summary."""

    def build(root: Path) -> None:
        bags(root, 3, chunk_size=400, **options)
        path = root / "bag0.mcap"
        content = bytearray(path.read_bytes())
        content[-12:-8] = bytes(4)  # no checksum of the summary
        (at,) = struct.unpack_from("<Q", content, len(content) - 28)
        while content[at] != kind:
            at += 9 + struct.unpack_from("<Q", content, at + 1)[0]
        struct.pack_into("<Q", content, at + 9 + place, value)
        path.write_bytes(content)

    return build


def pipe(path: Path) -> None:
    os.mkfifo(path)
