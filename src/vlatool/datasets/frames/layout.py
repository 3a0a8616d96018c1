"""Folders of frames: each frame of an episode once, from which windows are cut when they are read.

`frames/episode_ID.tar` has a sample `ID` with the numbers of the episode, one row per frame, and
its texts, then a sample `ID_000000` per frame with an image of each camera. Its index has the byte
range of each; `frames.json` lists the episodes, `preprocessing_config.yaml` has the options. An
episode that is held out for evaluation has `"split": "val"` in its row.

Legend of shapes: F frames, C dimensions of a field.
"""

import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.episode import (
    Array,
    Calibration,
    Declaration,
    Episode,
    FrameSource,
    LanguageSpan,
    PoseGroup,
)
from vlatool.errors import DataError
from vlatool.media.images import decode_rgb, open_image
from vlatool.media.npz import write_arrays
from vlatool.media.tar import INDEX_SUFFIX, ShardIndex, shard_index
from vlatool.media.tar_sample import ARRAYS, METADATA, StoredSample, read_members
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.manifest import FileName, ManifestType

NAME = "frames.json"
CONFIG_NAME = "preprocessing_config.yaml"
TARS = "frames"
OWNED_FILES = (f"{TARS}/episode_*.tar", f"{TARS}/episode_*{INDEX_SUFFIX}", NAME, CONFIG_NAME)
# Members of the arrays that are not fields.
_INTRINSICS = "original_intrinsics."
_EXTRINSICS = "extrinsics."
# Values of an episode that are written as they are; lists of objects come with their type.
_PLAIN = ("task", "fps", "num_frames", "dimension_names", "language", "success")
_PLAIN_LISTS = ("action_fields", "proprioception_fields", "frame_metadata", "extras")
_OBJECTS: Mapping[str, type] = {
    "language_spans": LanguageSpan,
    "pose_groups": PoseGroup,
    "declared": Declaration,
}
# Ends of the members of images.
_SUFFIXES = {"cameras": "_t0.jpg", "depth": "_depth_t0.png", "labels": "_label_t0.png"}
_HINT = "preprocess or copy the data again"

Split = Literal["train", "val"]
TRAIN: Split = "train"
VAL: Split = "val"


@dataclass(frozen=True)
class FramesEpisode:
    """An episode of the manifest."""

    id: FileName
    sha256: str  # digest of its tar
    frames: Annotated[int, Field(ge=1, strict=True)]
    split: Split = TRAIN

    def row(self) -> dict[str, Any]:
        """The row of the manifest; `split` only if it is not `train`."""
        row = asdict(self)
        if self.split == TRAIN:
            del row["split"]
        return row


@dataclass(frozen=True)
class Frames:
    """Content of the manifest."""

    episodes: tuple[FramesEpisode, ...]


MANIFEST: ManifestType[Frames] = ManifestType(NAME, "vlatool.frames", 1, Frames, _HINT)


def tar_name(episode: str) -> str:
    """Path of the tar of an episode, relative to the output."""
    return f"{TARS}/episode_{episode}.tar"


