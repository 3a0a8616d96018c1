"""Depth of LeRobot sets in millimeters: codes in a video, or values in images of the table.

Legend of shapes: H, W image, N frames. Source: formats/lerobot 4.1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av.error
import numpy as np

from vlatool.episode import Array, Clip
from vlatool.media.frames import ParquetImages, VideoFrames, decode_error, open_video
from vlatool.media.images import decode_values
from vlatool.recordings.inventory import depth_image

USUAL_BITS = 12
# Bits of the codes in a video by its format of pixels; the first plane has the codes.
_CODE_BITS = {
    "gray10le": 10,
    "gray12le": 12,
    "gray14le": 14,
    "gray16le": 16,
    "yuv420p10le": 10,
    "yuv420p12le": 12,
    "yuv420p14le": 14,
    "yuv420p16le": 16,
}
_MOST_MILLIMETERS = 2**16 - 1


def code_bits(clip: Clip) -> int:
    """Bits of the codes of a depth video; ValueError if it has other pixels."""
    container, stream = open_video(clip.path)
    with container:
        pixels = stream.codec_context.pix_fmt or "unknown"
    if pixels not in _CODE_BITS:
        raise ValueError(f"its video is {pixels}, not the codes of 10 to 16 bits")
    return _CODE_BITS[pixels]


def code_millimeters(quantizer: Mapping[str, Any], bits: int = USUAL_BITS) -> Array:
    """Millimeters of each code of a depth video, uint16 [2 ** bits].

    Raises ValueError if meta/info.json and the option do not say how codes become meters.

    Codes are equal steps of meters, or of log(meters + shift), from `depth_min` to `depth_max`.
    Code 0 is depth 0, unknown: pixels that the sensor did not measure have it.
    """
    is_log = quantizer["use_log"]
    numbers = {"shift": 0.0}
    for key in ("depth_min", "depth_max", "shift") if is_log else ("depth_min", "depth_max"):
        value = quantizer[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number:
            raise ValueError(
                f"meta/info.json has no number {key} that leads from codes to meters; "
                "--depth-range MIN,MAX or, for logarithms, MIN,MAX,SHIFT gives it"
            )
        numbers[key] = value
    low = numbers["depth_min"]
    high = numbers["depth_max"]
    shift = numbers["shift"]
    if not 0 <= low < high or (is_log and low + shift <= 0):
        raise ValueError(f"its codes are from depth_min {low} to depth_max {high}, shift {shift}")
    if 1000 * high > _MOST_MILLIMETERS:
        raise ValueError(f"depth_max {high} m is more than 16 bits of millimeters hold")
    steps = np.linspace(0, 1, 2**bits)
    if is_log:
        first = math.log(low + shift)
        last = math.log(high + shift)
        meters = np.exp(first + steps * (last - first)) - shift
    else:
        meters = low + steps * (high - low)
    millimeters = np.round(1000 * np.clip(meters, low, high)).astype(np.uint16)
    millimeters[0] = 0
    return millimeters


class DepthVideo(VideoFrames):
    """A clip of codes as depth uint16 [H, W] in millimeters."""

    def __init__(self, clip: Clip, num_frames: int, millimeters: Array) -> None:
        """`millimeters`: depth of each code."""
        super().__init__(clip, num_frames)
        self._millimeters = millimeters

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_millimeters": self._millimeters}

    def read(self, indices: Sequence[int]) -> Array:
        images = np.empty((len(indices), *self.size), np.uint16)
        for position in sorted(range(len(indices)), key=indices.__getitem__):
            codes = self._codes(indices[position])
            images[position] = self._millimeters[np.minimum(codes, len(self._millimeters) - 1)]
        return images

    def _codes(self, number: int) -> Array:
        reason = "the file has no intact image"
        try:
            frame = self._opened()._frame(number)
            if frame is not None and not frame.is_corrupt:
                plane = frame.planes[0]
                lines = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)
                return lines[:, : plane.width]
        except (av.error.FFmpegError, ValueError) as error:
            reason = str(error)
        self.close()
        raise decode_error(self.clip.path, number, reason)


class ValueImages(ParquetImages):
    """Image column with one number for each pixel, such as depth or labels."""

    def __init__(
        self,
        path: Path,
        column: str,
        root: Path,
        rows: Sequence[int],
        convert: Callable[[Array], Array],
    ) -> None:
        """`convert`: values [H, W] to the image; ValueError if they are something else."""
        super().__init__(path, column, root, rows)
        self._convert = convert

    def image(self, index: int) -> Array:
        try:
            return self._convert(decode_values(self.encoded(index)))
        except ValueError as error:
            raise self.image_error(index, str(error)) from error

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            height, width = self.image(0).shape
            self._size = (height, width)
        return self._size


def depth_of_values(values: Array, unit: str | None) -> Array:
    """Depth uint16 [H, W] in millimeters; without a unit, `m` or `mm`, floats are meters."""
    if values.dtype.itemsize == 1:
        raise ValueError(f"its values are {values.dtype}, none of depth")
    is_meters = unit == "m" or (unit != "mm" and values.dtype.kind == "f")
    return depth_image(values, 1000.0 if is_meters else 1.0)
