"""Exact random access to the frames of a video file."""

import bisect
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.uri import as_native_file, is_remote

# Decoding onwards over fewer frames than this is cheaper than a seek, which flushes the decoder.
_SEEK_DISTANCE = 32
_MOST_PIXELS = 2**26
_LARGEST_KEPT = 64 * 1024 * 1024
# Containers without presentation times; FFmpeg reports guesses, so frames are counted instead.
_TIMELESS_FORMATS = frozenset({"avi", "h264", "hevc", "m4v"})


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video; `size` is (height, width), `fps` None if unknown."""

    num_frames: int
    size: tuple[int, int]
    fps: Fraction | None


@dataclass(frozen=True)
class _PacketTable:
    """Positions of the frames in a video file.

    Attributes:
        numbers: Map from presentation time to frame number; empty if the file has no such times.
        key_numbers: Numbers of the frames that decoding can start at, ascending.
        key_times: Time to seek to for each of these frames, in ticks of the stream.
        num_frames: Number of frames in the file.
    """

    numbers: dict[int, int]
    key_numbers: list[int]
    key_times: list[int]
    num_frames: int


def probe_video(path: Path) -> VideoInfo:
    """Properties of a video; counts packets only if the container does not store its length.

    Raises:
        DataError: The file cannot be opened as a video.
    """
    container, stream = _open(path)
    with container:
        size = (stream.codec_context.height, stream.codec_context.width)
        num_frames = stream.frames or _packet_table(path, container, stream).num_frames
        return VideoInfo(num_frames, size, stream.average_rate)


class VideoFrames:
    """A video as a `FrameSource`.

    Frames are found by presentation time, so B-frames, start offsets and uneven rates do not shift
    them. Ascending reads decode each frame once; other reads seek to the previous keyframe. The
    file is opened at the first read and held until `close`; only path and length are pickled.
    """

    def __init__(self, path: Path, num_frames: int) -> None:
        self.path = path
        self._num_frames = num_frames
        self._decoder: _Decoder | None = None

    def __len__(self) -> int:
        return self._num_frames

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_num_frames": self._num_frames, "_decoder": None}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self._opened().size

    def read(self, indices: Sequence[int]) -> UInt8Array:
        """Images uint8 [N, H, W, 3], RGB, in the order of `indices`.

        Raises:
            DataError: A frame cannot be decoded; names file and frame.
        """
        decoder = self._opened()
        images: dict[int, UInt8Array] = {}
        for number in sorted(set(indices)):
            if not 0 <= number < self._num_frames:
                raise IndexError(f"{self.path}: frame {number} of {self._num_frames}")
            try:
                images[number] = decoder.image(number)
            except DataError:
                self.close()  # the decoder's position is unknown after a failure
                raise
        if not images:
            return np.empty((0, *self.size, 3), np.uint8)
        return np.stack([images[number] for number in indices])

    def close(self) -> None:
        """Releases the file; a later read opens it again."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _opened(self) -> "_Decoder":
        if self._decoder is None:
            self._decoder = _Decoder(self.path)
        return self._decoder


