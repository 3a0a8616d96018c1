"""Images of a topic, read from the bag on request: raw, JPEG and PNG, and packets of video."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np

from vlatool.artifacts.images import decode_rgb, decode_values
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.sources.frames import SingleImages
from vlatool.sources.inventory import (
    Assignment,
    Stored,
    decide,
    depth_image,
    encoded_thing,
    is_encoded,
    label_image,
)
from vlatool.sources.mcap.bag import Bag, BagChannel, TopicReader
from vlatool.sources.mcap.messages import decoded, image_kind
from vlatool.sources.mcap.rules import MCAP

# How images of a topic are used. Without `rgb` or `bgr`, colors are in the order that the messages
# say, which a mapping may contradict.
ImageUse = Literal["camera", "rgb", "bgr", "depth", "labels"]

_MOST_PIXELS = 2**26
_MOST_DIGITS = 20  # of a number in RVL


@dataclass(frozen=True)
class _Encoding:
    """How a raw image is stored.

    Attributes:
        channels: Values of a pixel; of `pixels` bytes of a pixel in the first plane.
        dtype: Type of a value.
        order: Which channels are red, green and blue; empty: it has no colors.
        has_order: False if the name does not say the order of the colors.
        pixels: Name of FFmpeg, which converts it; empty: no conversion is needed.
    """

    channels: int
    dtype: str = "u1"
    order: tuple[int, ...] = ()
    has_order: bool = True
    pixels: str = ""


_RGB, _BGR, _GRAY = (0, 1, 2), (2, 1, 0), (0, 0, 0)
# Source: sensor_msgs/image_encodings.hpp, in lower case. 8UC3 has no order of colors; cv_bridge
# (cvtColorForDisplay) and Foxglove take blue, green, red, as arrays of OpenCV are.
_ENCODINGS = {
    "rgb8": _Encoding(3, order=_RGB),
    "bgr8": _Encoding(3, order=_BGR),
    "rgba8": _Encoding(4, order=_RGB),
    "bgra8": _Encoding(4, order=_BGR),
    "rgb16": _Encoding(3, "u2", _RGB),
    "bgr16": _Encoding(3, "u2", _BGR),
    "rgba16": _Encoding(4, "u2", _RGB),
    "bgra16": _Encoding(4, "u2", _BGR),
    "8uc3": _Encoding(3, order=_BGR, has_order=False),
    "8uc4": _Encoding(4, order=_BGR, has_order=False),
    "16uc3": _Encoding(3, "u2", _BGR, has_order=False),
    "16uc4": _Encoding(4, "u2", _BGR, has_order=False),
    "mono8": _Encoding(1, order=_GRAY),
    "8uc1": _Encoding(1, order=_GRAY),
    "mono16": _Encoding(1, "u2", _GRAY),
    "16uc1": _Encoding(1, "u2"),
    "32fc1": _Encoding(1, "f4"),
    "32sc1": _Encoding(1, "i4"),
    "yuv422": _Encoding(2, pixels="uyvy422"),
    "uyvy": _Encoding(2, pixels="uyvy422"),
    "yuv422_yuy2": _Encoding(2, pixels="yuyv422"),
    "yuyv": _Encoding(2, pixels="yuyv422"),
    "nv12": _Encoding(1, pixels="nv12"),
    "nv21": _Encoding(1, pixels="nv21"),
}
for _pattern in ("rggb", "bggr", "gbrg", "grbg"):
    _ENCODINGS[f"bayer_{_pattern}8"] = _Encoding(1, pixels=f"bayer_{_pattern}8")
    _ENCODINGS[f"bayer_{_pattern}16"] = _Encoding(2, pixels=f"bayer_{_pattern}16le")
_PLANAR = ("nv12", "nv21")  # half as many rows of colors follow
_CODECS = {"h264": "h264", "h265": "hevc", "hevc": "hevc"}
_DEPTH_HEAD = struct.Struct("<iff")  # compressedDepth: form, and both numbers of the quantization


class BagImages(SingleImages):
    """Images of a topic at frames, which are positions of messages; video needs all of them.

    The last image and chunk stay in memory. Packets of video are decoded from the last keyframe on,
    once each where reads ascend; there are no B-frames.
    """

    may_differ: ClassVar[bool] = True

    def __init__(
        self, bag: Bag, channel: BagChannel, messages: Array, frames: Array, use: ImageUse
    ) -> None:
        """`messages` [M, 7]: position, and 1 for a keyframe; `frames` [F]: numbers of messages."""
        self._bag, self._channel, self._messages, self._frames = bag, channel, messages, frames
        self._kind = image_kind(channel)
        self._use: ImageUse = use
        self._reader = TopicReader(bag)
        self._packets: Iterator[UInt8Array] = iter(())
        self._last: tuple[int, Array] = -1, np.empty(0)

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packets": iter(()), "_last": (-1, np.empty(0))}

    @property
    def size(self) -> tuple[int, int]:
        try:
            if self._kind == "video":
                size = self.image(0).shape[:2]
            else:
                message = self._message(int(self._frames[0]))
                size = image_thing(self._channel, message).shape[:2]
        except (ValueError, TypeError, AttributeError, struct.error) as error:
            raise self.image_error(0, str(error)) from error
        if not 0 < math.prod(size) <= _MOST_PIXELS:
            raise self.image_error(0, f"has {size[1]} x {size[0]} pixels")
        return size[0], size[1]

    def encoded(self, index: int) -> bytes | None:
        """The stored JPEG or PNG; None for others, and where colors are swapped."""
        if self._kind != "file" or self._use not in ("camera", "rgb"):
            return None
        data = bytes(self._message(int(self._frames[index])).data)
        return data if is_encoded(data) else None

    def _message(self, number: int) -> Any:
        data = self._reader.read(self._messages[number][:6])
        return decoded(self._bag.path, self._channel, data)

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self._channel.topic}: frame {index}"
        return MCAP.error("bad_image", self._bag.path, place, reason, frame=index)

    def image(self, index: int) -> Array:
        number = int(self._frames[index])
        try:
            if self._kind == "video":
                return self._packet_image(number)
            if self._last[0] != number:
                self._last = number, self._decoded(self._message(number))
        except (ValueError, StopIteration, TypeError, AttributeError, struct.error) as error:
            self._last = -1, np.empty(0)
            raise self.image_error(index, str(error) or "holds no image") from error
        return self._last[1]

    def _decoded(self, message: Any) -> Array:
        if self._use in ("depth", "labels"):
            values, scale = _single_channel(message)
            is_depth = self._use == "depth"
            return depth_image(values, scale) if is_depth else label_image(values)
        if self._kind == "raw":
            return _pixels(message, self._use)
        image = decode_rgb(bytes(message.data))
        return image[..., ::-1] if self._use == "bgr" else image

    def _packet_image(self, number: int) -> Array:
        keys = np.flatnonzero(self._messages[: number + 1, 6])
        if not len(keys):
            raise ValueError("no keyframe is before it")
        key = int(keys[-1])
        if not key <= self._last[0] <= number:
            packets = map(self._message, range(key, len(self._messages)))
            self._packets, self._last = _decode(packets), (key - 1, np.empty(0))
        while self._last[0] < number:
            self._last = self._last[0] + 1, next(self._packets)
        return self._last[1][..., ::-1] if self._use == "bgr" else self._last[1]


# What a topic holds


def image_thing(channel: BagChannel, message: Any, use: ImageUse = "camera") -> Stored:
    """What the images of a topic are, by the header of one; ValueError if none can be decoded."""
    topic, kind = channel.topic, image_kind(channel)
    if kind == "video":
        _codec(message)
        return Stored(topic, "video")
    if kind == "file":
        return _file_thing(topic, message)
    encoding, _ = _raw_rows(message)
    height, width = int(message.height), int(message.width)
    if encoding.pixels or encoding.order in (_RGB, _BGR):
        return Stored(topic, "jpeg", (height, width, 3), "uint8")
    if encoding.dtype == "u1":
        return Stored(topic, "png", (height, width), "uint8")
    if encoding.order and use != "depth" and "depth" not in topic.lower():  # mono16
        return Stored(topic, "jpeg", (height, width), "uint8")
    return Stored(topic, "array", (height, width), np.dtype(encoding.dtype).name)


def _file_thing(topic: str, message: Any) -> Stored:
    data, form = bytes(message.data), _format(message)
    if is_encoded(data):
        return encoded_thing(topic, data)
    if "compressedDepth" not in form:
        raise ValueError(f"neither JPEG nor PNG, of the format {form!r}")
    data = data[_DEPTH_HEAD.size :]
    if is_encoded(data):
        return replace(encoded_thing(topic, data), dtype="uint16")
    if "rvl" not in form.lower():
        raise ValueError(f"{form!r} without a PNG")
    width, height = struct.unpack_from("<ii", data)
    return Stored(topic, "array", (height, width), "uint16")


def image_role(thing: Stored) -> Assignment:
    """Role of the images of a topic: labels by their name, depth by their type."""
    by_name = decide(replace(thing, kind="png", dtype="uint8"))
    if len(thing.shape) == 2 and thing.kind != "jpeg" and by_name.role == "labels":
        return by_name
    if thing.kind != "array":
        return decide(thing)
    if thing.dtype == "int32":
        return Assignment("labels", "images", "labels, by their type int32")
    unit = "meters" if thing.dtype == "float32" else "millimeters"
    return Assignment("depth", "images", f"depth in {unit}, by its type {thing.dtype}")


def check_use(channel: BagChannel, message: Any, use: ImageUse) -> None:
    """Raises ValueError if the images of a topic cannot be used so."""
    thing = image_thing(channel, message, use)
    if math.prod(thing.shape[:2]) > _MOST_PIXELS:
        raise ValueError(f"has {thing.shape[1]} x {thing.shape[0]} pixels")
    is_color = thing.kind == "video" or thing.dtype == "uint8" or len(thing.shape) == 3
    if use not in ("depth", "labels") and not is_color:
        raise ValueError(f"holds depth or labels ({thing.dtype}); name it under depth or labels")
    if use == "depth" and is_color:
        raise ValueError("holds colors or 8 bits, no depth")
    if use == "labels" and (len(thing.shape) != 2 or thing.kind == "jpeg"):
        raise ValueError("holds colors, no labels")


def unordered_encoding(message: Any) -> str:
    """The encoding of a raw image whose name does not say the order of the colors, or nothing."""
    name = str(getattr(message, "encoding", ""))
    encoding = _ENCODINGS.get(name.lower())
    return "" if encoding is None or encoding.has_order else name


def _format(message: Any) -> str:
    return str(getattr(message, "format", "")).strip()


# Pixels


def _raw_rows(message: Any) -> tuple[_Encoding, Array]:
    """Encoding and rows uint8 [R, N] of a raw image; ValueError if they do not fit."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    encoding = _ENCODINGS.get(message.encoding.lower())
    if encoding is None:
        raise ValueError(f"is encoded as {message.encoding!r}, not as {', '.join(_ENCODINGS)}")
    used = width * encoding.channels * np.dtype(encoding.dtype).itemsize
    rows = height * 3 // 2 if encoding.pixels in _PLANAR else height
    data = np.frombuffer(message.data, np.uint8)
    if height * width > _MOST_PIXELS or step < used or data.size < step * rows:
        size = f"{width} x {height} pixels of {message.encoding}"
        raise ValueError(f"has {size} in {data.size} bytes")
    return encoding, data[: step * rows].reshape(rows, step)[:, :used]


