"""Messages to objects, and from these images, times and numbers.

ROS messages are decoded by rosbags with the definitions in the bag, protobuf messages by the
descriptors in it; JSON messages describe themselves.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError, VlatoolError, installed, missing_package
from vlatool.events import counted
from vlatool.media import limits
from vlatool.recordings.inventory import SUCCESS_TEXTS
from vlatool.recordings.mcap.bag import Bag, BagChannel
from vlatool.recordings.mcap.check import MCAP
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
_MOST_ITEMS = 100_000  # of the arrays of a type together: their decoder may have code for each
_MOST_MEMBERS = 2**12  # of a message, including members of members
_DEEPEST = 32  # members of members
_STEP = re.compile(r"\[(?P<frame>[^\]]*)\]|(?P<member>[^.\[\]]+)")
_LARGEST_FIELD = 2**16  # numbers of a message


def image_kind(channel: BagChannel) -> Literal["raw", "file", "video"] | None:
    """Kind of the images of a topic; None if it has none."""
    parts = re.split(r"[./]", channel.type)
    is_image = parts[0] in _IMAGE_PACKAGES and channel.encoding != "json"
    return _IMAGES.get(parts[-1]) if is_image else None


def channels_of(bag: Bag) -> tuple[dict[str, BagChannel], dict[str, DataError]]:
    """Returns the kind of the messages by topic, in natural order, and the errors by topic."""
    by_topic: dict[str, set[BagChannel]] = {}
    for file in bag.files:
        for channel in file.channels.values():
            by_topic.setdefault(channel.topic, set()).add(channel)
    channels: dict[str, BagChannel] = {}
    errors: dict[str, DataError] = {}
    for topic in sorted(by_topic, key=natural_key):
        channel = next(iter(by_topic[topic]))
        reason = ""
        code = "missing_schema"
        if len(by_topic[topic]) > 1:
            reason = f"has messages of {len(by_topic[topic])} types"
            code = "two_types"
        elif channel.encoding not in ("cdr", "ros1", "protobuf", "json"):
            reason = f"is encoded as {channel.encoding!r}"
            code = "unknown_encoding"
        else:
            try:
                _decoder(channel)
            except VlatoolError:
                raise
            except Exception as error:  # noqa: BLE001 - the parser of the library
                reason = f"has a schema {channel.type!r} that cannot be used: {error!r}"[:400]
        if reason:
            errors[topic] = MCAP.error(code, bag.path, topic, reason, field=topic)
        else:
            channels[topic] = channel
    return channels, errors


def decoded(path: Path, channel: BagChannel, data: bytes) -> Any:
    """A message as an object; DataError if its data do not fit the schema."""
    topic = channel.topic
    try:
        if channel.encoding == "cdr" and data.startswith(_ZSTD):  # `--compression-mode message`
            stream = installed("zstandard").ZstdDecompressor().stream_reader(data)
            data = stream.read(limits.most_bytes() + 1)
            limits.check_bytes(MCAP, path, topic, len(data))
        return _decoder(channel)(data)
    except VlatoolError:
        raise
    except Exception as error:
        raise MCAP.error("bad_message", path, topic, repr(error), field=topic) from error


def _decoder(channel: BagChannel) -> Callable[[bytes], Any]:
    if channel.encoding == "json":
        return partial(json.loads, object_hook=lambda members: SimpleNamespace(**members))
    return _decoder_of(channel.encoding, channel.type, channel.schema)


@lru_cache(maxsize=4096)
def _decoder_of(encoding: str, kind: str, schema: bytes) -> Callable[[bytes], Any]:
    if encoding == "protobuf":
        return _protobuf_class(kind, schema).FromString
    types = installed("rosbags.typesys")
    known = _known_types()
    if schema or kind not in known:  # db3 before ROS 2 Iron has none
        known = {name: known[name] for name in known if name.startswith("builtin_interfaces")}
        known |= types.get_types_from_msg(schema.decode(), kind)
        _count_items(known, kind, {})
    store = types.get_typestore(types.Stores.EMPTY)
    store.register(known)
    store.get_msgdef(kind)
    decode = store.deserialize_ros1 if encoding == "ros1" else store.deserialize_cdr
    return lambda data: decode(data, kind)


@lru_cache(maxsize=1)
def _known_types() -> dict[str, Any]:
    types = installed("rosbags.typesys")
    return types.get_typestore(types.Stores.ROS2_HUMBLE).fielddefs


def _count_items(types: Mapping[str, Any], kind: str, counts: dict[str, int]) -> int:
    """Members of a type of ROS with the items of its arrays; ValueError for too many."""
    if kind in counts:
        return counts[kind]
    counts[kind] = _MOST_ITEMS + 1  # if it contains itself
    nodes = installed("rosbags.interfaces").Nodetype
    total = 0
    for _, (node, description) in types[kind][1] if kind in types else ():
        items = 1
        if node in (nodes.ARRAY, nodes.SEQUENCE):
            is_array = node == nodes.ARRAY
            (node, description), length = description
            items = length if is_array else 1
        if node == nodes.NAME:
            items *= _count_items(types, description, counts)
        total += items
    if total > _MOST_ITEMS:
        raise ValueError(f"{kind} has more than {_MOST_ITEMS:,} items, or contains itself")
    counts[kind] = total
    return total


def _protobuf_class(kind: str, schema: bytes) -> Any:
    try:
        from google.protobuf import descriptor_pb2, duration_pb2, timestamp_pb2
        from google.protobuf.message_factory import GetMessages
    except ModuleNotFoundError:
        raise missing_package("protobuf") from None
    files = descriptor_pb2.FileDescriptorSet.FromString(schema).file
    for common in (timestamp_pb2, duration_pb2):
        if all(file.name != common.DESCRIPTOR.name for file in files):
            common.DESCRIPTOR.CopyToProto(files.add())
    return GetMessages(files)[kind]


def stamp_of(message: Any) -> int | None:
    """Header stamp in nanoseconds; None if there is none, or none was set."""
    header = getattr(message, "header", message)
    stamp = getattr(header, "stamp", None) or getattr(message, "timestamp", None)
    seconds = getattr(stamp, "sec", getattr(stamp, "seconds", 0))
    rest = 0
    for name in ("nanosec", "nanos", "nsec"):
        if hasattr(stamp, name):
            rest = getattr(stamp, name)
            break
    if not (isinstance(seconds, int) and isinstance(rest, int)):
        return None
    return seconds * 10**9 + rest or None


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
    frames = frames or FrameNames()
    for step in _STEP.finditer(path):
        name = step["member"]
        if name is None:
            message = _with_frame(message, step["frame"], frames)
            if message is None:
                return None
            continue
        _note_frame(message, frames.used)
        try:
            if name.isdecimal():
                for item in message:
                    _note_frame(item, frames.others)
                message = message[int(name)]
            else:
                message = getattr(message, name)
        except (AttributeError, TypeError, IndexError):
            raise LookupError(f"there is no {name!r}") from None
    _note_frame(message, frames.used)
    return message


def _note_frame(value: Any, names: dict[str, None]) -> None:
    name = frame_of(value)
    if name:
        names[name] = None


def _with_frame(value: Any, frame: str, frames: FrameNames) -> Any:
    """The transform with a child frame, or `parent>child`; None if there is none."""
    transform: Any = None
    for item in value if isinstance(value, Sequence) else [value]:
        name = frame_of(item)
        if frame.lstrip("/") in (name, name.partition(">")[2]):
            frames.used[name] = None
            transform = transform or item
        else:
            frames.others[name] = None
    return transform


def frame_of(value: Any) -> str:
    """`parent>child` of a transform; empty for others."""
    child = getattr(value, "child_frame_id", None)
    if not isinstance(child, str):
        return ""
    header = getattr(value, "header", None)
    parent = getattr(value, "parent_frame_id", getattr(header, "frame_id", ""))
    return f"{str(parent).lstrip('/')}>{child.lstrip('/')}"


def with_frame(path: str, frame: str) -> str:
    """Returns a path that names the transform of a frame, not of a number or another frame."""
    named, count = re.subn(r"(\.\d+|\[[^\]]*\])(?=\.|$)", f"[{frame}]", path, count=1)
    return named if count else f"[{frame}].{path}".rstrip(".")


_MOST_LISTED = 16  # messages of a list that are taken apart


def numbers_of(
    value: Any, name: str = "", skipped: dict[str, str] | None = None
) -> Iterator[tuple[str, Array]]:
    """(dotted name, numbers [N]) of all members but headers, times and names of frames.

    Members that are no numbers are added to `skipped` with the reason, if it is given.

    Raises TypeError for text, long lists and messages that contain themselves.
    """
    waiting: list[tuple[Any, str]] = [(value, name)]  # the next one last
    seen = 0
    while waiting:
        value, name = waiting.pop()
        seen += 1
        if seen > _MOST_MEMBERS or name.count(".") > _DEEPEST:
            raise TypeError(f"contains itself, or more than {_MOST_MEMBERS:,} members")
        members = _members(value)
        for member in reversed(members):
            if member not in _NO_VALUES and not member.startswith(("__", "structure_needs")):
                waiting.append((getattr(value, member), f"{name}.{member}".lstrip(".")))
        if members:
            continue
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if is_list and len(value) <= _MOST_LISTED and all(_members(item) for item in value):
            for number in reversed(range(len(value))):
                waiting.append((value[number], f"{name}.{number}".lstrip(".")))
            continue
        reason = ""
        array = np.empty(0)
        if isinstance(value, str) or not isinstance(value, int | float | np.ndarray | Sequence):
            reason = f"{name or 'it'} is no number"
        else:
            array = np.atleast_1d(np.asarray(value))
            if array.dtype.kind not in "fiub" or array.size > _LARGEST_FIELD:
                reason = f"{name or 'it'} has {array.size} of {array.dtype}"
        if reason and (skipped is None or not name):
            raise TypeError(reason)
        if reason and skipped is not None:
            skipped[name] = reason
        else:
            yield name, array.astype(np.float64)


def _members(value: Any) -> list[str]:
    """Names of the members of a message; none of any other value."""
    if hasattr(value, "DESCRIPTOR"):
        return [member.name for member in value.DESCRIPTOR.fields]
    return [*vars(value)] if hasattr(value, "__dict__") else []


def is_of_joints(message: Any) -> bool:
    """True for a JointState."""
    return hasattr(message, "position") and not isinstance(getattr(message, "name", ""), str)


def flag_of(value: Any) -> bool | None:
    """Meaning of a success flag; None: an empty text. ValueError if it has none."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text and text not in SUCCESS_TEXTS:
            raise ValueError(f"success is {value!r}, neither true nor false")
        return SUCCESS_TEXTS.get(text)
    numbers: list[float] = []
    for _, part in numbers_of(value):
        numbers += list(part)
    if len(numbers) != 1 or not np.isfinite(numbers[0]):
        raise ValueError(f"success is {numbers}, neither true nor false")
    return bool(numbers[0])


def is_flag(message: Any) -> bool:
    """True for a Bool, a number or a text that says whether an episode succeeded."""
    try:
        flag_of(getattr(message, "data", message))
    except (ValueError, TypeError):
        return False
    return True


def unnamed_values(names: Sequence[str], count: int) -> str:
    """Says why numbers cannot belong to joints of these names; empty if they can."""
    if count and count != len(names):
        return f"has {counted(count, 'number')} of {counted(len(names), 'joint')}"
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return f"has two joints named {', '.join(twice)}" if count and twice else ""


def joints_of(message: Any) -> list[str]:
    """Names of the joints of a JointState; empty for other messages."""
    return [*map(str, message.name)] if is_of_joints(message) else []