class _Decoder:
    """Open video with a current position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = _read_content(path)
        self._container, self._stream = _open(path, self._content)
        context = self._stream.codec_context
        self.size = (context.height, context.width)
        self._table = _packet_table(path, self._container, self._stream)
        self._reformatter = VideoReformatter()
        self._last: tuple[int, UInt8Array] | None = None
        self._rewind()

    def close(self) -> None:
        self._container.close()

    def image(self, number: int) -> UInt8Array:
        """Frame `number` as uint8 [H, W, 3]."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        try:
            frame = self._frame(number)
            if frame is None or frame.is_corrupt:
                raise _decode_error(self._path, number, "the file has no intact image")
            image = np.asarray(
                self._reformatter.reformat(frame, format="rgb24").to_ndarray(), np.uint8
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise _decode_error(self._path, number, str(error)) from error
        self._last = (number, image)
        return image

    def _frame(self, number: int) -> VideoFrame | None:
        self._seek_before(number)
        frame = self._decode_until(number)
        if frame is None and not self._is_from_start:
            # Some containers seek to a position behind the keyframe: decode from the start.
            self._rewind()
            frame = self._decode_until(number)
        return frame

    def _seek_before(self, number: int) -> None:
        """Seeks if that is cheaper than decoding from the current position to `number`."""
        key = bisect.bisect_right(self._table.key_numbers, number) - 1
        is_ahead = self._next <= number
        if is_ahead and (key < 0 or self._table.key_numbers[key] <= self._next + _SEEK_DISTANCE):
            return
        if key <= 0 or not self._table.numbers:
            if not is_ahead:
                self._rewind()
            return
        self._container.seek(self._table.key_times[key], stream=self._stream)
        self._frames = self._container.decode(self._stream)
        self._next = self._table.key_numbers[key]
        self._is_from_start = False

    def _decode_until(self, number: int) -> VideoFrame | None:
        """Frame `number`; None if decoding passes it or ends."""
        for frame in self._frames:
            current = self._number_of(frame)
            if current is None:
                continue
            self._next = current + 1
            if current >= number:
                return frame if current == number else None
        self._next = self._table.num_frames
        return None

    def _number_of(self, frame: VideoFrame) -> int | None:
        if not self._table.numbers:
            return self._next
        return self._table.numbers.get(frame.pts) if frame.pts is not None else None

    def _rewind(self) -> None:
        self._container.close()
        self._container, self._stream = _open(self._path, self._content)
        self._frames: Iterator[VideoFrame] = self._container.decode(self._stream)
        self._next = 0
        self._is_from_start = True


def _read_content(path: Path) -> bytes | None:
    """Content of a remote video of moderate size, since it is read more than once; else None."""
    if not is_remote(path):
        return None
    try:
        with open_file(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return file.read() if size <= _LARGEST_KEPT else None
    except OSError as error:
        raise _decode_error(path, None, str(error)) from error


def _open(path: Path, content: bytes | None = None) -> tuple[InputContainer, VideoStream]:
    try:
        source = as_native_file(path) if content is None else io.BytesIO(content)
        container = av.open(source)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _decode_error(path, None, str(error)) from error
    assert isinstance(container, InputContainer), "opened for reading"
    if not container.streams.video:
        container.close()
        raise _decode_error(path, None, "the file has no video stream")
    stream = container.streams.video[0]
    if getattr(stream, "codec_context", None) is None:
        container.close()
        raise _decode_error(path, None, "its codec is unknown")
    if stream.codec_context.width * stream.codec_context.height > _MOST_PIXELS:
        container.close()
        raise _decode_error(path, None, f"its images have more than {_MOST_PIXELS:,} pixels")
    stream.codec_context.thread_count = 1  # many processes decode at once, one thread each
    return container, stream


def _packet_table(path: Path, container: InputContainer, stream: VideoStream) -> _PacketTable:
    """Reads all packets without decoding them; leaves the container at its end."""
    try:
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
    except av.error.FFmpegError as error:
        raise _decode_error(path, None, str(error)) from error
    times = sorted({pts for pts, _, _ in packets if pts is not None})
    if len(times) < len(packets) or container.format.name in _TIMELESS_FORMATS:
        return _PacketTable({}, [], [], len(packets))
    numbers = {pts: number for number, pts in enumerate(times)}
    keys = sorted(
        (numbers[pts], pts if dts is None else dts)
        for pts, dts, is_key in packets
        if is_key and pts is not None
    )
    return _PacketTable(numbers, [n for n, _ in keys], [t for _, t in keys], len(packets))


def _decode_error(path: Path, frame: int | None, reason: str) -> DataError:
    location = f"{path}" if frame is None else f"{path}: frame {frame}"
    return DataError(
        f"{location} cannot be decoded: {reason}",
        hint="the video is damaged or incomplete; download or record it again",
        code="data.video_unreadable",
        details={"path": str(path), "frame": frame},
    )
