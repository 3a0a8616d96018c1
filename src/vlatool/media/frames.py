"""Exact random access to images: frames of a clip of a video, or a column of a parquet file."""

import bisect
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import av
import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vlatool.episode import Array, Clip, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.media.images import decode_rgb, image_info
from vlatool.media.video import TIMELESS_FORMATS, opened
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import real_folders
from vlatool.storage.uri import as_native_file

_MOST_PIXELS = 2**26
_SEEKS = 3  # before a clip; then the file is read from its start


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a clip and of its video."""

    num_frames: int  # number of frames of the clip
    size: tuple[int, int]  # (height, width) in pixels
    fps: Fraction | None  # frames per second; None if unknown
    duration: float | None  # seconds of the whole file; None if unknown


@dataclass(frozen=True)
class PacketTable:
    """Positions of the frames of a clip."""

    # presentation times of the frames, ascending, in ticks of the stream; empty if the file has no
    # such times
    times: "array[int]"
    # numbers of the frames that decoding can start at, ascending; decoding from the first one,
    # which may be before the clip, gives all frames
    key_numbers: list[int]
    # presentation time of each of these frames, which a seek leads to, in ticks
    key_times: list[int]
    num_frames: int  # number of frames
    is_part: bool = False  # True if the clip may start after the first frame of the file

    def number(self, time: int) -> int | None:
        """Number of the frame with a presentation time; None if the clip has none."""
        position = bisect.bisect_left(self.times, time)
        is_frame = position < len(self.times) and self.times[position] == time
        return position if is_frame else None


def probe_video(clip: Clip) -> VideoInfo:
    """Returns the properties of a clip without decoding it.

    Packets are only read if the container does not store their number.
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
    try:
        container = opened(path)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise decode_error(path, None, str(error)) from error
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
    """Table of the packets of a clip, which are read without decoding, once in a process."""
    try:
        status = clip.path.stat()
    except OSError as error:
        raise decode_error(clip.path, None, str(error)) from error
    return _packet_table(clip, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)  # an episode is probed, then read, and has few cameras
def _packet_table(clip: Clip, size: int, changed: int) -> PacketTable:
    container, stream = open_video(clip.path)
    with container:
        try:
            if _is_part(clip):
                return _table_of_part(clip, container, stream)
            packets = list(_packets(container, stream))
            times = sorted({packet.pts for packet in packets if packet.pts is not None})
            if len(times) < len(packets) or container.format.name in TIMELESS_FORMATS:
                return PacketTable(array("q"), [], [], len(packets))
            return _table(times, packets, is_part=False)
        except av.error.FFmpegError as error:
            raise decode_error(clip.path, None, str(error)) from error


class _Packet(NamedTuple):
    """Times and kind of a packet, without its data."""

    pts: int | None
    dts: int | None
    is_key: bool


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[_Packet]:
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            yield _Packet(packet.pts, packet.dts, packet.is_keyframe)


def _table(times: list[int], packets: list[_Packet], *, is_part: bool) -> PacketTable:
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
    times = sorted({packet.pts for packet in packets if packet.pts is not None})
    first_time = bisect.bisect_left(times, low)
    times = times[first_time : None if high is None else bisect.bisect_left(times, high)]
    return _table(times, packets, is_part=True)


def _packets_around(
    container: InputContainer, stream: VideoStream, low: int, start: int, high: int | None
) -> list[_Packet]:
    """Packets from the last keyframe not after `start` on, up to the last one before `high`."""
    target = start
    for _ in range(_SEEKS):
        container.seek(target, stream=stream)
        packets = _packets_before(_packets(container, stream), high)
        first = packets[0] if packets else _Packet(None, None, is_key=False)
        if first.pts is not None and first.pts <= max(start, low):
            return packets
        # A keyframe that is decoded before `start` and shown after it.
        target = (target if first.dts is None else first.dts) - 1
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
    """Returns the error for a video, or one frame of it, that cannot be decoded."""
    location = f"{path}" if frame is None else f"{path}: frame {frame}"
    return DataError(
        f"{location} cannot be decoded: {reason}",
        hint="copy the video again; if it was cut off, `untrunc WHOLE FILE` takes its index from a "
        "whole video of the same recorder",
        code="data.broken",
        details={"finding": "video_unreadable", "path": str(path), "frame": frame},
    )


# Decoding onwards over fewer frames than this is cheaper than a seek, which flushes the decoder.
_SEEK_DISTANCE = 32


