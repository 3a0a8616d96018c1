"""Messages to objects, and from these images, times and numbers.

ROS messages are decoded by rosbags with the definitions in the bag, protobuf messages by the
descriptors in it; JSON messages describe themselves.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError, VlatoolError, installed, missing_package
from vlatool.sources.mcap.bag import Bag, BagChannel
from vlatool.sources.mcap.rules import MCAP
from vlatool.storage.tree import natural_key

TEXT = "std_msgs/msg/String"
_IMAGES: dict[str, Literal["raw", "file", "video"]] = {
    "Image": "raw",
    "RawImage": "raw",
    "CompressedImage": "file",
    "CompressedVideo": "video",
    "FFMPEGPacket": "video",
}
_IMAGE_PACKAGES = ("sensor_msgs", "foxglove", "foxglove_msgs", "ffmpeg_image_transport_msgs")
_NO_VALUES = ("header", "stamp", "timestamp", "frame_id", "child_frame_id", "layout")
_ZSTD = b"\x28\xb5\x2f\xfd"  # no start of a message in CDR
_LARGEST = 2**28  # bytes of an inflated message
_STEP = re.compile(r"\[(?P<frame>[^\]]*)\]|(?P<member>[^.\[\]]+)")
_LONG_ARRAY = re.compile(rb"\[(<=)?\d{6}")  # the decoder of an array may have code for each item
_LARGEST_FIELD = 2**16  # numbers of a message


def image_kind(channel: BagChannel) -> Literal["raw", "file", "video"] | None:
    """Kind of the images of a topic; None if it has none."""
    parts = re.split(r"[./]", channel.type)
    is_image = parts[0] in _IMAGE_PACKAGES and channel.encoding != "json"
    return _IMAGES.get(parts[-1]) if is_image else None


def channels_of(bag: Bag) -> dict[str, BagChannel | DataError]:
    """Topic, in natural order, to the kind of its messages, or to the error of decoding them."""
    kinds: dict[str, dict[BagChannel, None]] = {}
    for channel in (channel for file in bag.files for channel in file.channels.values()):
        kinds.setdefault(channel.topic, {})[channel] = None
    known: dict[str, BagChannel | DataError] = {}
    for topic in sorted(kinds, key=natural_key):
        known[topic] = channel = next(iter(kinds[topic]))
        reason, code = "", "missing_schema"
        if len(kinds[topic]) > 1:
            reason, code = f"has messages of {len(kinds[topic])} types", "two_types"
        elif channel.encoding not in ("cdr", "ros1", "protobuf", "json"):
            reason, code = f"is encoded as {channel.encoding!r}", "unknown_encoding"
        else:
            try:
                _decoder(channel)
            except VlatoolError:
                raise
            except Exception as error:  # noqa: BLE001 - the parser of the library
                reason = f"has no usable schema {channel.type!r}: {error!r}"[:400]
        if reason:
            known[topic] = MCAP.error(code, bag.path, topic, reason, field=topic)
    return known


def decoded(path: Path, channel: BagChannel, data: bytes) -> Any:
    """A message as an object; DataError if its data do not fit the schema."""
    topic = channel.topic
    try:
        if channel.encoding == "cdr" and data.startswith(_ZSTD):  # `--compression-mode message`
            stream = installed("zstandard").ZstdDecompressor().stream_reader(data)
            data = stream.read(_LARGEST + 1)
            if len(data) > _LARGEST:
                reason = f"a message inflates to more than {_LARGEST:,} bytes"
                raise MCAP.error("too_large", path, topic, reason, field=topic)
        return _decoder(channel)(data)
    except VlatoolError:
        raise
    except Exception as error:
        raise MCAP.error("bad_message", path, topic, repr(error), field=topic) from error


@lru_cache(maxsize=256)
def _decoder(channel: BagChannel) -> Callable[[bytes], Any]:
    if channel.encoding == "protobuf":
        return _protobuf_class(channel).FromString
    if channel.encoding == "json":
        return partial(json.loads, object_hook=lambda members: SimpleNamespace(**members))
    types = installed("rosbags.typesys")
    known = types.get_typestore(types.Stores.ROS2_HUMBLE).fielddefs
    if channel.schema or channel.type not in known:  # db3 before ROS 2 Iron has none
        if _LONG_ARRAY.search(channel.schema):
            raise ValueError("an array of 100,000 items or more")
        known = {name: known[name] for name in known if name.startswith("builtin_interfaces")}
        text = channel.schema.decode()
        if channel.schema_encoding == "ros2idl":
            for part in re.split(r"^=+\nIDL: [^\n]*\n", text, flags=re.MULTILINE):
                known |= types.get_types_from_idl(part) if part else {}
        else:
            known |= types.get_types_from_msg(text, channel.type)
    store = types.get_typestore(types.Stores.EMPTY)
    store.register(known)
    store.get_msgdef(channel.type)
    decode = store.deserialize_ros1 if channel.encoding == "ros1" else store.deserialize_cdr
    return lambda data: decode(data, channel.type)


def _protobuf_class(channel: BagChannel) -> Any:
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, timestamp_pb2
        from google.protobuf.message_factory import GetMessageClass
    except ModuleNotFoundError:
        raise missing_package("protobuf") from None
    parse = descriptor_pb2.FileDescriptorProto.FromString
    common = [parse(m.DESCRIPTOR.serialized_pb) for m in (timestamp_pb2, duration_pb2)]
    listed = descriptor_pb2.FileDescriptorSet.FromString(channel.schema).file
    files = {file.name: file for file in (*common, *listed)}
    pool = descriptor_pool.DescriptorPool()

    def add(name: str) -> None:
        file = files.pop(name, None)  # an import that is missing is an error of `Add`
        for needed in file.dependency if file else ():
            add(needed)
        if file:
            pool.Add(file)

    for name in list(files):
        add(name)
    return GetMessageClass(pool.FindMessageTypeByName(channel.type))


def stamp_of(message: Any) -> int | None:
    """Header stamp in nanoseconds; None if there is none, or none was set."""
    header = getattr(message, "header", message)
    stamp = getattr(header, "stamp", None) or getattr(message, "timestamp", None)
    seconds = getattr(stamp, "sec", getattr(stamp, "seconds", 0))
    names = (name for name in ("nanosec", "nanos", "nsec") if hasattr(stamp, name))
    rest = getattr(stamp, next(names, ""), 0)
    is_time = isinstance(seconds, int) and isinstance(rest, int)
    return (seconds * 10**9 + rest or None) if is_time else None


@dataclasses.dataclass
class FrameNames:
    """Frames of transforms, as `parent>child`."""

    used: dict[str, None] = dataclasses.field(default_factory=dict[str, None])
    others: dict[str, None] = dataclasses.field(default_factory=dict[str, None])


def member_at(message: Any, path: str, frames: FrameNames | None = None) -> Any:
    """The member of a path such as `pose.position`, `list.0` or `transforms[tool0].transform`.

    None if no transform has the child frame, or `parent>child`, in brackets. `frames` gets the
    frames on the way. Raises LookupError without the member.
    """
    if frames is not None and not path.startswith("["):
        frames.used.update(dict.fromkeys(frames_of(message)))
    for step in _STEP.finditer(path):
        name, frame = step["member"], step["frame"]
        if name is None:
            message = _with_frame(message, frame, frames or FrameNames())
            if message is None:
                return None
            continue
        if frames is not None and name.isdecimal():
            frames.others.update(dict.fromkeys(frames_of(message)))
            frames.used.update(dict.fromkeys(frames_of(message)[int(name) :][:1]))
        try:
            message = message[int(name)] if name.isdecimal() else getattr(message, name)
        except (AttributeError, TypeError, IndexError):
            raise LookupError(f"there is no {name!r}") from None
    return message


def _with_frame(value: Any, frame: str, frames: FrameNames) -> Any:
    """The transform with a child frame, or `parent>child`; None if there is none."""
    items = value if isinstance(value, Sequence) else [value]
    chosen: list[Any] = []
    for item in items:
        for name in frames_of(item):
            is_chosen = frame.lstrip("/") in (name, name.partition(">")[2])
            (frames.used if is_chosen else frames.others)[name] = None
            if is_chosen:
                chosen.append(item)
    return chosen[0] if chosen else None


def frames_of(value: Any) -> list[str]:
    """`parent>child` of a transform, or of a list of them; empty for others."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [name for item in value for name in frames_of(item)]
    child = getattr(value, "child_frame_id", None)
    if not isinstance(child, str):
        return []
    header = getattr(value, "header", None)
    parent = getattr(value, "parent_frame_id", getattr(header, "frame_id", ""))
    return [f"{str(parent).lstrip('/')}>{child.lstrip('/')}"]


