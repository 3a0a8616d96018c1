"""Image files of one episode as frames, in the order of their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.image import decode_rgb
from vlatool.artifacts.stored_image import image_info
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges

LARGEST_FILE = 2**28
# Number of remote files that are fetched together; small beside the memory of a worker.
_AT_ONCE = 8


class ImageFiles:
    """Image files as a `FrameSource`; images of different sizes are read one at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens nothing yet."""
        self.paths = tuple(paths)
        self._prefetched: dict[int, bytes] = {}
        self._size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": {}}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first image, in pixels."""
        if self._size is None:
            try:
                self._size = image_info(self.encoded(0)).size
            except ValueError as error:
                raise self.image_error(0, str(error)) from error
        return self._size

    def encoded(self, index: int) -> bytes:
        """Content of a file.

        Raises:
            DataError: The file is missing, or larger than 256 MiB.
        """
        if index not in self._prefetched:
            self._fetch(index)
        data = self._prefetched[index]
        if len(data) > LARGEST_FILE:
            raise self._error(
                index, f"has more than {LARGEST_FILE:,} bytes", "data.picture_too_large"
            )
        return data

    def read(self, indices: Sequence[int]) -> UInt8Array:
        """Images uint8 [N, H, W, 3], RGB.

        Raises:
            DataError: An image cannot be decoded, or the requested images differ in size.
        """
        images = [self._image(index) for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                sizes = (f"{shown.shape[1]}x{shown.shape[0]}" for shown in (image, images[0]))
                raise self.image_error(
                    index, f"sizes differ within one read: {' and '.join(sizes)}"
                )
        return np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)

    def image_error(self, index: int, reason: str) -> DataError:
        """Error for an image that cannot be decoded."""
        return self._error(index, f"unreadable image: {reason}", "data.picture_unreadable")

    def _image(self, index: int) -> UInt8Array:
        try:
            return decode_rgb(self.encoded(index))
        except ValueError as error:
            raise self.image_error(index, str(error)) from error

    def _fetch(self, index: int) -> None:
        """Reads the files from `index` on into the cache and drops the others."""
        indices = range(index, min(index + _AT_ONCE, len(self)))
        contents = read_byte_ranges(
            (ByteRange(self.paths[position], 0, LARGEST_FILE + 1) for position in indices), _AT_ONCE
        )
        self._prefetched = {}
        for position in indices:
            try:
                self._prefetched[position] = next(contents)
            except (FileNotFoundError, IsADirectoryError):
                break
            except OSError as error:
                raise self.image_error(position, error.strerror or str(error)) from error
        if index not in self._prefetched:
            raise self._error(index, "does not exist; the link is broken", "data.missing_file")

    def _error(self, index: int, problem: str, code: str) -> DataError:
        return DataError(
            f"{self.paths[index]}: {problem}",
            hint="get or record the image again, or exclude the episode with --episodes",
            code=code,
            details={"path": str(self.paths[index]), "frame": index},
        )
