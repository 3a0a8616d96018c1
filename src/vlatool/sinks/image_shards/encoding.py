"""Pictures as they are stored: the bytes that are there wherever nothing changes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlatool.artifacts.image import decode_rgb, encode_jpeg, encode_png
from vlatool.artifacts.stored_image import JPEG, PNG, ImageInfo, check_pixels, image_info
from vlatool.episode import FrameSource, UInt8Array, stored_bytes
from vlatool.errors import DataError
from vlatool.sinks.image_shards.config import ImageShardsConfig
from vlatool.transforms.geometry import resize


@dataclass
class ImageWriter:
    """Encodes the pictures of one episode, and counts what was odd about them.

    Attributes:
        config: How.
        converted: Pictures that were not plain 8-bit RGB.
        animations: Pictures of several frames.
        sizes: (height, width) of stored pictures to how many have it.
    """

    config: ImageShardsConfig
    converted: int = 0
    animations: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])

    def image(self, camera: str, source: FrameSource, frame: int) -> tuple[str, bytes]:
        """Format and bytes of a frame.

        Raises:
            DataError: It cannot be read or decoded.
        """
        try:
            stored = stored_bytes(source, frame)
            if stored is None:
                return self._encoded(_only(source, frame))
            return self._from_stored(stored)
        except (ValueError, OSError) as error:
            place = _place(source, frame)
            raise DataError(
                f"{place.get('path', f'camera {camera!r}, frame {frame}')}: "
                f"no readable picture: {error}",
                hint="get or record the picture again, or leave the episode out with --episodes",
                code="data.picture_unreadable",
                details={"camera": camera, "frame": frame, **place},
            ) from error

    def _from_stored(self, stored: bytes) -> tuple[str, bytes]:
        info = image_info(stored)
        if self._is_wanted(info):
            if info.format == JPEG or self.config.verify_pixels:
                check_pixels(stored)  # a JPEG has no checksums
            self.sizes[info.size] += 1
            return info.format, stored
        self.converted += not info.is_plain and info.frames == 1
        self.animations += info.frames > 1
        return self._encoded(decode_rgb(stored))

    def _is_wanted(self, info: ImageInfo) -> bool:
        """Whether stored bytes are what is to be written."""
        wanted, size = self.config.image_format, self.config.image_size
        return (
            info.is_plain
            and info.format in ((wanted,) if wanted else (PNG, JPEG))
            and (size is None or size == info.size)
        )

    def _encoded(self, pixels: UInt8Array) -> tuple[str, bytes]:
        config = self.config
        self.sizes[pixels.shape[0], pixels.shape[1]] += 1
        pixels = resize(
            pixels, config.image_size, config.image_resizing_method, config.image_resizing_filter
        )
        if config.image_format == JPEG:
            return JPEG, encode_jpeg(pixels, config.jpeg_quality, config.jpeg_subsampling)
        return PNG, encode_png(pixels)


def _only(source: FrameSource, frame: int) -> UInt8Array:
    return source.read([frame])[0]


def _place(source: Any, frame: int) -> dict[str, str]:
    """The file of a frame, where each has one."""
    paths: Sequence[object] = getattr(source, "paths", ())
    return {"path": str(paths[frame])} if paths else {}