class VideoFrames(FrameSource):
    """The frames of a video clip as a `FrameSource`, counted from 0.

    Frames are found by presentation time, so B-frames, start offsets and uneven rates do not shift
    them. Ascending reads decode each frame once; other reads seek to the previous keyframe. The
    file is opened at the first read and stays open until `close`; only clip and length are pickled.
    """

    def __init__(self, clip: Clip, num_frames: int) -> None:
        self._clip = clip
        self._num_frames = num_frames
        self._decoder: _Decoder | None = None
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self._num_frames

    def __getstate__(self) -> dict[str, Any]:
        state = {"_clip": self._clip, "_num_frames": self._num_frames}
        return {**state, "_decoder": None, "_shape": None}

    @property
    def clip(self) -> Clip:
        return self._clip

    @property
    def size(self) -> tuple[int, int]:
        return self._opened().size

    def read(self, indices: Sequence[int]) -> UInt8Array:
        images: UInt8Array | None = None
        for position in sorted(range(len(indices)), key=indices.__getitem__):
            image = self._image(indices[position])
            if images is None:
                images = np.empty((len(indices), *image.shape), np.uint8)
            images[position] = image  # at once, while the processor has it in its cache
        return np.empty((0, *self.size, 3), np.uint8) if images is None else images

    def _image(self, number: int) -> UInt8Array:
        if not 0 <= number < self._num_frames:
            raise IndexError(f"{self._clip.path}: frame {number} of {self._num_frames}")
        try:
            image = self._opened().image(number)
        except DataError:
            self.close()  # the decoder's position is unknown after a failure
            raise
        self._shape = self._shape or image.shape
        if image.shape != self._shape:
            size = f"{image.shape[1]}x{image.shape[0]}"
            size_before = f"{self._shape[1]}x{self._shape[0]}"
            reason = f"its size is {size}, but earlier frames have {size_before}"
            raise decode_error(self._clip.path, number, reason)
        return image

    def close(self) -> None:
        """Releases the file; a later read opens it again."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _opened(self) -> "_Decoder":
        if self._decoder is None:
            self._decoder = _Decoder(self._clip)
        return self._decoder


class _Decoder:
    """Open video with a current position."""

    def __init__(self, clip: Clip) -> None:
        self._path = clip.path
        self._table = packet_table(clip)
        self._container, self._stream = open_video(self._path)
        context = self._stream.codec_context
        self.size = (context.height, context.width)
        self._reformatter = VideoReformatter()
        self._last: tuple[int, UInt8Array] | None = None
        self._frames: Iterator[VideoFrame] = self._container.decode(self._stream)
        self._next = 0
        self._is_from_start = True
        if self._table.is_part and self._table.key_times:
            self._seek(0)

    def close(self) -> None:
        self._container.close()

    def image(self, number: int) -> UInt8Array:
        """Frame `number` as uint8 [H, W, 3]."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        try:
            frame = self._frame(number)
            if frame is None or frame.is_corrupt:
                raise decode_error(self._path, number, "the file has no intact image")
            image = np.asarray(
                self._reformatter.reformat(frame, format="rgb24").to_ndarray(), np.uint8
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise decode_error(self._path, number, str(error)) from error
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
        if not self._table.times or key < 0 or (key == 0 and not self._table.is_part):
            if not is_ahead:
                self._rewind()
            return
        self._seek(key)

    def _seek(self, key: int) -> None:
        self._container.seek(self._table.key_times[key], stream=self._stream)
        self._frames = self._container.decode(self._stream)
        self._next = self._table.key_numbers[key]
        self._is_from_start = False

    def _decode_until(self, number: int) -> VideoFrame | None:
        """Frame `number`; None if decoding passes it or ends."""
        times = self._table.times
        for frame in self._frames:
            if times and frame.pts is not None and frame.pts > times[-1]:
                break
            current = self._number_of(frame)
            if current is None:
                continue
            self._next = current + 1
            if current >= number:
                return frame if current == number else None
        self._next = self._table.num_frames
        return None

    def _number_of(self, frame: VideoFrame) -> int | None:
        if not self._table.times:
            return self._next
        return self._table.number(frame.pts) if frame.pts is not None else None

    def _rewind(self) -> None:
        self._container.close()
        self._container, self._stream = open_video(self._path)
        self._frames = self._container.decode(self._stream)
        self._next = 0
        self._is_from_start = True


class SingleImages(FrameSource):
    """Images that are read one by one, mostly from one file per image."""

    may_differ: ClassVar[bool] = False  # in size from read to read
    _size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first image, in pixels."""
        if self._size is None:
            try:
                self._size = image_info(self.encoded(0) or b"").size
            except ValueError as error:
                raise self.image_error(0, str(error)) from error
        return self._size

    def read(self, indices: Sequence[int]) -> Array:
        """Images uint8 [N, H, W, 3], RGB; depth uint16 [N, H, W]."""
        images: Array | None = None
        for position, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"frame {index} of {len(self)}")
            image = self.image(index)
            if images is None:
                images = np.empty((len(indices), *image.shape), image.dtype)
            height, width = images.shape[1:3] if self.may_differ else self.size
            if image.shape[:2] != (height, width):
                reason = (
                    f"has size {image.shape[1]} x {image.shape[0]}, the first {width} x {height}"
                )
                raise self.image_error(index, reason)
            images[position] = image
        return np.empty((0, *self.size, 3), np.uint8) if images is None else images

    def image(self, index: int) -> Array:
        """The image uint8 [H, W, 3] or depth uint16 [H, W] of a frame."""
        data = self.encoded(index) or b""
        try:
            return decode_rgb(data)
        except ValueError as error:
            raise self.image_error(index, str(error)) from error

    def image_error(self, index: int, reason: str) -> DataError:
        """Error of an image that cannot be read."""
        raise NotImplementedError(index, reason)


_LARGEST_FILE = 2**28
_LARGEST_GROUP = 2**31


class ParquetImages(SingleImages):
    """Image column of a parquet file as a `FrameSource`. A cell is a struct of `bytes` and `path`,
    encoded bytes, or a path relative to the data set. One row group is held in memory at a time.
    """

    def __init__(self, path: Path, column: str, root: Path, rows: Sequence[int]) -> None:
        """Opens nothing yet; paths of images must stay below `root`, the folder of the data set."""
        self.path = path
        self.column = column
        self._root = root
        self._rows = tuple(int(row) for row in rows)
        self._file: pq.ParquetFile | None = None
        self._cells: pa.ChunkedArray | None = None
        self._first_row = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_cells": None, "_first_row": 0}

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            height, width, _ = self.image(0).shape
            self._size = (height, width)
        return self._size

    def encoded(self, index: int) -> bytes:
        row = self._rows[index]
        cells = self._cells
        if cells is None or not 0 <= row - self._first_row < len(cells):
            try:
                cells = self._load_row_group(row)
                self._cells = cells
            except (pa.ArrowException, OSError) as error:
                raise self.image_error(self._rows.index(row), str(error)) from error
        cell: Any = cells[row - self._first_row].as_py()
        parts = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell,)
        for part in parts:
            if isinstance(part, bytes) and part:
                return part
            if isinstance(part, str) and part:
                return self._file_content(index, part)
        raise self.image_error(index, "the cell has neither bytes nor a path")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._cells = None

    def _file_content(self, frame: int, relative: str) -> bytes:
        """Bytes of the image file `relative`, searched below the root, then below `images/`."""
        root = self._root.resolve()
        for folder in (root, root / "images"):
            try:
                path = (folder / relative).resolve()
                is_file = path.is_file()
            except (OSError, ValueError) as error:  # not a valid file name
                raise self.image_error(frame, f"its path is not valid: {error}") from error
            if not any(path.is_relative_to(folder) for folder in real_folders(root)):
                raise DataError.at(
                    self.path,
                    f"{self.column} row {self._rows[frame]}: the image path "
                    f"{relative!r} leaves the data set {self._root}",
                    hint="do not trust this file: get the data set from its publisher",
                    code="data.unsafe",
                    field=self.column,
                    picture=relative,
                )
            if is_file:
                size = path.stat().st_size
                if size > _LARGEST_FILE:
                    raise self.image_error(frame, f"{size:,} bytes; the limit is {_LARGEST_FILE:,}")
                return read_file(path)
        raise self.image_error(frame, f"the image file {relative!r} is missing")

    def _load_row_group(self, row: int) -> pa.ChunkedArray:
        file = self._file or pq.ParquetFile(as_native_file(self.path))
        self._file = file
        first = 0
        for group in range(file.num_row_groups):
            group_info = file.metadata.row_group(group)
            count = group_info.num_rows
            if row < first + count:
                self._first_row = first
                bytes_in_memory = 0
                for number in range(group_info.num_columns):
                    chunk = group_info.column(number)
                    # Each part of a struct is stored as a column.
                    if f"{chunk.path_in_schema}.".startswith(f"{self.column}."):
                        bytes_in_memory += chunk.total_uncompressed_size
                if bytes_in_memory > _LARGEST_GROUP:
                    limit = f"the limit is {_LARGEST_GROUP:,}"
                    raise pa.ArrowInvalid(f"its rows take {bytes_in_memory:,} bytes; {limit}")
                return file.read_row_group(group, columns=[self.column]).column(0)
            first += count
        raise pa.ArrowInvalid(f"row {row} of {first} does not exist")

    def image_error(self, index: int, reason: str) -> DataError:
        row = self._rows[index]
        return DataError.at(
            self.path,
            f"{self.column} row {row}: unreadable image: {reason}",
            hint="the file is damaged: download it again, or leave the episode out with --exclude",
            code="data.broken",
            finding="picture_unreadable",
            field=self.column,
            frame=index,
            row=row,
        )
