"""Images of an episode as JPEG and PNG: each frame is decoded, resized and encoded once."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlatool.artifacts.images import encode_jpeg, encode_png
from vlatool.episode import Array, FrameSource
from vlatool.errors import DataError
from vlatool.sinks.images import FRAMES_PER_READ, read_frames
from vlatool.transforms.geometry import ImageGeometry

# Inflating, resizing and encoding release the GIL: with two threads per worker no core is idle
# while the last episode of a run is read or written.
THREADS = 2


@dataclass(frozen=True)
class ImageStream:
    """Frames of one camera and their conversion.

    Attributes:
        name: Camera, or camera with the suffix `_depth` or `_label`; names the tar members.
        source: The frames.
        geometry: Rotation, resize and crop.
        kind: `image` is encoded as JPEG, `values` (depth, labels) as 16-bit PNG without
            interpolation.
    """

    name: str
    source: FrameSource
    geometry: ImageGeometry
    kind: Literal["image", "values"] = "image"

    def member(self, offset: int) -> str:
        """Suffix of the tar member of an image offset."""
        return f"{self.name}_t{offset}.{'jpg' if self.kind == 'image' else 'png'}"

    def encode(self, frames: Sequence[int], quality: int) -> list[bytes]:
        """Encoded files of the frames."""
        return [
            self._file(pixels, quality) for pixels in read_frames(self.name, self.source, frames)
        ]

    def _file(self, pixels: Array, quality: int) -> bytes:
        if self.kind == "image":
            return encode_jpeg(self.geometry.apply(pixels), quality)
        return encode_png(self.geometry.apply_to_values(self._in_16_bits(pixels)))

    def _in_16_bits(self, values: Array) -> Array:
        if values.min(initial=0) < 0 or values.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(
                f"{self.name}: values from {values.min()} to {values.max()} do not fit 16 bits",
                hint="leave them out: --depth false, --labels false",
                code="data.bad_depth",
                details={"camera": self.name},
            )
        return values.astype(np.uint16)


class EpisodeEncoder:
    """Encoded images for samples with ascending frames; memory is bounded by one window.

    A context manager. Streams are encoded one batch ahead on a few threads.
    """

    def __init__(
        self, streams: Sequence[ImageStream], needed_frames: Iterable[int], quality: int
    ) -> None:
        needed = sorted(set(needed_frames))
        self._pool = ThreadPoolExecutor(min(THREADS, max(len(streams), 1)))
        self._streams = [_StreamEncoder(stream, needed, quality, self._pool) for stream in streams]

    def __enter__(self) -> "EpisodeEncoder":
        for stream in self._streams:
            stream.prefetch()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def images(self, frames: Mapping[int, int]) -> dict[str, bytes]:
        """Encoded files by member suffix: offsets outer, cameras inner, PNG last.

        Args:
            frames: Map from offset to frame.
        """
        oldest = min(frames.values())
        members = [
            (stream.stream.kind, stream.stream.member(offset), stream.file(frame, oldest))
            for offset, frame in frames.items()
            for stream in self._streams
        ]
        return {name: data for _, name, data in sorted(members, key=lambda item: item[0])}


class _StreamEncoder:
    def __init__(
        self, stream: ImageStream, needed: Sequence[int], quality: int, pool: ThreadPoolExecutor
    ) -> None:
        self.stream = stream
        self._quality = quality
        self._pool = pool
        starts = range(0, len(needed), FRAMES_PER_READ)
        self._waiting = deque(needed[start : start + FRAMES_PER_READ] for start in starts)
        self._next: tuple[Sequence[int], Future[list[bytes]]] | None = None
        self._encoded: dict[int, bytes] = {}

    def file(self, frame: int, oldest: int) -> bytes:
        """The encoded frame; frames before `oldest` are discarded."""
        while frame not in self._encoded:
            self._await_batch()
        self._encoded = {n: data for n, data in self._encoded.items() if n >= oldest}
        return self._encoded[frame]

    def prefetch(self) -> None:
        """Starts encoding the next batch; one at a time, because sources are read in order."""
        if self._next is None and self._waiting:
            frames = self._waiting.popleft()
            self._next = frames, self._pool.submit(self.stream.encode, frames, self._quality)

    def _await_batch(self) -> None:
        self.prefetch()
        assert self._next is not None
        frames, future = self._next
        self._encoded.update(zip(frames, future.result(), strict=True))
        self._next = None
        self.prefetch()
