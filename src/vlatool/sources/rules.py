"""Rules of a source that hold for every format.

A reader may add two methods and a table of its codes; without them only these rules are checked:

    findings: ClassVar[Family]
    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]
    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlatool.episode import EpisodeRef, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Family, Finding, Kind, finding_of_error
from vlatool.sources.base import FormatReader

_RENAMED = re.compile(r"^(?P<id>.+)-\d+$")
# Half a second at the usual 10 frames per second: noise of a real sensor never repeats so long.
_LONG_REPETITION = 5

SOURCE = Family(
    "source",
    {
        "missing_camera": Kind(
            "warning", "An episode lacks a camera.", "use the other cameras, or get it again"
        ),
        "language_fallback": Kind(
            "warning", "An episode has no instruction; its task's name in words is used."
        ),
        "no_language": Kind(
            "warning", "An episode has no instruction, and its task has no name.", "name the task"
        ),
        "given_twice": Kind("warning", "A source was given twice; it is read once."),
        "duplicate_id": Kind(
            "warning",
            "Two episodes have one name; the second is called NAME-2.",
            "rename one of them, or leave one source out",
        ),
        "no_fields": Kind(
            "error",
            "The reader finds no field that a policy could predict.",
            "name the fields with the keys of the format",
        ),
    },
)

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


def check_episode(reader: FormatReader, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    """What every reader can say: whether it reads the episode, and what it warns about.

    Args:
        reader: Reader of the format.
        ref: The episode.
        deep: Decode every frame of every camera.
    """
    try:
        episode = reader.read(ref)
    except DataError as error:
        yield finding_of_error(error, episode=ref.id)
        return
    for finding in episode.findings:
        yield replace(finding, place={"episode": ref.id, **finding.place})
    if not episode.lowdim:
        yield SOURCE("no_fields", f"{ref.id}: has no field", episode=ref.id)
    if deep:
        yield from check_cameras(ref.id, episode.cameras)


def check_cameras(episode: str, cameras: Mapping[str, FrameSource]) -> Iterator[Finding]:
    """Decodes every frame of every camera of an episode."""
    for name, frames in cameras.items():
        yield from _check_pictures(frames, episode=episode, camera=name)


def duplicate_ids(refs: Sequence[EpisodeRef]) -> Iterator[Finding]:
    """Episodes that got a number behind their name because it was taken."""
    ids = {ref.id for ref in refs}
    for ref in refs:
        match = _RENAMED.match(ref.id)
        if match and match["id"] in ids:
            message = f"{ref.path}: a second episode called {match['id']}; it is called {ref.id}"
            yield SOURCE("duplicate_id", message, episode=ref.id, path=str(ref.path))


def _check_pictures(frames: FrameSource, **place: Any) -> Iterator[Finding]:
    """Decodes every frame once, in order.

    Args:
        frames: The pictures of a camera.
        **place: Episode and camera, for the findings.
    """
    seen = _Pictures()
    for number in range(len(frames)):
        try:
            seen.add(number, frames.read([number])[0])
        except DataError as error:
            yield PICTURES("unreadable", error.message, **place, frame=number)
            break
    where = f"{place.get('episode', 'episode')}, camera {place.get('camera')}"
    yield from seen.findings(where, place)


class _Pictures:
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
