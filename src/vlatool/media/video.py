"""Encoded video that is cut and joined without decoding: packets are copied, times are counted.

Frame j of a written file is shown at j / rate, whatever the times of its source are. Legend: a
packet has a position in the order of decoding and a number in the order of presentation; with
B-frames these differ. Source: formats/lerobot 7.
"""

import bisect
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import av.error
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vlatool.episode import Clip, FrameSource, UInt8Array
from vlatool.storage.uri import as_native_file

# One thread, no clock, no B-frames (with them the bytes of x264 vary between runs, measured):
# equal images give equal bytes.
_ENCODER = {"bf": "0", "threads": "1"}
# x264's macroblock tree reads memory beyond its rows where these are no multiple of 8 macroblocks:
# 1 of 10 to 100 such videos differs, measured.
_TREE_WIDTH = 128  # pixels
CONTAINER = {"fflags": "+bitexact"}
# FFmpeg also takes texts for videos, and playlists that name other files; they are not opened.
_CONTAINERS = "mov,mp4,matroska,webm,avi,h264,hevc,m4v,obu,ivf,mpegts,mpeg,ogg,flv,asf,mjpeg"
# Containers without presentation times; FFmpeg reports guesses, so frames are counted instead.
TIMELESS_FORMATS = frozenset({"avi", "h264", "hevc", "m4v"})


def opened(path: Path) -> InputContainer:
    """Opens a video file for reading.

    Raises:
        FFmpegError: It is no video of a known container.
    """
    container = av.open(as_native_file(path), options={"format_whitelist": _CONTAINERS})
    assert isinstance(container, InputContainer), "opened for reading"
    return container


