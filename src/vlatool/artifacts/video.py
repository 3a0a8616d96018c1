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


def encode_video(
    frames: Iterable[UInt8Array],
    fps: int | Fraction,
    *,
    crf: int = 18,
    keyframe_interval: int = 2,
) -> bytes:
    """An mp4 file, h264, from images uint8 [H, W, 3]; colors have full size if a side is odd.

    Args:
        frames: The images, all of one size.
        fps: Frames per second.
        crf: Quality, 0 to 51; lower is better.
        keyframe_interval: Frames from one keyframe to the next.
    """
    buffer = io.BytesIO()
    options = {"crf": str(crf), "g": str(keyframe_interval), **_ENCODER}
    with av.open(buffer, "w", format="mp4", options=CONTAINER) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = image.shape[:2]
                is_even = stream.height % 2 == stream.width % 2 == 0
                stream.pix_fmt = "yuv420p" if is_even else "yuv444p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