def numbers_members(episode: Episode) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members with all of an episode but its images."""
    arrays = dict(episode.lowdim)
    for camera, calibration in episode.calibration.items():
        if calibration.intrinsics is not None:
            arrays[f"{_INTRINSICS}{camera}"] = calibration.intrinsics
        if calibration.extrinsics is not None:
            arrays[f"{_EXTRINSICS}{camera}"] = calibration.extrinsics
    document: dict[str, Any] = {}
    for name in (*_PLAIN, *_PLAIN_LISTS):
        document[name] = getattr(episode, name)
    for name in _OBJECTS:
        document[name] = [asdict(value) for value in getattr(episode, name)]
    for kind in _SUFFIXES:
        sources: Mapping[str, FrameSource] = getattr(episode, kind)
        document[kind] = {name: list(source.size) for name, source in sources.items()}
    yield f"{episode.id}.{ARRAYS}", write_arrays(arrays)
    yield f"{episode.id}.{METADATA}", json.dumps(document, default=list).encode()


class FrameRange(NamedTuple):
    """Consecutive frames of a tar, which are one range of bytes."""

    first: int
    lengths: tuple[int, ...]
    place: ByteRange

    def frames(self, data: bytes) -> dict[int, Mapping[str, bytes]]:
        """Content of each member, by frame; ValueError if it is broken."""
        contents: dict[int, Mapping[str, bytes]] = {}
        start = 0
        for number, length in enumerate(self.lengths, self.first):
            contents[number] = read_members(data[start : start + length]).contents
            start += length
        return contents


class FramesTar:
    """Tar of an episode with its index; `copy` is a local file with its content, closed with it."""

    def __init__(self, path: Path, copy: IO[bytes] | None = None) -> None:
        self.path = path
        self.copy = copy
        if copy is not None:
            weakref.finalize(self, copy.close)
        self.episode_id = path.name.removeprefix("episode_").removesuffix(".tar")

    @cached_property
    def version(self) -> FileVersion:
        try:
            return FileVersion.of(self.path)
        except FileNotFoundError:
            raise self.error(f"is missing, but {NAME} names it") from None

    @cached_property
    def index(self) -> ShardIndex:
        return shard_index(FileCache(default_cache_folder()), self.version, self.copy)

    def ranges(self, frames: Iterable[int]) -> list[FrameRange]:
        """Ranges with the images of some frames; with the numbers for -1."""
        runs: list[list[int]] = []  # first and last frame
        for frame in sorted({*frames}):
            if runs and runs[-1][1] == frame - 1:
                runs[-1][1] = frame
            else:
                runs.append([frame, frame])
        return [self._range(first, last) for first, last in runs]

    def _range(self, first: int, last: int) -> FrameRange:
        rows = slice(first + 1, last + 2)
        offsets = self.index.offsets[rows].tolist()
        lengths = self.index.lengths[rows].tolist()
        if len(offsets) <= last - first:
            raise self.error(f"has no frame {last}")
        part = ByteRange(self.path, offsets[0], offsets[-1] + lengths[-1])
        return FrameRange(first, tuple(lengths), part)

    def members(self, frame: int) -> Mapping[str, bytes]:
        """Content of each member at a frame, or of the numbers at -1."""
        try:
            part = self._range(frame, frame)
            return part.frames(self.read(part.place))[frame]
        except ValueError as error:
            place = "the numbers" if frame < 0 else f"frame {frame}"
            raise self.error(f"{place}: {error}") from None

    def read(self, place: ByteRange) -> bytes:
        if self.copy is None:
            return read_byte_range(place)
        return os.pread(self.copy.fileno(), place.stop - place.start, place.start)

    def error(self, reason: str) -> DataError:
        return DataError.at(self.path, reason, hint=_HINT, code="data.broken")

    def episode(self, episode_id: str) -> Episode:
        """The episode; its images stay in the tar. DataError if the numbers are damaged."""
        try:
            sample = StoredSample(episode_id, self.members(-1))
            document = sample.metadata()
            arrays = dict(sample.arrays())
            values: dict[str, Any] = {name: document[name] for name in (*_PLAIN, *_PLAIN_LISTS)}
            for name in ("action_fields", "proprioception_fields"):
                values[name] = tuple(values[name])
            for name, kind in _OBJECTS.items():
                values[name] = tuple(_object(kind, tree) for tree in document[name])
            for name, suffix in _SUFFIXES.items():
                sources: dict[str, FrameSource] = {}
                for camera, size in document[name].items():
                    member = f"{camera}{suffix}"
                    sources[camera] = FrameImages(self, member, size, document["num_frames"])
                values[name] = sources
            calibration = _take_calibration(arrays)
            return Episode(id=episode_id, lowdim=arrays, calibration=calibration, **values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.error(f"the numbers are damaged: {error!r}") from None


def _take_calibration(arrays: dict[str, Array]) -> dict[str, Calibration]:
    """Takes the calibration of each camera out of the arrays of the fields."""
    calibration: dict[str, Calibration] = {}
    for prefix in (_INTRINSICS, _EXTRINSICS):
        for name in list(arrays):
            if name.startswith(prefix):
                camera = name.removeprefix(prefix)
                calibration[camera] = Calibration(
                    arrays.pop(f"{_INTRINSICS}{camera}", None),
                    arrays.pop(f"{_EXTRINSICS}{camera}", None),
                )
    return calibration


def _object(kind: type, values: Mapping[str, Any]) -> Any:
    """An object of its values as JSON, whose tuples are lists there."""
    arguments = {**values}  # a list of pairs is no object
    for entry in fields(kind):
        if str(entry.type).startswith("tuple") and entry.name in arguments:
            arguments[entry.name] = tuple(arguments[entry.name])
    return kind(**arguments)


class FrameImages(FrameSource):
    """Images of a camera as they are stored; `size` is the size of the recording."""

    is_prepared = True

    def __init__(self, tar: FramesTar, suffix: str, size: Sequence[int], frames: int) -> None:
        self._tar = tar
        self._suffix = suffix.lower()
        self._frames = frames
        self._size = (int(size[0]), int(size[1]))

    def __len__(self) -> int:
        return self._frames

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int]) -> Array:
        if self._suffix.endswith(".jpg"):
            return np.stack([decode_rgb(self.encoded(index)) for index in indices])
        images: list[Array] = []
        for index in indices:
            with open_image(self.encoded(index)) as image:
                images.append(np.asarray(image))
        return np.stack(images)

    def encoded(self, index: int) -> bytes:
        members = self._tar.members(index)
        if self._suffix not in members:
            raise self._tar.error(f"frame {index} has no {self._suffix}")
        return members[self._suffix]


@dataclass(frozen=True)
class FramesFolder:
    """An output of the sink `frames`."""

    path: Path

    @classmethod
    def find(cls, location: Path) -> "FramesFolder | None":
        """The folder at a location, or at its manifest; None if it is of another kind."""
        path = location.parent if location.name == NAME else location
        return cls(path) if MANIFEST.is_in(path) else None

    @cached_property
    def episodes(self) -> tuple[FramesEpisode, ...]:
        """Episodes in order; DataError if the manifest is broken."""
        manifest = MANIFEST.read(self.path)
        if manifest is None:
            raise MANIFEST.error(self.path, "is no manifest of frames")
        return manifest.episodes

    @property
    def num_held_out(self) -> int:
        """Number of episodes that are held out for evaluation."""
        return sum(episode.split == VAL for episode in self.episodes)

    def tar(self, episode: str) -> FramesTar:
        return FramesTar(self.path / tar_name(episode))

    def options(self) -> dict[str, Any]:
        """Options of the data; DataError if they are missing or broken."""
        return read_preprocessing_config(self.path)


def recognize(location: Path) -> str | None:
    return "frames" if FramesFolder.find(location) is not None else None
