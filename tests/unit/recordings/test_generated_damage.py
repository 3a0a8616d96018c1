"""A file that is only broken is never called a bug: generated damage, and what once was."""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mcap.writer import Writer

from tests.builders import mcap as build
from tests.builders.hdf5 import image
from tests.builders.hostile import changed_trees, json_bytes, limited_memory
from tests.builders.world_recordings import record_world
from tests.surface.invoke import run_vlatool
from vlatool.recordings.lerobot.output import arrow_type

pytestmark = pytest.mark.timeout(120)
LAYOUTS = ("spartan", "lerobot", "libero", "hdf5", "zarr", "rlds", "mcap", "folder")
DAMAGES = 8  # of each layout; more were tried when this was written
BUG = 1


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Two tiny episodes of a layout, without the record of the command."""
    folder = tmp_path_factory.mktemp("samples")

    def made(layout: str) -> Path:
        root = folder / layout
        if root.exists():
            return root
        record_world(layout, root, episodes=2, frames=6)
        return root

    return made


def damage(root: Path, rng: random.Random) -> str:
    """Damages one file; says which and how."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    documents = [path for path in files if path.suffix == ".json"]
    kind = rng.choice(["empty", "cut", "bytes", "zeros", "folder", "pipe", "link", "text", "value"])
    path = rng.choice(documents if kind == "value" and documents else files)
    data = bytearray(path.read_bytes())
    place = rng.randrange(max(len(data), 1))
    if kind == "cut":
        del data[place:]
    elif kind == "bytes":
        for _ in range(9):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "zeros":
        data[place : place + 300] = bytes(len(data[place : place + 300]))
    elif kind == "text":
        data = bytearray(rng.choice([b"null", b"[]", b"{}", b"1", b"a,b\n1,x\n", b"\0"]))
    elif kind == "value" and documents:
        ((name, tree),) = changed_trees(json.loads(data), rng.randrange(10**6), 1)
        data = bytearray(json_bytes(tree))
        kind = name
    else:
        data.clear()
    path.write_bytes(data)
    if kind in ("folder", "pipe", "link"):
        path.unlink()
        make = {"folder": os.mkdir, "pipe": os.mkfifo, "link": lambda to: os.symlink("/none", to)}
        make[kind](path)
    return f"{path.relative_to(root)}: {kind}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generated_damage_is_never_called_a_bug(
    layout: str, samples: Callable[[str], Path], tmp_path: Path
) -> None:
    source = samples(layout)
    for number in range(DAMAGES):
        shutil.copytree(source, tmp_path / "raw")
        said = damage(tmp_path / "raw", random.Random(number))
        with limited_memory():
            for words in (["inspect"], ["verify", "--full"]):
                code, text = run_vlatool(*words, str(tmp_path / "raw"), "--json", "-q")
                assert code != BUG, f"{number}, {said}: {text}"
        shutil.rmtree(tmp_path / "raw")


# Messages in JSON, whose types are those of their writer

JOINTS = {"name": ["a", "b"], "position": [1.0, 2.0], "velocity": []}
TRANSFORM = {"transforms": [{"header": {"frame_id": "a"}, "child_frame_id": "b"}]}
MESSAGES: dict[str, tuple[str, Any]] = {
    "a text for positions": ("sensor_msgs/msg/JointState", JOINTS | {"position": "far"}),
    "an object for names": ("sensor_msgs/msg/JointState", JOINTS | {"name": {"a": 1}}),
    "a number for names": ("sensor_msgs/msg/JointState", JOINTS | {"name": 2}),
    "lists of lengths": ("sensor_msgs/msg/JointState", JOINTS | {"position": [[1, 2], 3]}),
    "nothing for velocities": ("sensor_msgs/msg/JointState", JOINTS | {"velocity": None}),
    "a flag for transforms": ("tf2_msgs/msg/TFMessage", {"transforms": False}),
    "a number for transforms": ("tf2_msgs/msg/TFMessage", {"transforms": 255}),
    "a transform of a text": ("tf2_msgs/msg/TFMessage", TRANSFORM | {"transforms": ["a"]}),
    "an image without data": ("foxglove.RawImage", {"encoding": 3, "width": "x", "height": None}),
    "video without data": ("foxglove.CompressedVideo", {"format": "h264"}),
    "no object": ("sensor_msgs/msg/JointState", [1]),
}


