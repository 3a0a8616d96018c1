"""Checks of decoded pictures, the same for every format."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vlatool.episode import FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Family, Finding, Kind

# Half a second at the usual 10 frames per second: noise of a real sensor never repeats so long.
_LONG_REPETITION = 5

PICTURES = Family(
    "pictures",
    {
        "unreadable": Kind(
            "error", "A frame cannot be decoded.", "download or record the episode again"
        ),
        "black": Kind(
            "warning", "Frames are black all over.", "check the camera; leave the episode out"
        ),
        "constant": Kind(
            "warning",
            "Frames have one colour all over, other than black.",
            "check the camera; leave the episode out",
        ),
        "repeated": Kind(
            "warning",
            f"A picture is repeated over {_LONG_REPETITION} frames or more.",
            "check whether the camera froze; leave the episode out",
        ),
    },
)


def check_pictures(frames: FrameSource, **place: Any) -> Iterator[Finding]:
    """Decodes every frame once, in order.

    Args:
        frames: The pictures of a camera.
        **place: Episode and camera, for the findings.
    """
    survey = _Survey()
    for number in range(len(frames)):
        try:
            survey.add(number, frames.read([number])[0])
        except DataError as error:
            yield PICTURES("unreadable", error.message, **place, frame=number)
            break
    where = f"{place.get('episode', 'episode')}, camera {place.get('camera')}"
    yield from survey.findings(where, place)


class _Survey:
    """What is learned while frames pass by."""

    def __init__(self) -> None:
        self.black: list[int] = []
        self.constant: list[int] = []
        self.longest = (0, 0)
        self._run = (0, 0)
        self._before: UInt8Array | None = None

    def add(self, number: int, picture: UInt8Array) -> None:
        """Takes in frame `number`, uint8 [H, W, 3]."""
        if picture.size and np.ptp(picture.reshape(-1, picture.shape[-1]), axis=0).max() == 0:
            (self.constant if picture.any() else self.black).append(number)
        same = self._before is not None and np.array_equal(self._before, picture)
        start, length = self._run
        self._run = (start, length + 1) if same else (number, 1)
        self.longest = max(self.longest, self._run, key=lambda run: run[1])
        self._before = picture

    def findings(self, where: str, place: dict[str, Any]) -> Iterator[Finding]:
        """One finding for each kind of oddity."""
        for code, numbers in (("black", self.black), ("constant", self.constant)):
            if numbers:
                message = f"{where}: {len(numbers)} frames are {code}, the first is {numbers[0]}"
                yield PICTURES(code, message, **place, frame=numbers[0], count=len(numbers))
        start, length = self.longest
        if length >= _LONG_REPETITION:
            message = f"{where}: frames {start} to {start + length - 1} are the same picture"
            yield PICTURES("repeated", message, **place, frame=start, count=length)