def _raw_values(message: Any) -> tuple[_Encoding, Array]:
    """Encoding and values [H, W, C] of a raw image that FFmpeg need not convert."""
    encoding, rows = _raw_rows(message)
    order = ">" if getattr(message, "is_bigendian", 0) else "<"
    values = np.ascontiguousarray(rows).view(order + encoding.dtype)
    return encoding, values.reshape(message.height, message.width, encoding.channels)


def _pixels(message: Any, use: ImageUse) -> UInt8Array:
    """A raw image as uint8 [H, W, 3]; of 16 bits the upper 8."""
    encoding, rows = _raw_rows(message)
    if encoding.pixels:
        image = _converted(encoding, rows, message)
        return image[..., ::-1] if use == "bgr" else image
    if not encoding.order:
        raise ValueError(f"holds depth or labels ({message.encoding})")
    _, values = _raw_values(message)
    if encoding.dtype == "u2":
        values = (values >> 8).astype(np.uint8)
    image = values[..., list(encoding.order)]
    is_swapped = use == "bgr" if encoding.has_order else use == "rgb"
    return image[..., ::-1] if is_swapped else image


def _converted(encoding: _Encoding, rows: UInt8Array, message: Any) -> UInt8Array:
    """Colors of YUV and of Bayer patterns; FFmpeg interpolates."""
    import av

    height, width = int(message.height), int(message.width)
    name = encoding.pixels
    if name.startswith("bayer"):
        # Whole cells of 2 x 2 pixels; a row or column that lacks is that of the cell before.
        bytes_of_pixel = encoding.channels
        cells = rows.reshape(height, width, bytes_of_pixel)
        rows = np.pad(cells, ((0, height % 2), (0, width % 2), (0, 0)), mode="reflect")
        rows = rows.reshape(len(rows), -1)
        if bytes_of_pixel == 2 and getattr(message, "is_bigendian", 0):
            name = name.replace("16le", "16be")
    frame = av.VideoFrame(width + width % 2, height + height % 2, name)
    first = 0
    for plane in frame.planes:
        part = rows[first : first + plane.height]
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[: len(part), : part.shape[1]] = part
        plane.update(padded.tobytes())
        first += plane.height
    image: Array = frame.to_ndarray(format="rgb24")
    return image[:height, :width]