@pytest.mark.parametrize(("kind", "message"), MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("place", [0, 3])
def test_a_message_in_json_of_other_types_costs_its_topic_or_its_episode(
    kind: str, message: Any, place: int, tmp_path: Path
) -> None:
    usual = {"sensor_msgs/msg/JointState": JOINTS, "tf2_msgs/msg/TFMessage": TRANSFORM}
    with (tmp_path / "a.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start("")
        other = writer.register_channel("/x", "json", writer.register_schema(kind, "", b"{}"))
        schema = writer.register_schema("std_msgs/msg/Float64MultiArray", "", b"{}")
        numbers = writer.register_channel("/state", "json", schema)
        for step in range(5):
            time = 10**18 + step * 10**8
            sent = message if step >= place else usual.get(kind, message)
            writer.add_message(other, time, json.dumps(sent).encode(), time)
            writer.add_message(numbers, time, json.dumps({"data": [step, 1]}).encode(), time)
        writer.finish()
    code, text = run_vlatool("inspect", str(tmp_path), "--json", "-q")
    assert code == 0 or (place and code == 3), text
    assert code or "state" in json.loads(text)["fields"]


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\1", b"\0\0\1" * 3, b"\0\0\0\1\x65"], ids=["none", "start", "starts", "5"]
)
@pytest.mark.parametrize("form", ["h264", "h265"])
def test_packets_that_hold_no_image_cost_their_episode(
    data: bytes, form: str, tmp_path: Path
) -> None:
    whole = build.packets(np.stack([image(step) for step in range(6)]))
    for name, packets in (("a", [data] * 6), ("b", whole), ("c", [whole[0], data, *whole[2:]])):
        sent: list[Any] = []
        for step, packet in enumerate(packets):
            values = {"data": packet, "format": form}
            sent.append(("/v", step / 10, build.foxglove("CompressedVideo", step / 10, **values)))
        build.bag(tmp_path / f"{name}.mcap", sent)
    for words in (["inspect"], ["verify", "--full"]):
        code, text = run_vlatool(*words, str(tmp_path), "--json", "-q")
        assert code in (0, 3), text


# Bags of ROS 2


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *[("messages", "data", value) for value in (None, 1, "x")],
        *[("messages", "timestamp", value) for value in (None, "x")],
        *[("topics", "name", value) for value in (None, b"a", 1)],
        *[("topics", "type", value) for value in (None, 1)],
    ],
)
@pytest.mark.parametrize("rows", ["", "where rowid = 2"])
def test_a_database_with_other_values_is_an_error_of_the_data(
    table: str, column: str, value: Any, rows: str, tmp_path: Path
) -> None:
    folder = build.other_bag(tmp_path / "a", build.standard(4))
    (path,) = folder.glob("*.db3")
    with sqlite3.connect(path) as database:  # the copy has no constraints
        database.execute(f"create table copied as select * from {table}")
        database.execute(f"drop table {table}")
        database.execute(f"alter table copied rename to {table}")
        database.execute(f"update {table} set {column} = ? {rows}", (value,))
    for words in (["inspect"], ["verify", "--full"]):
        code, text = run_vlatool(*words, str(tmp_path), "--json", "-q")
        assert code in (0, 3), text


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("/none", path)],
    ids=["pipe", "folder", ""],
)
def test_metadata_that_is_no_file_is_an_error_of_the_data(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = build.other_bag(tmp_path / "a", build.standard(4))
    (folder / "metadata.yaml").unlink()
    make(folder / "metadata.yaml")
    code, text = run_vlatool("inspect", str(tmp_path), "--json", "-q")
    assert code in (0, 3), text


# Others


@pytest.mark.parametrize("count", [1, 2], ids=["one shard", "all shards"])
def test_empty_shards_of_rlds_are_an_error_of_the_data(
    count: int, samples: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(samples("rlds"), tmp_path / "raw")
    for path in sorted((tmp_path / "raw").glob("*.tfrecord*"))[:count]:
        path.write_bytes(b"")
    code, text = run_vlatool("inspect", str(tmp_path / "raw"), "--json", "-q")
    assert code == {1: 0, 2: 3}[count], text


@pytest.mark.parametrize("size", [float("inf"), 2**31, 10**400, -1, 0, 1.5, "x", None, []])
def test_a_shape_that_no_column_has_is_no_type(size: Any) -> None:
    assert arrow_type({"dtype": "float32", "shape": [size]}) is None
    assert arrow_type({"dtype": "float32", "shape": [3]}) == pa.list_(pa.float32(), 3)
