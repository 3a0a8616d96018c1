"""Differences between the recordings of one episode in two layouts, by content.

Columns are matched by name, else by their values, because layouts join and rename fields; cameras
by the end of their name, else by their first image. Legend of shapes: F frames.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from vlatool.episode import Array, Episode, FrameSource
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.report.facts import evenly_spaced

_RELATIVE = 1e-6
_ABSOLUTE = 1e-12
_RATE = 1e-3  # share that rates may differ
_BLOCK = 8  # pixels
_SEPARATORS = ("/", "__", "::")


@dataclass(frozen=True)
class Difference:
    """Difference between two episodes."""

    kind: str  # episodes, frames, fps, fields, values, texts, cameras, images
    episode: str  # in the first data set, or in the second if only that has it
    message: str


@dataclass(frozen=True)
class DataComparison:
    """Options of a comparison, and the matches of columns that it has learnt."""

    images: int | None  # frames of each camera; None: all
    tolerance: float  # difference of the means of blocks of an image, in levels of 255
    is_shared: bool  # fields and cameras that only one has are no difference
    matches: dict[str, str] = field(default_factory=dict[str, str])
    cameras: dict[str, str] = field(default_factory=dict[str, str])

    def differences(self, first: Episode, second: Episode) -> Iterator[Difference]:
        if first.num_frames != second.num_frames:
            message = f"{counted(first.num_frames, 'frame')}, in the other {second.num_frames}"
            yield Difference("frames", first.id, message)
            return
        if first.fps and second.fps and abs(first.fps - second.fps) > _RATE * first.fps:
            rates = f"{first.fps:g} frames per second, in the other {second.fps:g}"
            yield Difference("fps", first.id, rates)
        yield from self._values(first, second)
        yield from _texts(first, second)
        yield from self._images(first, second)

    def _values(self, first: Episode, second: Episode) -> Iterator[Difference]:
        """Columns that both have are compared; only others are matched by their values."""
        columns = _columns(first)
        others = _columns(second)
        unmatched = [name for name in others if name not in columns]
        missing: list[str] = []
        for name, values in columns.items():
            match = name if name in others else self.matches.get(name)
            if match not in others:
                match = None
                for other in unmatched:
                    if _are_equal(values, others[other]):
                        match = other
                        break
            if match is None:
                missing.append(name)
                continue
            if match in unmatched:
                unmatched.remove(match)
            self.matches[name] = match
            if not _are_equal(values, others[match]):
                yield Difference("values", first.id, _value_text(name, values, others[match]))
        if not self.is_shared:
            yield from _only("fields", first.id, "first", missing)
            yield from _only("fields", first.id, "second", unmatched)

    def _images(self, first: Episode, second: Episode) -> Iterator[Difference]:
        if self.images == 0:
            return
        unmatched = list(second.cameras)
        missing: list[str] = []
        for name, frames in first.cameras.items():
            match = self.cameras.get(name) or self._camera(name, frames, second.cameras)
            if match is None or match not in second.cameras:
                missing.append(name)
                continue
            if match in unmatched:
                unmatched.remove(match)
            self.cameras[name] = match
            problem = self._image_problem(frames, second.cameras[match], first.num_frames)
            if problem:
                yield Difference("images", first.id, f"{name}: {problem}")
        if not self.is_shared:
            yield from _only("cameras", first.id, "first", missing)
            yield from _only("cameras", first.id, "second", unmatched)

    def _camera(
        self, name: str, frames: FrameSource, others: Mapping[str, FrameSource]
    ) -> str | None:
        """Camera of the same name, else of the same end of the name, else with the same image."""
        if name in others:
            return name
        same = [other for other in others if _end(other) == _end(name)]
        if len(same) == 1:
            return same[0]
        for other, other_frames in others.items():
            if not self._image_problem(frames, other_frames, 1):
                return other
        return None

    def _image_problem(self, frames: FrameSource, others: FrameSource, count: int) -> str:
        """Reason why images of two cameras differ; empty if they do not."""
        for frame in evenly_spaced(count, self.images if self.images is not None else count):
            try:
                image = frames.read([frame])[0]
                other_image = others.read([frame])[0]
            except DataError as error:
                return error.message
            height, width = image.shape[:2]
            other_height, other_width = other_image.shape[:2]
            if (height, width) != (other_height, other_width):
                return f"images of {width} x {height}, in the other {other_width} x {other_height}"
            distance = float(np.abs(_blocks(image) - _blocks(other_image)).max())
            if distance > self.tolerance:
                size = f"{_BLOCK} x {_BLOCK} pixels"
                return f"frame {frame} differs by {distance:.1f} levels in the mean of {size}"
        return ""


def _blocks(image: Array) -> Array:
    """Mean of each channel of the blocks of an image, which encoding hardly changes."""
    height, width = image.shape[:2]
    rows = np.arange(0, height, _BLOCK)
    columns = np.arange(0, width, _BLOCK)
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, 0), columns, 1)
    counts = np.multiply.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return sums / counts[..., None]


def _columns(episode: Episode) -> dict[str, Array]:
    """Numeric columns [F] of an episode, each dimension of a field by itself."""
    columns: dict[str, Array] = {}
    for name, values in episode.lowdim.items():
        if values.dtype.kind in "fiub":
            flat = values.reshape(len(values), -1)
            for index in range(flat.shape[1]):
                columns[f"{name}[{index}]"] = flat[:, index]
    return columns


def _are_equal(first: Array, second: Array) -> bool:
    if len(first) != len(second):
        return False
    return bool(np.allclose(first, second, _RELATIVE, _ABSOLUTE, equal_nan=True))


def _value_text(name: str, first: Array, second: Array) -> str:
    is_equal = np.isclose(first, second, _RELATIVE, _ABSOLUTE, equal_nan=True)
    rows = np.flatnonzero(~is_equal)
    largest = float(np.abs(first.astype(np.float64) - second)[rows].max())
    return f"{name}: {counted(len(rows), 'row')} differ, by {largest:.3g} at most, first {rows[0]}"


def _texts(first: Episode, second: Episode) -> Iterator[Difference]:
    """A difference if instructions of frames differ; both have the same number of frames."""
    rows: list[int] = []
    shown = ""
    for frame in range(first.num_frames):
        text = first.instruction_at(frame) or first.task
        other = second.instruction_at(frame) or second.task
        if text != other:
            rows.append(frame)
            shown = shown or f"{text[:60]!r} and {other[:60]!r}"
    if rows:
        message = f"instruction: {counted(len(rows), 'frame')} differ, first {rows[0]}: {shown}"
        yield Difference("texts", first.id, message)


def _only(kind: str, episode: str, which: str, names: Collection[str]) -> Iterator[Difference]:
    if names:
        fields = dict.fromkeys(name.partition("[")[0] for name in names)
        yield Difference(kind, episode, f"only in the {which}: {', '.join(fields)}")


def _end(name: str) -> str:
    for separator in (*_SEPARATORS, "."):
        name = name.rpartition(separator)[2]
    return name.lower()
