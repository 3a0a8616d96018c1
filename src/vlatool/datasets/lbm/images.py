"""Encoding of the images of an episode: its cameras, and its depth and labels.

`EpisodeEncoder` gives the encoded files of one sample after the other. Each frame is encoded once,
a batch ahead, and kept as long as later samples may need it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlatool.episode import Array, Episode, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.media.images import encode_png
from vlatool.recordings import writing
from vlatool.transforms.geometry import ImageGeometry

# Inflating, resizing and encoding release the GIL: with two threads per worker no core is idle
# while the last episode of a run is read or written.
THREADS = 2
EncodeImage = Callable[[UInt8Array], bytes]  # JPEG of pixels [H, W, 3]


@dataclass(frozen=True)
class ImageStream:
    """Frames of one camera and their conversion."""

    name: str  # camera, or camera with the suffix `_depth` or `_label`; names the tar members
    source: FrameSource
    geometry: ImageGeometry  # rotation, resize and crop
    # `image` is encoded as JPEG, `values` (depth, labels) as 16-bit PNG without interpolation
    kind: Literal["image", "values"] = "image"
    copies_jpeg: bool = False  # copy JPEG files that the geometry does not change

    def member(self, offset: int) -> str:
        """Suffix of the tar member of an image offset."""
        extension = "jpg" if self.kind == "image" else "png"
        return f"{self.name}_t{offset}.{extension}"

    def encode(self, frames: Sequence[int], encode_image: EncodeImage) -> list[bytes]:
        """Encoded files of the frames."""
        if self.source.is_prepared:
            return [self.source.encoded(frame) or b"" for frame in frames]
        files: dict[int, bytes] = {}
        if self.copies_jpeg and self.kind == "image" and self.geometry.is_identity:
            size = self.geometry.target
            for frame in frames:
                data = writing.stored_jpeg(self.name, self.source, frame, size)
                if data is not None:
                    files[frame] = data
        missing = [frame for frame in frames if frame not in files]
        if missing:
            pixels = writing.read_frames(self.name, self.source, missing)
            for frame, image in zip(missing, pixels, strict=True):
                files[frame] = self._file(image, encode_image)
        return [files[frame] for frame in frames]

    def _file(self, pixels: Array, encode_image: EncodeImage) -> bytes:
        if self.kind == "image":
            return encode_image(self.geometry.apply(pixels))
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(
                f"{self.name}: values from {pixels.min()} to {pixels.max()} do not fit 16 bits",
                hint="leave them out: --depth false, --labels false",
                code="data.mismatch",
                details={"camera": self.name},
            )
        return encode_png(self.geometry.apply_to_values(pixels.astype(np.uint16)))


class EpisodeEncoder:
    """Encoded images for samples with ascending frames; memory is bounded by one window. A context
    manager. Streams are encoded one batch ahead on a few threads.
    """

    def __init__(
        self,
        streams: Sequence[ImageStream],
        needed_frames: Iterable[int],
        encode_image: EncodeImage,
    ) -> None:
        needed = sorted(set(needed_frames))
        self._pool = ThreadPoolExecutor(min(THREADS, max(len(streams), 1)))
        self._streams: list[_StreamEncoder] = []
        for stream in streams:
            self._streams.append(_StreamEncoder(stream, needed, encode_image, self._pool))

    def __enter__(self) -> "EpisodeEncoder":
        for stream in self._streams:
            stream.prefetch()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def images(self, frames: Mapping[int, int]) -> dict[str, bytes]:
        """Encoded files by member suffix, for frames by image offset: offsets outer, cameras inner,
        PNG last.
        """
        oldest = min(frames.values())
        images: dict[str, bytes] = {}
        values: dict[str, bytes] = {}
        for offset, frame in frames.items():
            for encoder in self._streams:
                files = images if encoder.stream.kind == "image" else values
                files[encoder.stream.member(offset)] = encoder.file(frame, oldest)
        return images | values


class _StreamEncoder:
    """Encoded files of one stream, a batch ahead."""

    def __init__(
        self,
        stream: ImageStream,
        needed: Sequence[int],
        encode_image: EncodeImage,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.stream = stream
        self._encode_image = encode_image
        self._pool = pool
        self._waiting: deque[Sequence[int]] = deque()  # batches of frames
        for start in range(0, len(needed), writing.FRAMES_PER_READ):
            self._waiting.append(needed[start : start + writing.FRAMES_PER_READ])
        self._next: tuple[Sequence[int], Future[list[bytes]]] | None = None
        self._encoded: dict[int, bytes] = {}

    def file(self, frame: int, oldest: int) -> bytes:
        """The encoded frame; frames before `oldest` are discarded."""
        while frame not in self._encoded:
            self.prefetch()
            assert self._next is not None
            frames, future = self._next
            self._encoded.update(zip(frames, future.result(), strict=True))
            self._next = None
            self.prefetch()
        self._encoded = {n: data for n, data in self._encoded.items() if n >= oldest}
        return self._encoded[frame]

    def prefetch(self) -> None:
        """Starts encoding the next batch; one at a time, because sources are read in order."""
        if self._next is None and self._waiting:
            frames = self._waiting.popleft()
            self._next = frames, self._pool.submit(self.stream.encode, frames, self._encode_image)


def image_streams(
    episode: Episode,
    geometry: Callable[[str, tuple[int, int]], ImageGeometry],
    *,
    has_depth: bool,
    has_labels: bool,
    copies_jpeg: bool = False,
) -> Iterator[ImageStream]:
    """Images of an episode, then its depth and labels; `geometry` of a camera and a size."""
    for name, source in episode.cameras.items():
        yield ImageStream(name, source, geometry(name, source.size), copies_jpeg=copies_jpeg)
    if has_depth:
        yield from _value_streams("depth", episode.depth, episode, geometry)
    if has_labels:
        yield from _value_streams("label", episode.labels, episode, geometry)


def _value_streams(
    kind: str,
    sources: Mapping[str, FrameSource],
    episode: Episode,
    geometry: Callable[[str, tuple[int, int]], ImageGeometry],
) -> Iterator[ImageStream]:
    """Depth or labels in the order of the cameras, then those without a camera."""
    for name in dict.fromkeys([*episode.cameras, *sources]):
        if name in sources:
            source = sources[name]
            yield ImageStream(f"{name}_{kind}", source, geometry(name, source.size), "values")
