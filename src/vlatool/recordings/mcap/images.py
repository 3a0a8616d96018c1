"""Images of a topic, read from the bag on request: raw, JPEG and PNG, and packets of video."""

import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.media.images import MAX_PIXELS, decode_values
from vlatool.recordings.inventory import SMALLEST_SIDE, Stored, encoded_thing, is_encoded
from vlatool.recordings.mcap.bag import Bag, BagChannel, TopicReader
from vlatool.recordings.mcap.check import MCAP
from vlatool.recordings.mcap.messages import decoded, image_kind
from vlatool.recordings.plan import PlannedImages
from vlatool.recordings.planned import PlannedFrames


class _Encoding(NamedTuple):
    """How a raw image is stored."""

    channels: int  # values of a pixel; of `pixels` in the first plane
    dtype: str = "u1"  # of a value
    is_bgr: bool = False
    pixels: str = ""  # name of FFmpeg, which converts it; empty: no conversion is needed


# In lower case. Source: formats/mcap 3.
_ENCODINGS = {
    "rgb8": _Encoding(3),
    "bgr8": _Encoding(3, is_bgr=True),
    "rgba8": _Encoding(4),
    "bgra8": _Encoding(4, is_bgr=True),
    "rgb16": _Encoding(3, "u2"),
    "bgr16": _Encoding(3, "u2", is_bgr=True),
    "rgba16": _Encoding(4, "u2"),
    "bgra16": _Encoding(4, "u2", is_bgr=True),
    "8uc3": _Encoding(3),
    "8uc4": _Encoding(4),
    "mono8": _Encoding(1),
    "8uc1": _Encoding(1),
    "mono16": _Encoding(1, "u2"),
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
    _ENCODINGS[f"bayer_{_pattern}16"] = _Encoding(1, "u2", pixels=f"bayer_{_pattern}8")
# Their names do not say the order of the colors; cv_bridge (cvtColorForDisplay) and Foxglove take
# blue, green, red, as arrays of OpenCV are.
_UNORDERED = ("8uc3", "8uc4")
_PLANAR = ("nv12", "nv21")  # half as many rows of colors follow
_CODECS = {"h264": "h264", "h265": "hevc", "hevc": "hevc"}
_DEPTH_HEAD = struct.Struct("<iff")  # compressedDepth: form, and both numbers of the quantization
# What damaged messages raise: the types of a message in JSON are those of its writer.
BROKEN = (ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error)


class BagImages(PlannedFrames):
    """Images of a topic at frames, which are positions of messages; video needs all of them.

    The last row and chunk stay in memory. Packets of video are decoded from the last keyframe on,
    once each where reads ascend; there are no B-frames.
    """

    may_differ: ClassVar[bool] = True

    def __init__(
        self, bag: Bag, channel: BagChannel, planned: PlannedImages, messages: Array, frames: Array
    ) -> None:
        """`messages` [M, 7]: position, and 1 for a keyframe; `frames` [F]: numbers of messages."""
        self._bag = bag
        self._channel = channel
        self.planned = planned
        self._messages = messages
        self._frames = frames
        self._kind = image_kind(channel)
        self._reader = TopicReader(bag)
        self._packets: Iterator[UInt8Array] = iter(())
        self._last: int = -1  # number of the message of the row that is kept
        self._last_row: Any = None

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packets": iter(()), "_last": -1, "_last_row": None}

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.image(0).shape[:2]
        return height, width

    def row(self, index: int) -> bytes | Array:
        number = int(self._frames[index])
        try:
            if self._kind == "video":
                self._decode_up_to(number)
            elif self._last != number:
                self._last_row = self._stored(self._message(number))
                self._last = number
        except (*BROKEN, StopIteration) as error:
            self._last = -1
            self._last_row = None
            raise self.image_error(index, str(error) or "holds no image") from error
        return self._last_row

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self._channel.topic}: frame {index}"
        return MCAP.error("bad_image", self._bag.path, place, reason, frame=index)

    def _message(self, number: int) -> Any:
        data = self._reader.read(self._messages[number][:6])
        return decoded(self._bag.path, self._channel, data)

    def _stored(self, message: Any) -> bytes | Array:
        if self._kind == "raw":
            return _raw_image(message, is_camera=self.planned.decision.role == "camera")
        data = bytes(message.data)
        return data if is_encoded(data) else _compressed_depth(data, _format(message))

    def _decode_up_to(self, number: int) -> None:
        keys = np.flatnonzero(self._messages[: number + 1, 6])
        if not len(keys):
            raise ValueError("there is no keyframe before it")
        key = int(keys[-1])
        if not key <= self._last <= number:
            packets = map(self._message, range(key, len(self._messages)))
            self._packets = _decode(packets)
            self._last = key - 1
            self._last_row = None
        while self._last < number:
            self._last_row = next(self._packets)
            self._last += 1


# What a topic holds


