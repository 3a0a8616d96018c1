"""Images of a topic, read from the bag on request: raw, JPEG and PNG, and packets of video."""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from vlatool.artifacts.images import decode_rgb, image_info
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.sources.frames import SingleImages
from vlatool.sources.mcap.bag import Bag, BagChannel, TopicReader
from vlatool.sources.mcap.messages import decoded, image_kind, is_encoded
from vlatool.sources.mcap.rules import MCAP

_MOST_PIXELS = 2**26
# Encoding to bytes per pixel, and which of them are red, green and blue.
_COLORS = {
    "rgb8": (3, [0, 1, 2]),
    "bgr8": (3, [2, 1, 0]),
    "rgba8": (4, [0, 1, 2]),
    "bgra8": (4, [2, 1, 0]),
    "mono8": (1, [0, 0, 0]),
    "8UC1": (1, [0, 0, 0]),
}
_DEPTHS = {"16UC1": (2, []), "mono16": (2, []), "32FC1": (4, [])}  # the last in meters
_CODECS = {"h264": "h264", "h265": "hevc", "hevc": "hevc"}


class BagImages(SingleImages):
    """Images of a topic at frames, which are positions of messages; video needs all of them.

    The last image and chunk stay in memory. Packets of video are decoded from the last keyframe on,
    once each where reads ascend; there are no B-frames.
    """

    may_differ: ClassVar[bool] = True

    def __init__(
        self, bag: Bag, channel: BagChannel, messages: Array, frames: Array, use: str = "rgb"
    ) -> None:
        """`messages` [M, 7]: position, and 1 for a keyframe; `frames` [F]: numbers of messages;
        `use`: `rgb`, `bgr` (colors are swapped) or `depth`.
        """
        self._bag, self._channel, self._messages, self._frames = bag, channel, messages, frames
        self._kind, self._use = image_kind(channel), use
        self._reader = TopicReader(bag)
        self._packets: Iterator[UInt8Array] = iter(())
        self._last: tuple[int, Array] = -1, np.empty(0)

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packets": iter(()), "_last": (-1, np.empty(0))}

    @property
    def size(self) -> tuple[int, int]:
        number = int(self._frames[0])
        try:
            if self._kind == "file":
                size = image_info(bytes(self._message(number).data)).size
            elif self._kind == "raw":
                message = self._message(number)
                size = int(message.height), int(message.width)
            else:
                size = self.image(0).shape[0], self.image(0).shape[1]
        except (ValueError, TypeError, AttributeError) as error:
            raise self.image_error(0, str(error)) from error
        if not 0 < math.prod(size) <= _MOST_PIXELS:
            raise self.image_error(0, f"has {size[1]} x {size[0]} pixels")
        return size

    def encoded(self, index: int) -> bytes | None:
        """The stored JPEG or PNG; None for others, and where colors are swapped."""
        if self._kind != "file" or self._use != "rgb":
            return None
        data = self._message(int(self._frames[index])).data
        return bytes(data) if is_encoded(data) else None

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
                message = self._message(number)
                if self._kind == "raw":
                    image = _pixels(message, _DEPTHS if self._use == "depth" else _COLORS)
                else:
                    image = decode_rgb(bytes(message.data))
                self._last = number, image[..., ::-1] if self._use == "bgr" else image
        except (ValueError, StopIteration, TypeError, AttributeError) as error:
            self._last = -1, np.empty(0)
            raise self.image_error(index, str(error) or "holds no image") from error
        return self._last[1]

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
        return self._last[1]


def _pixels(message: Any, encodings: dict[str, tuple[int, list[int]]]) -> Array:
    """An image uint8 [H, W, 3], or depth uint16 [H, W]; ValueError if it cannot be decoded."""
    height, width, step, encoding = message.height, message.width, message.step, message.encoding
    if encoding not in encodings:
        raise ValueError(f"is encoded as {encoding!r}, not as {', '.join(encodings)}")
    depth, order = encodings[encoding]
    data = np.frombuffer(message.data, np.uint8)
    if height * width > _MOST_PIXELS or step < width * depth or data.size < step * height:
        raise ValueError(f"has {width} x {height} pixels of {encoding} in {data.size} bytes")
    rows = data[: step * height].reshape(height, step)[:, : width * depth]
    if order:
        return rows.reshape(height, width, depth)[..., order]
    kind = f"{'>' if getattr(message, 'is_bigendian', 0) else '<'}{'f4' if depth == 4 else 'u2'}"
    values = np.ascontiguousarray(rows).view(kind)
    millimeters = np.round(values * 1000.0) if depth == 4 else values
    return np.where((millimeters >= 0) & (millimeters < 2**16), millimeters, 0).astype(np.uint16)


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
