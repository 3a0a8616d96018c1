"""Pictures of an episode as PNG files: copied where they are right, else decoded and written anew.

Source: reference/future-vla 1.2, with its data losses left out: there is no picture in place of another.
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
_HINT = "the pictures are damaged or of several kinds; record or download the episode again"


@dataclass
class ImageFileWriter:
    """Writes the pictures of one camera of an episode.

    Attributes:
        camera: Its name.
        source: Its pictures.
        config: What they become.
        name_of: Frame to name of the file.
    """

    camera: str
    source: FrameSource
    config: JsonlConfig
    name_of: Callable[[int], str]
    _size: tuple[int, int] | None = None

    def write(self, folder: FolderWriter, frames: int) -> int:
        """Writes the first `frames` pictures; how many of them are as they were stored.

        Raises:
            DataError: One is missing, cannot be decoded, or has another size than the first.
        """
        if len(self.source) < frames:
            problem = f"has {len(self.source)} pictures for {frames} frames"
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
        """Whether a stored picture can be copied; one that is damaged cannot be used at all."""
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
        except OSError as error:  # a plugin's decoder; the sink would take it for its own disk
            raise self._image_error(frames[0], str(error)) from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            problem = f"pictures are {pixels.dtype} {list(pixels.shape[1:])}, not uint8 [H, W, 3]"
            raise self._image_error(frames[0], problem)
        return pixels

    def _check_size(self, frame: int, size: tuple[int, int]) -> None:
        self._size = self._size or size
        if size != self._size:
            actual, first = (f"{width}x{height}" for height, width in (size, self._size))
            raise self._image_error(frame, f"has {actual} pixels, the first has {first}")

    @property
    def _target_size(self) -> tuple[int, int] | None:
        """The (height, width) that pictures get; None for their own."""
        size = self.config.resize_images_size
        return None if size is None else (size[1], size[0])

    def _image_error(self, frame: int, reason: str) -> DataError:
        return DataError(
            f"camera {self.camera!r}, frame {frame}: {reason}",
            hint=_HINT,
            code="data.picture_unreadable",
            details={"camera": self.camera, "frame": frame},
        )
