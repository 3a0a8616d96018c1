"""Exact random access to the frames of a clip: of a video file, or of a part of one."""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vlatool.episode import Clip, UInt8Array
from vlatool.errors import DataError
from vlatool.sources.packets import decode_error, open_video, packet_table

# Decoding onwards over fewer frames than this is cheaper than a seek, which flushes the decoder.
_SEEK_DISTANCE = 32


class VideoFrames:
    """A clip as a `FrameSource`; its frames are counted from 0.

    Frames are found by presentation time, so B-frames, start offsets and uneven rates do not shift
    them. Ascending reads decode each frame once; other reads seek to the previous keyframe. The
    file is opened at the first read and held until `close`; only clip and length are pickled.
    """

    def __init__(self, clip: Clip, num_frames: int) -> None:
        self.clip = clip
        self._num_frames = num_frames
        self._decoder: _Decoder | None = None
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self._num_frames

    def __getstate__(self) -> dict[str, Any]:
        state = {"clip": self.clip, "_num_frames": self._num_frames}
        return {**state, "_decoder": None, "_shape": None}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self._opened().size

    def read(self, indices: Sequence[int]) -> UInt8Array:
        """Images uint8 [N, H, W, 3], RGB, in the order of `indices`.

        Raises:
            DataError: A frame cannot be decoded; names file and frame.
        """
        images: UInt8Array | None = None
        for position in sorted(range(len(indices)), key=indices.__getitem__):
            image = self._image(indices[position])
            if images is None:
                images = np.empty((len(indices), *image.shape), np.uint8)
            images[position] = image  # at once, while the processor has it in its cache
        return np.empty((0, *self.size, 3), np.uint8) if images is None else images

    def _image(self, number: int) -> UInt8Array:
        if not 0 <= number < self._num_frames:
            raise IndexError(f"{self.clip.path}: frame {number} of {self._num_frames}")
        try:
            image = self._opened().image(number)
        except DataError:
            self.close()  # the decoder's position is unknown after a failure
            raise
        self._shape = self._shape or image.shape
        if image.shape != self._shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (image.shape, self._shape)]
            reason = f"its size is {sizes[0]}, that of frames before it {sizes[1]}"
            raise decode_error(self.clip.path, number, reason)
        return image

    def close(self) -> None:
        """Releases the file; a later read opens it again."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _opened(self) -> "_Decoder":
        if self._decoder is None:
            self._decoder = _Decoder(self.clip)
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
        """Continues at a keyframe of the table."""
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
