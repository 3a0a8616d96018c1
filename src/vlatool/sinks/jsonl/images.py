"""Images of an episode as PNG files: copied where they fit, otherwise decoded and encoded again.

Source: reference/future-vla 1.2, without its data losses: no image replaces another one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.artifacts.image import decode_rgb, encode_png
from vlatool.artifacts.png import is_png, png_info
from vlatool.episode import Array, FrameSource, stored_bytes
from vlatool.errors import DataError
from vlatool.sinks.jsonl.config import JsonlConfig
from vlatool.storage.bulk_folder import FolderWriter
from vlatool.transforms.geometry import resize

_FRAMES_PER_READ = 8
_HINT = "the images are damaged or of several kinds; record or download the episode again"


@dataclass
class ImageFileWriter:
    """Writes the images of one camera of an episode.

    Attributes:
        camera: Its name.
        source: Its images.
        config: Size and options of the written images.
        name_of: Function of a frame that returns the name of its file.
    """

    camera: str
    source: FrameSource
    config: JsonlConfig
    name_of: Callable[[int], str]
    _size: tuple[int, int] | None = None

    def write(self, folder: FolderWriter, frames: int) -> int:
        """Writes the first `frames` images; returns the number of those copied unchanged.

        Raises:
            DataError: An image is missing, cannot be decoded, or differs in size from the first.
        """
        if len(self.source) < frames:
            problem = f"has {len(self.source)} images for {frames} frames"
            raise self._image_error(len(self.source), problem)
        copied, pending = 0, list[int]()
        for frame in range(frames):
            data = stored_bytes(self.source, frame)
            if data is not None and self._can_copy(frame, data):
                folder.write(self.name_of(frame), data)
                copied += 1
            else:
                pending.append(frame)
            if len(pending) == _FRAMES_PER_READ or frame == frames - 1:
                for name, content in self._encode(pending):
                    folder.write(name, content)
                pending.clear()
        return copied

    def _can_copy(self, frame: int, data: bytes) -> bool:
        """True if a stored image can be copied unchanged; raises DataError if it is damaged."""
        if not is_png(data):
            return False
        try:
            info = png_info(data)
            if self.config.verify_pixels:
                decode_rgb(data)
        except ValueError as error:
            raise self._image_error(frame, str(error)) from error
        self._check_size(frame, info.size)
        return info.is_plain_rgb and self._target_size in (None, info.size)

    def _encode(self, frames: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        if not frames:
            return
        config, pixels = self.config, self._read(frames)
        method, filter_ = config.image_resizing_method, config.image_resizing_filter
        for frame, image in zip(frames, pixels, strict=True):
            self._check_size(frame, (image.shape[0], image.shape[1]))
            yield self.name_of(frame), encode_png(resize(image, self._target_size, method, filter_))

    def _read(self, frames: Sequence[int]) -> Array:
        try:
            pixels = self.source.read(frames)
        except OSError as error:  # from a plugin's decoder; not an error of the output disk
            raise self._image_error(frames[0], str(error)) from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            problem = f"images are {pixels.dtype} {list(pixels.shape[1:])}, not uint8 [H, W, 3]"
            raise self._image_error(frames[0], problem)
        return pixels

    def _check_size(self, frame: int, size: tuple[int, int]) -> None:
        self._size = self._size or size
        if size != self._size:
            actual, first = (f"{width}x{height}" for height, width in (size, self._size))
            raise self._image_error(frame, f"has {actual} pixels, the first has {first}")

    @property
    def _target_size(self) -> tuple[int, int] | None:
        """(height, width) of the written images; None keeps their size."""
        size = self.config.resize_images_size
        return None if size is None else (size[1], size[0])

    def _image_error(self, frame: int, reason: str) -> DataError:
        return DataError(
            f"camera {self.camera!r}, frame {frame}: {reason}",
            hint=_HINT,
            code="data.picture_unreadable",
            details={"camera": self.camera, "frame": frame},
        )
