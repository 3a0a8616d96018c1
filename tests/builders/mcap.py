"""Bags as their own libraries write them: CDR, ROS 1 and Foxglove protobuf."""

import struct
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from mcap.writer import CompressionType, Writer
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

START = 1_700_000_000_000_000_000  # nanoseconds
STRING, BOOL, JOINTS = "std_msgs/msg/String", "std_msgs/msg/Bool", "sensor_msgs/msg/JointState"
NUMBERS, POSE = "std_msgs/msg/Float64MultiArray", "geometry_msgs/msg/PoseStamped"
IMAGE, ENCODED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"

Sent = tuple[str, float, Any]  # topic, seconds after the start, message


@cache
def store(version: int = 2) -> Any:
    return get_typestore(Stores.ROS2_HUMBLE if version == 2 else Stores.ROS1_NOETIC)


def ros(kind: str, *values: Any, version: int = 2) -> Any:
    return store(version).types[kind](*values)


def header(seconds: float = 0.0, version: int = 2) -> Any:
    whole, rest = divmod(START + round(seconds * 1e9), 10**9)
    stamp = ros("builtin_interfaces/msg/Time", whole, rest)
    sequence = (0,) if version == 1 else ()
    return ros("std_msgs/msg/Header", *sequence, stamp, "base", version=version)


def numbers(*values: float) -> Any:
    layout = ros("std_msgs/msg/MultiArrayLayout", [], 0)
    return ros(NUMBERS, layout, np.array(values, np.float64))


def joints(seconds: float, **positions: float) -> Any:
    values, none = np.array([*positions.values()], np.float64), np.empty(0)
    return ros(JOINTS, header(seconds), [*positions], values, values * 10, none)


