"""Encoding of videos."""

import io
from collections.abc import Iterable
from fractions import Fraction

import av

from vlatool.episode import UInt8Array

# One thread, no clock, no B-frames (with them the bytes of x264 vary between runs, measured):
# equal images give equal bytes.
_ENCODER = {"bf": "0", "preset": "medium", "threads": "1"}
CONTAINER = {"fflags": "+bitexact"}
# Containers without presentation times; FFmpeg reports guesses, so frames are counted instead.
TIMELESS_FORMATS = frozenset({"avi", "h264", "hevc", "m4v"})


class VideoEncoder:
    """Encoder of an mp4 file, h264, image by image; colors have full size if a side is odd; `fps`:
    frames per second; `crf`: quality, 0 to 51; lower is better.
    """

    def __init__(self, fps: int | Fraction, *, crf: int = 18, keyframe_interval: int = 2) -> None:
        self._buffer = io.BytesIO()
        options = {"crf": str(crf), "g": str(keyframe_interval), **_ENCODER}
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
    crf: int = 18,
    keyframe_interval: int = 2,
) -> bytes:
    """An mp4 file from images uint8 [H, W, 3], all of one size; options as of `VideoEncoder`."""
    encoder = VideoEncoder(fps, crf=crf, keyframe_interval=keyframe_interval)
    for image in frames:
        encoder.add(image)
    return encoder.finish()