def list_of_frames(message: Any) -> list[str]:
    """`parent>child` of the transforms of a message, or of a list in it."""
    return [*frames_of(message), *frames_of(getattr(message, "transforms", ()))]


def with_frame(path: str, frame: str) -> str:
    """A path with the transform of a frame in place of that of a number or another frame."""
    named, count = re.subn(r"(\.\d+|\[[^\]]*\])(?=\.|$)", f"[{frame}]", path, count=1)
    return named if count else f"[{frame}].{path}".rstrip(".")


def numbers_of(value: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """(dotted name, numbers [N]) of all members but headers, times and names of frames.

    Raises TypeError for text and lists of messages.
    """
    members: list[str] = []
    if dataclasses.is_dataclass(value):
        members = [member.name for member in dataclasses.fields(value)]
    elif isinstance(value, SimpleNamespace):
        members = [*vars(value)]
    elif hasattr(value, "DESCRIPTOR"):
        members = [member.name for member in value.DESCRIPTOR.fields]
    elif isinstance(value, str) or not isinstance(value, int | float | np.ndarray | Sequence):
        raise TypeError(f"{name or 'it'} is no number")
    for member in members:
        if member not in _NO_VALUES and not member.startswith(("__", "structure_needs")):
            yield from numbers_of(getattr(value, member), f"{name}.{member}".lstrip("."))
    if not members:
        array = np.atleast_1d(np.asarray(value))
        if array.dtype.kind not in "fiub" or array.size > _LARGEST_FIELD:
            raise TypeError(f"{name or 'it'} has {array.size} of {array.dtype}")
        yield name, array.astype(np.float64)


def joints_of(message: Any) -> list[str]:
    """Names of the joints of a JointState; empty for other messages."""
    names = getattr(message, "name", "")
    return [] if isinstance(names, str) or not hasattr(message, "position") else [*map(str, names)]