def image(pixels: np.ndarray, encoding: str, seconds: float = 0.0, padding: int = 0) -> Any:
    """A raw image; `padding`: bytes at the end of each row."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    data = np.pad(rows, ((0, 0), (0, padding)))
    step = data.shape[1]
    return ros(IMAGE, header(seconds), height, width, encoding, 0, step, data.ravel())


def transforms(seconds: float, **positions: tuple[float, float, float]) -> Any:
    """A TFMessage; `positions`: PARENT__CHILD to the translation."""
    items: list[Any] = []
    rotation = ros("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0)
    for name, position in positions.items():
        parent, child = name.split("__")
        place = ros("geometry_msgs/msg/Vector3", *map(float, position))
        head = ros("std_msgs/msg/Header", header(seconds).stamp, parent)
        pose = ros("geometry_msgs/msg/Transform", place, rotation)
        items.append(ros("geometry_msgs/msg/TransformStamped", head, child, pose))
    return ros("tf2_msgs/msg/TFMessage", items)


def encoded(data: bytes, seconds: float = 0.0, form: str = "png") -> Any:
    return ros(ENCODED, header(seconds), form, np.frombuffer(data, np.uint8))


def packets(images: np.ndarray) -> list[bytes]:
    """H.264 in Annex B, a keyframe for every second image."""
    context = av.CodecContext.create("libx264", "w")
    context.height, context.width = images.shape[1:3]
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 10)
    params = "keyint=2:min-keyint=2:scenecut=0:bframes=0"
    context.options = {"crf": "1", "tune": "zerolatency", "x264-params": params}
    stored: list[bytes] = []
    for pixels in images:
        stored += map(bytes, context.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    return [*stored, *map(bytes, context.encode(None))]


def standard(count: int = 5, **joint_values: float) -> list[Sent]:
    """State, action, instruction at 10 Hz."""
    sent: list[Sent] = [("/instruction", 0.0, ros(STRING, "push"))]
    for step in range(count):
        time = step / 10
        values = joint_values or {"b": step + 0.5, "a": float(step)}
        sent.append(("/joint_states", time, joints(time, **values)))
        sent.append(("/action", time, numbers(step, -step)))
    return sent


def bag(path: Path, sent: Iterable[Sent], **options: Any) -> Path:
    """An MCAP file; `options` are those of the writer, and `change(writer)`."""
    change = options.pop("change", lambda writer: None)
    with path.open("wb") as file:
        writer = Writer(file, **{"compression": CompressionType.ZSTD, **options})
        writer.start("ros2")
        channels: dict[tuple[str, str], int] = {}
        change(writer)
        for topic, seconds, message in sent:
            kind = getattr(message, "__msgtype__", "") or message.DESCRIPTOR.full_name
            if (topic, kind) not in channels:
                channels[topic, kind] = _channel(writer, topic, kind, message)
            is_ros = "/" in kind
            data = store().serialize_cdr(message, kind) if is_ros else message.SerializeToString()
            time = START + round(seconds * 1e9)
            writer.add_message(channels[topic, kind], time, bytes(data), time)
        writer.finish()
    return path


def _channel(writer: Writer, topic: str, kind: str, message: Any) -> int:
    if "/" in kind:
        text = store().generate_msgdef(kind, ros_version=2)[0].encode()
        return writer.register_channel(topic, "cdr", writer.register_schema(kind, "ros2msg", text))
    files = descriptor_pb2.FileDescriptorSet()
    for file in (timestamp_pb2.DESCRIPTOR, message.DESCRIPTOR.file):
        file.CopyToProto(files.file.add())
    schema = writer.register_schema(kind, "protobuf", files.SerializeToString())
    return writer.register_channel(topic, "protobuf", schema)


_TYPES = {"string": 9, "bytes": 12, "double": 1, "uint32": 13}
_FOXGLOVE: Mapping[str, Mapping[str, str]] = {
    "Vector3": {"x": "double", "y": "double", "z": "double"},
    "PoseInFrame": {"timestamp": "time", "frame_id": "string", "position": "Vector3"},
    "CompressedImage": {
        "timestamp": "time",
        "frame_id": "string",
        "data": "bytes",
        "format": "string",
    },
    "CompressedVideo": {
        "timestamp": "time",
        "frame_id": "string",
        "data": "bytes",
        "format": "string",
    },
    "RawImage": {
        "timestamp": "time",
        "frame_id": "string",
        "width": "uint32",
        "height": "uint32",
        "encoding": "string",
        "step": "uint32",
        "data": "bytes",
    },
}


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="foxglove.proto", package="foxglove")
    file.syntax = "proto3"
    file.dependency.append("google/protobuf/timestamp.proto")
    for name, members in _FOXGLOVE.items():
        message = file.message_type.add(name=name)
        for number, (member, kind) in enumerate(members.items(), 1):
            inner = ".google.protobuf.Timestamp" if kind == "time" else f".foxglove.{kind}"
            field = message.field.add(name=member, number=number, label=1)
            field.type = _TYPES.get(kind, 11)
            if kind not in _TYPES:
                field.type_name = inner
    pool.Add(file)
    return pool


def foxglove(name: str, seconds: float = 0.0, **values: Any) -> Any:
    """A message of the package foxglove."""
    kind = message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"foxglove.{name}"))
    message = kind(**values)
    message.timestamp.seconds, rest = divmod(START + round(seconds * 1e9), 10**9)
    message.timestamp.nanos = rest
    return message


def other_bag(
    path: Path,
    sent: Iterable[Sent],
    plugin: StoragePlugin = StoragePlugin.SQLITE3,
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """A ROS 1 bag (`.bag`), or a folder with metadata.yaml and a db3 or MCAP file."""
    version = 1 if path.suffix == ".bag" else 2
    if version == 1:
        writer: Any = Writer1(path)
        writer.chunk_threshold = 1000
    else:
        writer = Writer2(path, version=9, storage_plugin=plugin)
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        links: dict[str, Any] = {}
        for topic, seconds, message in sent:
            kind = message.__msgtype__
            if topic not in links:
                links[topic] = writer.add_connection(topic, kind, typestore=store(version))
            if version == 1:
                data = store(1).serialize_ros1(message, kind)
            else:
                data = store().serialize_cdr(message, kind)
            writer.write(links[topic], START + round(seconds * 1e9), data)
    return path


def damaged(path: Path, place: int, data: bytes) -> Path:
    """Replaces bytes of a file; a negative place counts from its end."""
    content = bytearray(path.read_bytes())
    start = place % len(content)
    content[start : start + len(data)] = data
    path.write_bytes(content)
    return path


def cut(path: Path, stop: int) -> Path:
    path.write_bytes(path.read_bytes()[:stop])
    return path


def unindexed(path: Path) -> Path:
    """A ROS 1 bag as a recorder leaves it that was killed."""
    data = bytearray(path.read_bytes())
    place = data.index(b"index_pos=") + len(b"index_pos=")
    (index,) = struct.unpack_from("<Q", data, place)
    struct.pack_into("<Q", data, place, 0)
    path.write_bytes(data[:index])
    return path
