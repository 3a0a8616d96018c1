"""Picture files of one episode as frames, in the order of their names."""

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
# Fetched together where each is a request; small beside what a worker holds anyway.
_AT_ONCE = 8


class ImageFiles:
    """Files as a `FrameSource`; they may differ in size, and are then read one at a time."""

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
        """(height, width) of the first picture, in pixels."""
        if self._size is None:
            try:
                self._size = image_info(self.encoded(0)).size
            except ValueError as error:
                raise self.image_error(0, str(error)) from error
        return self._size

    def encoded(self, index: int) -> bytes:
        """The file as it is stored.

        Raises:
            DataError: It is not there, or larger than 256 MiB.
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
        """Pictures uint8 [N, H, W, 3], RGB.

        Raises:
            DataError: A picture cannot be decoded, or those that are asked for differ in size.
        """
        images = [self._image(index) for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                sizes = (f"{shown.shape[1]}x{shown.shape[0]}" for shown in (image, images[0]))
                raise self.image_error(index, f"{' and '.join(sizes)} pixels side by side")
        return np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)

    def image_error(self, index: int, reason: str) -> DataError:
        """The refusal of a picture."""
        return self._error(index, f"no readable picture: {reason}", "data.picture_unreadable")

    def _image(self, index: int) -> UInt8Array:
        try:
            return decode_rgb(self.encoded(index))
        except ValueError as error:
            raise self.image_error(index, str(error)) from error

    def _fetch(self, index: int) -> None:
        """Reads some files from `index` on; those before are forgotten."""
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
            raise self._error(index, "is not there; a link leads nowhere", "data.missing_file")

    def _error(self, index: int, problem: str, code: str) -> DataError:
        return DataError(
            f"{self.paths[index]}: {problem}",
            hint="get or record the picture again, or leave the episode out with --episodes",
            code=code,
            details={"path": str(self.paths[index]), "frame": index},
        )