def image_thing(channel: BagChannel, message: Any) -> Stored:
    """What the images of a topic are, by the header of one; ValueError if none can be decoded."""
    topic = channel.topic
    kind = image_kind(channel)
    if kind == "video":
        _codec(message)
        return Stored(topic, "video")
    if kind == "file":
        data = bytes(message.data)
        form = _format(message)
        if "compressedDepth" in form and not is_encoded(data):
            data = data[_DEPTH_HEAD.size :]
        if not is_encoded(data):
            raise ValueError(f"they are neither JPEG nor PNG, but {form!r}")
        return encoded_thing(topic, data)
    encoding, _ = _raw_rows(message)
    shape = int(message.height), int(message.width)
    if min(shape) < SMALLEST_SIDE:
        raise ValueError(f"has {shape[1]} x {shape[0]} pixels")
    if encoding.pixels or encoding.channels >= 3:
        return Stored(topic, "array", (*shape, 3), "uint8")
    is_gray = message.encoding.lower() == "mono16" and "depth" not in topic.lower()
    dtype = "u1" if is_gray else encoding.dtype
    return Stored(topic, "array", shape, np.dtype(dtype).name)


def unordered_encoding(message: Any) -> str:
    """The encoding of a raw image whose name does not say the order of the colors, or nothing."""
    name = str(getattr(message, "encoding", ""))
    return name if name.lower() in _UNORDERED else ""


def _format(message: Any) -> str:
    return str(getattr(message, "format", "")).strip()


# Pixels


def _raw_rows(message: Any) -> tuple[_Encoding, UInt8Array]:
    """Encoding and rows uint8 [R, N] of a raw image; ValueError if they do not fit."""
    height = int(message.height)
    width = int(message.width)
    step = int(message.step)
    encoding = _ENCODINGS.get(message.encoding.lower())
    if encoding is None:
        raise ValueError(f"is encoded as {message.encoding!r}, not as {', '.join(_ENCODINGS)}")
    used = width * encoding.channels * np.dtype(encoding.dtype).itemsize
    rows = height * 3 // 2 if encoding.pixels in _PLANAR else height
    data = np.frombuffer(message.data, np.uint8)
    if not 0 < height * width <= MAX_PIXELS or step < used or data.size < step * rows:
        size = f"{width} x {height} pixels of {message.encoding}"
        raise ValueError(f"has {size} in {data.size} bytes")
    return encoding, data[: step * rows].reshape(rows, step)[:, :used]


def _raw_image(message: Any, *, is_camera: bool) -> Array:
    """A raw image [H, W] or [H, W, 3]; a camera with 16 bits has the upper 8 of them."""
    encoding, rows = _raw_rows(message)
    order = ">" if getattr(message, "is_bigendian", 0) else "<"
    values = np.ascontiguousarray(rows).view(order + encoding.dtype)
    values = values.reshape(len(rows), message.width, encoding.channels)
    if is_camera and encoding.dtype == "u2":
        values = (values >> 8).astype(np.uint8)
    if encoding.pixels:
        return _converted(values, encoding.pixels)[: message.height]
    if encoding.channels == 1:
        return values[..., 0]
    return values[..., 2::-1] if encoding.is_bgr else values[..., :3]


def _converted(values: UInt8Array, pixels: str) -> UInt8Array:
    """Colors [H, W, 3] of YUV and of Bayer patterns; FFmpeg interpolates."""
    import av

    height, width = values.shape[:2]
    if pixels in _PLANAR:
        height = height * 2 // 3
    elif pixels.startswith("bayer"):
        # Whole cells of 2 x 2 pixels; the previous cell stands in for a missing row or column.
        values = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)), mode="reflect")
        height = len(values)
    frame = av.VideoFrame(values.shape[1] + values.shape[1] % 2, height + height % 2, pixels)
    rows = values.reshape(len(values), -1)
    first = 0
    for plane in frame.planes:
        part = rows[first : first + plane.height]
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[: len(part), : part.shape[1]] = part
        plane.update(padded.tobytes())
        first += plane.height
    image: Array = frame.to_ndarray(format="rgb24")
    return image[:, :width]


def _compressed_depth(data: bytes, form: str) -> Array:
    """Depth in millimeters. Source: formats/mcap 3."""
    _, quantum, offset = _DEPTH_HEAD.unpack_from(data)
    values = decode_values(data[_DEPTH_HEAD.size :])
    if not form.startswith("32FC1"):
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        meters = quantum / (values.astype(np.float64) - offset)
    return np.where(values > 0, meters * 1000.0, 0.0)


# Video


def is_keyframe(message: Any) -> bool:
    """True if decoding can start at a packet; ValueError if it is not of a known codec."""
    data = bytes(message.data)
    start = 0
    is_h264 = _codec(message) == "h264"
    while True:
        start = data.find(b"\0\0\1", start) + 3
        if start < 3 or start >= len(data):
            return False
        if is_h264 and data[start] & 31 == 5:
            return True
        if not is_h264 and 16 <= data[start] >> 1 & 63 <= 23:
            return True


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
            if frame.width * frame.height > MAX_PIXELS or frame.is_corrupt:
                raise ValueError("the packet has no intact image")
            yield frame.to_ndarray(format="rgb24")
