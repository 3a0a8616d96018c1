"""Encoding of images; stored bytes are copied where nothing changes."""

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
    """Encodes the images of one episode and counts anomalies.

    Attributes:
        config: Options of the sink.
        converted: Number of images that were not plain 8-bit RGB.
        animations: Number of images with several frames.
        sizes: (height, width) of stored images to their number.
    """

    config: ImageShardsConfig
    converted: int = 0
    animations: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])

    def image(self, camera: str, source: FrameSource, frame: int) -> tuple[str, bytes]:
        """Format and bytes of the image of a frame.

        Raises:
            DataError: It cannot be read or decoded.
        """
        try:
            stored = stored_bytes(source, frame)
            if stored is None:
                return self._encode(_read_frame(source, frame))
            return self._encode_stored(stored)
        except (ValueError, OSError) as error:
            file = _file_details(source, frame)
            raise DataError(
                f"{file.get('path', f'camera {camera!r}, frame {frame}')}: "
                f"unreadable image: {error}",
                hint="copy or record the image again, or leave the episode out with --episodes",
                code="data.picture_unreadable",
                details={"camera": camera, "frame": frame, **file},
            ) from error

    def _encode_stored(self, stored: bytes) -> tuple[str, bytes]:
        info = image_info(stored)
        if self._can_copy(info):
            if info.format == JPEG or self.config.verify_pixels:
                check_pixels(stored)  # a JPEG has no checksums
            self.sizes[info.size] += 1
            return info.format, stored
        self.converted += not info.is_plain and info.frames == 1
        self.animations += info.frames > 1
        return self._encode(decode_rgb(stored))

    def _can_copy(self, info: ImageInfo) -> bool:
        """True if stored bytes can be written unchanged."""
        output_format, size = self.config.image_format, self.config.image_size
        return (
            info.is_plain
            and info.format in ((output_format,) if output_format else (PNG, JPEG))
            and (size is None or size == info.size)
        )

    def _encode(self, pixels: UInt8Array) -> tuple[str, bytes]:
        config = self.config
        self.sizes[pixels.shape[0], pixels.shape[1]] += 1
        pixels = resize(
            pixels, config.image_size, config.image_resizing_method, config.image_resizing_filter
        )
        if config.image_format == JPEG:
            return JPEG, encode_jpeg(pixels, config.jpeg_quality, config.jpeg_subsampling)
        return PNG, encode_png(pixels)


def _read_frame(source: FrameSource, frame: int) -> UInt8Array:
    return source.read([frame])[0]


def _file_details(source: Any, frame: int) -> dict[str, str]:
    """`path` of the file of a frame; empty if the source has no file per frame."""
    paths: Sequence[object] = getattr(source, "paths", ())
    return {"path": str(paths[frame])} if paths else {}
