"""Pictures of an episode as JPEG: each frame is decoded, resized and encoded once."""

import io
from collections.abc import Iterable, Mapping, Sequence

from vlatool.episode import FrameSource, UInt8Array
from vlatool.errors import DataError
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
            name: _CameraEncoder(name, source, geometries[name], needed, quality)
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
        self,
        name: str,
        source: FrameSource,
        geometry: ImageGeometry,
        needed: Sequence[int],
        quality: int,
    ) -> None:
        self._name = name
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
        for frame, pixels in zip(batch, self._read(batch), strict=True):
            buffer = io.BytesIO()
            picture = self._geometry.apply(pixels)
            picture.save(buffer, "JPEG", quality=self._quality, optimize=True)
            self._encoded[frame] = buffer.getvalue()

    def _read(self, frames: Sequence[int]) -> UInt8Array:
        try:
            return self._source.read(frames)
        except OSError as error:  # a plugin's decoder; the sink would take it for its own disk
            raise DataError(
                f"camera {self._name!r}: frames {frames[0]} to {frames[-1]}: {error}",
                hint="the pictures are damaged; record or download them again",
                code="data.picture_unreadable",
                details={"camera": self._name, "frames": list(frames)},
            ) from error
