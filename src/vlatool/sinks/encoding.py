"""Pictures of an episode as JPEG: each frame is decoded, resized and encoded once."""

import io
from collections.abc import Iterable, Mapping, Sequence

from vlatool.episode import FrameSource
from vlatool.transforms.geometry import ImageGeometry

_FRAMES_PER_READ = 8


class EpisodeEncoder:
    """Hands out encoded pictures for samples whose frames ascend; memory is a window's worth."""

    def __init__(
        self,
        cameras: Mapping[str, FrameSource],
        geometries: Mapping[str, ImageGeometry],
        needed_frames: Iterable[int],
        quality: int,
    ) -> None:
        needed = sorted(set(needed_frames))
        self._cameras = {
            name: _CameraEncoder(source, geometries[name], needed, quality)
            for name, source in cameras.items()
        }

    def images(self, frames: Mapping[int, int]) -> dict[tuple[str, int], bytes]:
        """Pictures by (camera, offset) for offset to frame: offsets outer, cameras inner."""
        return {
            (name, offset): camera.picture(frame, oldest=min(frames.values()))
            for offset, frame in frames.items()
            for name, camera in self._cameras.items()
        }


class _CameraEncoder:
    def __init__(
        self, source: FrameSource, geometry: ImageGeometry, needed: Sequence[int], quality: int
    ) -> None:
        self._source = source
        self._geometry = geometry
        self._needed = needed
        self._quality = quality
        self._position = 0
        self._encoded: dict[int, bytes] = {}

    def picture(self, frame: int, oldest: int) -> bytes:
        """The encoded frame; frames before `oldest` are forgotten."""
        while frame not in self._encoded:
            self._encode_next()
        self._encoded = {n: data for n, data in self._encoded.items() if n >= oldest}
        return self._encoded[frame]

    def _encode_next(self) -> None:
        batch = self._needed[self._position : self._position + _FRAMES_PER_READ]
        self._position += len(batch)
        for frame, pixels in zip(batch, self._source.read(batch), strict=True):
            buffer = io.BytesIO()
            picture = self._geometry.apply(pixels)
            picture.save(buffer, "JPEG", quality=self._quality, optimize=True)
            self._encoded[frame] = buffer.getvalue()
