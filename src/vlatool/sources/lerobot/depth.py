"""Depth of LeRobot sets in millimeters: codes in a video, or values in images of the table.

Legend of shapes: H, W image, N frames. Source: lerobot 0.6, datasets/depth_utils.py.
"""

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from av.video.frame import VideoFrame

from vlatool.artifacts.images import open_image
from vlatool.episode import Array, Clip, FrameSource
from vlatool.sources.frames import ParquetImages, decode_error, open_video, packet_table
from vlatool.sources.inventory import depth_image

_CODES = 4096  # of 12 bits
_CODE_FORMATS = ("gray12le", "gray12be")
_MOST_MILLIMETERS = 2**16 - 1
# Modes of Pillow for images of one channel with more than 8 bits; floats are meters.
_VALUE_MODES = ("F", "I", "I;16", "I;16B", "I;16L")


def code_millimeters(quantizer: Mapping[str, Any]) -> Array:
    """Millimeters of each code of a depth video, uint16 [4096]; ValueError if it is not declared.

    Codes are equal steps of meters, or of log(meters + shift), from `depth_min` to `depth_max`.
    Code 0 is depth 0, unknown: pixels that the sensor did not measure have it.
    """
    needed = ("depth_min", "depth_max", *(["shift"] if quantizer["use_log"] else []))
    for key in needed:
        value = quantizer[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"meta/info.json has no number {key} that leads from codes to meters")
    low, high, is_log = quantizer["depth_min"], quantizer["depth_max"], quantizer["use_log"]
    shift = quantizer["shift"] if is_log else 0.0
    if not 0 <= low < high or low + shift < 0 or (is_log and low + shift == 0):
        raise ValueError(f"its codes are from depth_min {low} to depth_max {high}, shift {shift}")
    if 1000 * high > _MOST_MILLIMETERS:
        raise ValueError(f"depth_max {high} m is more than 16 bits of millimeters hold")
    steps = np.linspace(0, 1, _CODES)
    if is_log:
        first, last = math.log(low + shift), math.log(high + shift)
        meters = np.exp(first + steps * (last - first)) - shift
    else:
        meters = low + steps * (high - low)
    millimeters = np.round(1000 * np.clip(meters, low, high)).astype(np.uint16)
    millimeters[0] = 0
    return millimeters


class DepthVideo(FrameSource):
    """A clip of 12-bit codes as depth uint16 [H, W] in millimeters."""

    def __init__(self, clip: Clip, num_frames: int, millimeters: Array) -> None:
        """`millimeters`: those of each code. Raises ValueError if the clip has no such codes."""
        container, stream = open_video(clip.path)
        with container:
            context = stream.codec_context
            self._size = (context.height, context.width)
            if context.pix_fmt not in _CODE_FORMATS:
                raise ValueError(f"its video is {context.pix_fmt}, not the codes of gray12le")
        self._clip, self._num_frames, self._millimeters = clip, num_frames, millimeters
        self._container: Any = None
        self._frames: Iterator[VideoFrame] = iter(())
        self._next = 0

    def __len__(self) -> int:
        return self._num_frames

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_container": None, "_frames": iter(())}

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int]) -> Array:
        images = np.empty((len(indices), *self._size), np.uint16)
        for position in sorted(range(len(indices)), key=indices.__getitem__):
            number = indices[position]
            try:
                codes = self._codes(number)
            except (av.error.FFmpegError, ValueError) as error:
                raise decode_error(self._clip.path, number, str(error)) from error
            images[position] = self._millimeters[np.minimum(codes, _CODES - 1)]
        return images

    def _codes(self, number: int) -> Array:
        table = packet_table(self._clip)
        if self._container is None or number < self._next:
            self.close()
            self._container, stream = open_video(self._clip.path)
            key = max(0, bisect.bisect_right(table.key_numbers, number) - 1)
            if table.key_times:
                self._container.seek(table.key_times[key], stream=stream)
            self._frames = self._container.decode(stream)
        for frame in self._frames:
            current = table.number(frame.pts) if frame.pts is not None else None
            if current is not None:
                self._next = current + 1
            if current == number and not frame.is_corrupt:
                return frame.to_ndarray()
            if current is not None and current >= number:
                break
        raise decode_error(self._clip.path, number, "the file has no intact image")

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None


class DepthImages(ParquetImages):
    """Image column of depth: floats in meters or integers in millimeters unless declared."""

    def __init__(
        self, path: Path, column: str, root: Path, rows: Sequence[int], unit: str | None
    ) -> None:
        """`unit`: `m` or `mm`, as declared."""
        super().__init__(path, column, root, rows)
        self._unit = unit

    def image(self, index: int) -> Array:
        """Depth uint16 [H, W] in millimeters; `DataError` if the image holds something else."""
        try:
            with open_image(self.encoded(index)) as image:
                mode, values = image.mode, np.asarray(image)
        except ValueError as error:
            raise self.image_error(index, str(error)) from error
        if mode not in _VALUE_MODES:
            raise self.image_error(index, f"it is a {mode} image, not one of depth values")
        is_meters = self._unit == "m" or (self._unit != "mm" and mode == "F")
        return depth_image(values, 1000.0 if is_meters else 1.0)

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            height, width = self.image(0).shape
            self._size = (height, width)
        return self._size
