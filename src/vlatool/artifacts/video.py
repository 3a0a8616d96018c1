"""Encoding of videos."""

import io
from collections.abc import Sequence

import av

from vlatool.episode import UInt8Array

# One thread, no clock, no B-frames (with them the bytes of x264 vary between runs, measured):
# equal images give equal bytes.
_ENCODER = {"crf": "18", "g": "2", "bf": "0", "preset": "medium", "threads": "1"}
_CONTAINER = {"fflags": "+bitexact"}


def encode_video(frames: Sequence[UInt8Array], fps: int) -> bytes:
    """An mp4 file, h264, yuv420p, from images uint8 [H, W, 3] with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=_CONTAINER) as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames[0].shape[:2]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