class VideoEncoder:
    """Encoder of an mp4 file, h264, image by image; colors have full size if a side is odd; `fps`:
    frames per second; `crf`: quality, 0 to 51; lower is better; `preset`: effort, as x264 names
    it. By default half the time of `medium` with CRF 18, as near to the images, up to 10 % larger.
    """

    def __init__(
        self,
        fps: int | Fraction,
        *,
        crf: int = 17,
        preset: str = "veryfast",
        keyframe_interval: int = 2,
    ) -> None:
        self._buffer = io.BytesIO()
        options = {"crf": str(crf), "preset": preset, "g": str(keyframe_interval), **_ENCODER}
        self._container = av.open(self._buffer, "w", format="mp4", options=CONTAINER)
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._is_empty = True

    def add(self, image: UInt8Array) -> None:
        """Adds an image uint8 [H, W, 3]; all are of one size."""
        if self._is_empty:
            self._is_empty = False
            self._stream.height, self._stream.width = image.shape[:2]
            is_even = self._stream.height % 2 == self._stream.width % 2 == 0
            self._stream.pix_fmt = "yuv420p" if is_even else "yuv444p"
            if self._stream.width % _TREE_WIDTH:
                self._stream.codec_context.options["x264-params"] = "mbtree=0"
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))

    def finish(self) -> bytes:
        """The file; nothing can be added then."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._buffer.getvalue()


def encode_video(
    frames: Iterable[UInt8Array],
    fps: int | Fraction,
    *,
    crf: int = 17,
    preset: str = "veryfast",
    keyframe_interval: int = 2,
) -> bytes:
    """An mp4 file from images uint8 [H, W, 3], all of one size; options as of `VideoEncoder`."""
    encoder = VideoEncoder(fps, crf=crf, preset=preset, keyframe_interval=keyframe_interval)
    for image in frames:
        encoder.add(image)
    return encoder.finish()


@dataclass(frozen=True)
class StreamKind:
    """Properties that all clips of one file share."""

    codec: str  # name of the codec, such as `h264`
    height: int  # pixels
    width: int  # pixels
    pixel_format: str  # name of the pixel format, such as `yuv420p`
    digest: str  # digest of the settings that a decoder needs before the first packet


@dataclass(frozen=True)
class EncodedClip:
    """An mp4 file with the frames of one episode."""

    data: bytes  # the file
    kind: StreamKind  # its properties
    # largest number of packets that are decoded before a frame that is shown before them
    delay: int = 0


def copy_clip(clip: Clip, count: int, rate: Fraction) -> EncodedClip | None:
    """The packets of the first `count` frames of a clip.

    Returns None if these frames cannot be decoded without other packets: they do not begin with a
    keyframe, or other frames are decoded between them. Also None if the file has no times, or its
    codec no place in mp4.
    """
    with opened(clip.path) as source:
        stream = source.streams.video[0]
        packets = _packets_of(clip, count, rate, source)
        if packets is None:
            return None
        delay = _delay(packets)
        kind = _kind(stream)
        buffer = io.BytesIO()
        try:
            with ClipWriter(buffer, stream, rate, delay) as writer:
                writer.write(packets)
        except (av.error.FFmpegError, ValueError):
            return None
    return EncodedClip(buffer.getvalue(), kind, delay)


PAGE_PRESET = "medium"  # of videos that are made to be looked at
# Codecs that browsers decode in an mp4, and their pixel format.
_PLAYED = ("h264", "av1", "libdav1d", "vp9")
_PLAYED_PIXELS = "yuv420p"


def browser_clip(source: FrameSource, rate: Fraction) -> bytes:
    """An mp4 file of all frames that browsers play: packets are copied where they do, else encoded.

    Raises:
        DataError: A frame cannot be decoded.
    """
    copied = None
    if source.clip is not None:
        with suppress(av.error.FFmpegError):  # decoding reports it with the frame
            copied = copy_clip(source.clip, len(source), rate)
    if copied and copied.kind.codec in _PLAYED and copied.kind.pixel_format == _PLAYED_PIXELS:
        return copied.data
    height, width = source.size
    encoder = VideoEncoder(rate, crf=28, preset=PAGE_PRESET, keyframe_interval=10)
    for index in range(len(source)):
        image = source.read([index])[0]
        encoder.add(image[: height - height % 2, : width - width % 2])
    return encoder.finish()


def join_clips(paths: Sequence[Path], rate: Fraction, file: IO[bytes], delay: int) -> None:
    """Writes an mp4 file with the frames of the files, which `copy_clip` or an encoder wrote;
    `rate`: frames per second.
    """
    with opened(paths[0]) as first:
        template = first.streams.video[0]
        with ClipWriter(file, template, rate, delay) as writer:
            for path in paths:
                with opened(path) as source:
                    writer.write(_data_packets(source, source.streams.video[0]))


def encoded_clip(data: bytes) -> EncodedClip:
    """The clip of a file of `encode_video`."""
    with av.open(io.BytesIO(data)) as container:
        return EncodedClip(data, _kind(container.streams.video[0]))


class ClipWriter:
    """An mp4 file to which packets are copied; a context manager."""

    def __init__(self, file: IO[bytes], template: VideoStream, rate: Fraction, delay: int) -> None:
        self._container: OutputContainer = av.open(file, "w", format="mp4", options=CONTAINER)
        self._stream = self._container.add_stream_from_template(template, opaque=True)
        self._tick = 1 / rate
        self._stream.time_base = self._tick
        self._delay = delay
        self._frames = 0

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._container.close()

    def write(self, packets: Iterable[Packet]) -> None:
        """Appends the packets of one clip, given in the order of decoding."""
        clip = [*packets]
        numbers = _numbers([packet.pts for packet in clip])
        for position, packet in enumerate(clip):
            packet.stream = self._stream
            packet.time_base = self._tick
            packet.pts = self._frames + numbers[position]
            packet.dts = self._frames + position - self._delay
            packet.duration = 1
            self._container.mux_one(packet)
        self._frames += len(clip)


def _data_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            yield packet


def _delay(packets: Sequence[Packet]) -> int:
    numbers = _numbers([packet.pts for packet in packets])
    return max(position - number for position, number in enumerate(numbers))


def _numbers(times: Sequence[Any]) -> list[int]:
    """Numbers in the order of presentation, from the times in the order of decoding."""
    positions = sorted(range(len(times)), key=times.__getitem__)
    numbers = [0] * len(times)
    for number, position in enumerate(positions):
        numbers[position] = number
    return numbers


def _packets_of(
    clip: Clip, count: int, rate: Fraction, source: InputContainer
) -> list[Packet] | None:
    """The packets of a clip in the order of decoding; None if others are needed."""
    stream = source.streams.video[0]
    if source.format.name in TIMELESS_FORMATS or stream.time_base is None:
        return None
    if clip.start == 0 and clip.stop is None:  # one pass over a file of one episode
        packets = [*_data_packets(source, stream)]
        span = _span([_PacketTime(packet.pts, packet.is_keyframe) for packet in packets], 0, count)
        return None if span is None else packets[span.start : span.stop]
    table = _packet_table(clip.path, clip.path.stat().st_mtime_ns)
    times = sorted(packet.pts for packet in table if packet.pts is not None)
    if not times:
        return None
    start = times[0] + (clip.start - 0.5 / float(rate)) / float(stream.time_base)
    span = _span(table, bisect.bisect_left(times, start), count)
    return None if span is None else _read_span(source, stream, table, span)


class _PacketTime(NamedTuple):
    pts: int | None  # time of presentation
    is_key: bool


def _span(table: Sequence[_PacketTime], first: int, count: int) -> range | None:
    """Positions of the frames from number `first` on; None if they do not stand by themselves."""
    times = [packet.pts for packet in table]
    if None in times or len(set(times)) < len(times):
        return None
    numbers = _numbers(times)
    if first not in numbers:
        return None
    # They are decoded one after the other, from a keyframe on that is shown first.
    start = numbers.index(first)
    span = range(start, start + count)
    is_together = sorted(numbers[start : start + count]) == [*range(first, first + count)]
    return span if is_together and table[start].is_key else None


def _read_span(
    source: InputContainer, stream: VideoStream, table: Sequence[_PacketTime], span: range
) -> list[Packet]:
    """The packets at the positions `span`, after a seek where the container is exact."""
    expected: list[Any] = [packet.pts for packet in table[span.start : span.stop]]
    source.seek(expected[0], stream=stream)
    packets: list[Packet] = []
    for packet in _data_packets(source, stream):
        if packets or packet.pts == expected[0]:
            packets.append(packet)
        if len(packets) == len(span):
            break
    if [packet.pts for packet in packets] != expected:
        source.seek(0, stream=stream)
        packets = [*islice(_data_packets(source, stream), span.start, span.stop)]
    return packets


@lru_cache(maxsize=8)  # clips of one file follow each other
def _packet_table(path: Path, changed: int) -> list[_PacketTime]:
    """The packets of a file, in the order of decoding."""
    with opened(path) as source:
        packets = _data_packets(source, source.streams.video[0])
        return [_PacketTime(packet.pts, packet.is_keyframe) for packet in packets]


def _kind(stream: VideoStream) -> StreamKind:
    context = stream.codec_context
    return StreamKind(
        codec=context.name,
        height=context.height,
        width=context.width,
        pixel_format=context.pix_fmt or "",
        digest=hashlib.sha256(context.extradata or b"").hexdigest()[:16],
    )