def _single_channel(message: Any) -> tuple[Array, float]:
    """Values [H, W] of depth or labels, and the millimeters of a unit."""
    if hasattr(message, "step"):
        _, values = _raw_values(message)
        return values[..., 0], 1000.0 if values.dtype.kind == "f" else 1.0
    data, form = bytes(message.data), _format(message)
    if is_encoded(data):
        return decode_values(data), 1.0
    return _compressed_depth(data, form), 1.0


def _compressed_depth(data: bytes, form: str) -> Array:
    """Depth in millimeters. Source: compressed_depth_image_transport, codec.cpp."""
    _, quantum, offset = _DEPTH_HEAD.unpack_from(data)
    data = data[_DEPTH_HEAD.size :]
    values = decode_values(data) if is_encoded(data) else _rvl(data)
    if not form.startswith("32FC1"):
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        meters = quantum / (values.astype(np.float64) - offset)
    return np.where(values > 0, meters * 1000.0, 0.0)


def _rvl(data: bytes) -> Array:
    """Depth [H, W] in runs of zeros and of differences, in digits of 3 bits. Source: Wilson 2017.

    Numbers are: zeros, count, and `count` differences to the pixel before that is not zero, again
    and again.
    """
    width, height = struct.unpack_from("<ii", data)
    if not 0 < width * height <= _MOST_PIXELS:
        raise ValueError(f"has {width} x {height} pixels")
    words = np.frombuffer(data, "<u4", (len(data) - 8) // 4, 8)
    digits = ((words[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & 15).ravel()
    ends = np.flatnonzero(digits < 8)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    if not len(ends) or (ends - starts).max() >= _MOST_DIGITS:
        raise ValueError("holds no RVL")
    places = np.arange(ends[-1] + 1) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((digits[: ends[-1] + 1] & 7).astype(np.int64) << 3 * places, starts)
    differences = np.zeros(width * height, np.int64)
    is_known = np.zeros(width * height, bool)
    pixel = at = 0
    while pixel < len(is_known):
        if at + 2 > len(numbers):
            raise ValueError(f"ends at pixel {pixel} of {len(is_known)}")
        pixel, count = pixel + int(numbers[at]), int(numbers[at + 1])
        part = numbers[at + 2 : at + 2 + count]
        if len(part) < count or pixel + count > len(is_known):
            raise ValueError(f"ends at pixel {pixel} of {len(is_known)}")
        differences[pixel : pixel + count] = (part >> 1) ^ -(part & 1)
        is_known[pixel : pixel + count] = True
        pixel, at = pixel + count, at + 2 + count
    depth = np.where(is_known, np.cumsum(differences), 0)
    return depth.astype(np.uint16).reshape(height, width)


# Video


def is_keyframe(message: Any) -> bool:
    """True if decoding can start at a packet; ValueError if it is not of a known codec."""
    data, start, is_h264 = bytes(message.data), 0, _codec(message) == "h264"
    while (start := data.find(b"\0\0\1", start) + 3) > 2 and start < len(data):
        unit = data[start] & 31 if is_h264 else data[start] >> 1 & 63
        if unit == 5 if is_h264 else 16 <= unit <= 23:
            return True
    return False


def _codec(message: Any) -> str:
    name = str(getattr(message, "format", "") or getattr(message, "encoding", "")).lower()
    for key, codec in _CODECS.items():
        if name.startswith(key):
            return codec
    raise ValueError(f"is video of the format {name!r}, not of {', '.join(_CODECS)}")


def _decode(messages: Iterator[Any]) -> Iterator[UInt8Array]:
    import av
    import av.error

    context: Any = None
    for message in chain(messages, [None]):
        if context is None:
            context = av.CodecContext.create(_codec(message), "r")
            context.thread_count = 1
        try:
            frames = context.decode(av.Packet(bytes(message.data)) if message else None)
        except av.error.FFmpegError as error:
            raise ValueError(str(error)) from error
        for frame in frames:
            if frame.width * frame.height > _MOST_PIXELS or frame.is_corrupt:
                raise ValueError("the packet has no intact image")
            yield frame.to_ndarray(format="rgb24")
