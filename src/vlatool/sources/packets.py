"""Packets of a video: opening a file, and the times and keyframes of a clip without decoding."""

import bisect
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from vlatool.artifacts.clips import TIMELESS_FORMATS
from vlatool.episode import Clip
from vlatool.errors import DataError
from vlatool.storage.uri import as_native_file

_MOST_PIXELS = 2**26
_SEEKS = 3  # before a clip; then the file is read from its start


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a clip and of its video.

    Attributes:
        num_frames: Number of frames of the clip.
        size: (height, width) in pixels.
        fps: Frames per second; None if unknown.
        duration: Seconds of the whole file; None if unknown.
    """

    num_frames: int
    size: tuple[int, int]
    fps: Fraction | None
    duration: float | None


@dataclass(frozen=True)
class PacketTable:
    """Positions of the frames of a clip.

    Attributes:
        times: Presentation times of the frames, ascending, in ticks of the stream; empty if the
            file has no such times.
        key_numbers: Numbers of the frames that decoding can start at, ascending; decoding from the
            first one, which may be before the clip, gives all frames.
        key_times: Presentation time of each of these frames, which a seek leads to, in ticks.
        num_frames: Number of frames.
        is_part: True if the clip may start after the first frame of the file.
    """

    times: "array[int]"
    key_numbers: list[int]
    key_times: list[int]
    num_frames: int
    is_part: bool = False

    def number(self, time: int) -> int | None:
        """Number of the frame with a presentation time; None if the clip has none."""
        position = bisect.bisect_left(self.times, time)
        is_frame = position < len(self.times) and self.times[position] == time
        return position if is_frame else None


def probe_video(clip: Clip) -> VideoInfo:
    """Properties of a clip; reads packets only if the container does not store their number.

    Raises:
        DataError: The file cannot be opened as a video, or has no frame at the time of the clip.
    """
    container, stream = open_video(clip.path)
    with container:
        size = (stream.codec_context.height, stream.codec_context.width)
        num_frames = 0 if _is_part(clip) else stream.frames
        num_frames = num_frames or packet_table(clip).num_frames
        return VideoInfo(num_frames, size, stream.average_rate, _duration(container, stream))


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _is_part(clip: Clip) -> bool:
    return clip.start > 0 or clip.stop is not None


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open container and video stream of a file.

    Raises:
        DataError: The file cannot be opened as a video.
    """
    try:
        container = av.open(as_native_file(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise decode_error(path, None, str(error)) from error
    assert isinstance(container, InputContainer), "opened for reading"
    if not container.streams.video:
        container.close()
        raise decode_error(path, None, "the file has no video stream")
    stream = container.streams.video[0]
    if getattr(stream, "codec_context", None) is None:
        container.close()
        raise decode_error(path, None, "its codec is unknown")
    if stream.codec_context.width * stream.codec_context.height > _MOST_PIXELS:
        container.close()
        raise decode_error(path, None, f"its images have more than {_MOST_PIXELS:,} pixels")
    stream.codec_context.thread_count = 1  # many processes decode at once, one thread each
    return container, stream


def packet_table(clip: Clip) -> PacketTable:
    """Table of the packets of a clip, which are read without decoding, once in a process.

    Raises:
        DataError: The packets cannot be read, or none has a time of the clip.
    """
    try:
        status = clip.path.stat()
    except OSError as error:
        raise decode_error(clip.path, None, str(error)) from error
    return _packet_table(clip, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)  # an episode is probed, then read, and has few cameras
def _packet_table(clip: Clip, size: int, changed: int) -> PacketTable:
    del size, changed
    container, stream = open_video(clip.path)
    with container:
        try:
            if _is_part(clip):
                return _table_of_part(clip, container, stream)
            return _table_of_file(container, list(_packets(container, stream)))
        except av.error.FFmpegError as error:
            raise decode_error(clip.path, None, str(error)) from error


class _Packet(NamedTuple):
    """Times and kind of a packet, without its data."""

    pts: int | None
    dts: int | None
    is_key: bool


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[_Packet]:
    return (
        _Packet(packet.pts, packet.dts, packet.is_keyframe)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    )


def _table_of_file(container: InputContainer, packets: list[_Packet]) -> PacketTable:
    times = sorted({packet.pts for packet in packets if packet.pts is not None})
    if len(times) < len(packets) or container.format.name in TIMELESS_FORMATS:
        return PacketTable(array("q"), [], [], len(packets))
    return _table(times, packets, is_part=False)


def _table(times: list[int], packets: list[_Packet], *, is_part: bool) -> PacketTable:
    """Table from the times of the clip and all packets that decoding it needs."""
    keys = sorted(packet.pts for packet in packets if packet.is_key and packet.pts is not None)
    numbers = [bisect.bisect_left(times, pts) for pts in keys]
    return PacketTable(array("q", times), numbers, keys, len(times), is_part)


def _table_of_part(clip: Clip, container: InputContainer, stream: VideoStream) -> PacketTable:
    """Table of the frames from half a frame before `start` to half a frame before `stop`."""
    if stream.time_base is None or container.format.name in TIMELESS_FORMATS:
        raise decode_error(clip.path, None, "frames of this kind of file have no times")
    half = 0.5 / float(stream.average_rate) if stream.average_rate else 0.0
    ticks = float(1 / stream.time_base)
    first = stream.start_time or 0
    low = first + round((clip.start - half) * ticks)
    high = first + round((clip.stop - half) * ticks) if clip.stop is not None else None
    packets = _packets_around(container, stream, low, first + round(clip.start * ticks), high)
    times = sorted({p.pts for p in packets if p.pts is not None and p.pts >= low})
    if high is not None:
        del times[bisect.bisect_left(times, high) :]
    return _table(times, [p for p in packets if p.pts is not None], is_part=True)


def _packets_around(
    container: InputContainer, stream: VideoStream, low: int, start: int, high: int | None
) -> list[_Packet]:
    """Packets from the last keyframe not after `start` on, up to the last one before `high`."""
    target = start
    for _ in range(_SEEKS):
        container.seek(target, stream=stream)
        packets = _packets_before(_packets(container, stream), high)
        head = packets[0] if packets else None
        if head is not None and head.pts is not None and head.pts <= max(start, low):
            return packets
        # A keyframe that is decoded before `start` and shown after it.
        target = (head.dts if head is not None and head.dts is not None else target) - 1
    container.seek(stream.start_time or 0, stream=stream)
    return _packets_before(_packets(container, stream), high)


def _packets_before(packets: Iterator[_Packet], high: int | None) -> list[_Packet]:
    """Packets up to the time `high`; the rest is decoded, hence shown, later."""
    before: list[_Packet] = []
    for packet in packets:
        if high is not None and packet.dts is not None and packet.dts >= high:
            break
        before.append(packet)
    return before


def decode_error(path: Path, frame: int | None, reason: str) -> DataError:
    """Error for a file, or for one frame of it, that is no video."""
    location = f"{path}" if frame is None else f"{path}: frame {frame}"
    return DataError(
        f"{location} cannot be decoded: {reason}",
        hint="the video is damaged or incomplete; download or record it again",
        code="data.video_unreadable",
        details={"path": str(path), "frame": frame},
    )
