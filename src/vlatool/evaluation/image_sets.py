"""Pictures to encode, episode by episode: folders of pictures, image shards, any known recordings.

An item of a set is opened where its pictures are listed, and again in the process that decodes.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vlatool.artifacts.fragment import read_members
from vlatool.artifacts.image import decode_rgb
from vlatool.artifacts.image_shards import (
    IMAGE_SUFFIXES,
    METADATA_SUFFIX,
    image_tars,
    is_image_shards,
)
from vlatool.artifacts.stored_image import image_info
from vlatool.artifacts.window_folder import is_windows
from vlatool.episode import Episode, EpisodeRef, UInt8Array, stored_bytes
from vlatool.errors import DataError
from vlatool.jobs.inputs import InputState, input_state
from vlatool.loading.shard_reader import shard_index
from vlatool.plugins import FORMATS
from vlatool.sources.base import FormatReader
from vlatool.sources.detection import detect_source
from vlatool.sources.selection import episode_state
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.documents import DocumentError, parse_json
from vlatool.storage.uri import is_file_name

_IMAGES = "images"
# `train-episode_000001` is episode_000001.
_SPLIT = re.compile(r"^[a-z]+-(?=episode_)")


class NamedImage(NamedTuple):
    """A picture and how it is called in its episode.

    Attributes:
        stem: Its name without suffix.
        pixels: uint8 [H, W, 3].
    """

    stem: str
    pixels: UInt8Array


class OpenImages(Protocol):
    """The pictures of one episode."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, indices: Sequence[int]) -> Iterator[NamedImage]:
        """Some of them, decoded.

        Raises:
            DataError: One is missing, broken, or not stored as 8-bit RGB; names it.
        """
        ...


class ImageItem(Protocol):
    """One episode of a set; picklable."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def path(self) -> Path:
        """What is opened."""
        ...


class ImageSet(Protocol):
    """Where pictures come from; picklable.

    Attributes:
        format: What it is called.
        has_own_place: Whether codes belong inside it.
    """

    format: str
    has_own_place: bool

    @property
    def items(self) -> Sequence[Any]:
        """Its episodes, in order."""
        ...

    def open(self, item: Any) -> OpenImages:
        """The pictures of an episode, none of them read yet; DataError where there are none."""
        ...

    def state(self, item: Any) -> InputState:
        """Its files as they are now."""
        ...


def find_images(place: Path, forced: str | None = None) -> ImageSet:
    """The pictures at a location.

    Args:
        place: A folder of windows or of pictures, image shards, or recordings.
        forced: The format, where several would do.

    Raises:
        DataError: There are none.
        UsageError: Several formats find episodes.
    """
    if forced is None and is_image_shards(place):
        return ShardImages(place)
    if forced is None and is_windows(place):
        forced = _IMAGES
    found = detect_source(place, forced)
    return RecordedImages(found.format, found.reader, found.refs)


class RecordedImages:
    """The pictures of all cameras of the episodes of a registered format."""

    def __init__(self, name: str, reader: FormatReader, refs: Sequence[EpisodeRef]) -> None:
        self.format = name
        self.has_own_place = name == _IMAGES
        self.items = [ref for ref in refs if not ref.excluded]
        self._reader = reader

    def open(self, item: EpisodeRef) -> OpenImages:
        """The episode's own pictures, or the frames of its cameras one after the other."""
        return _Recorded(item, self._reader.read(item))

    def state(self, item: EpisodeRef) -> InputState:
        """The files of the episode."""
        return episode_state(item)

    def __reduce__(self) -> tuple[Any, ...]:
        # The episodes stay here: those that are worked on come one by one.
        return (_reader_only, (self.format, getattr(self._reader, "config", None)))


def _reader_only(name: str, config: Any) -> RecordedImages:
    kind = FORMATS.get(name)
    return RecordedImages(name, kind(kind.Config() if config is None else config), [])


class _Recorded:
    """Frames of an episode."""

    def __init__(self, ref: EpisodeRef, episode: Episode) -> None:
        self._path = ref.path
        self._cameras = episode.cameras
        files = episode.frame_metadata.get("file", ())
        if files:
            self._stems = [Path(str(name)).stem for name in files]
        else:
            self._stems = [
                f"{camera}_{ref.id}_frame_{frame:06d}"
                for camera, frames in self._cameras.items()
                for frame in range(len(frames))
            ]
        self._places = [
            (camera, frame)
            for camera, frames in self._cameras.items()
            for frame in range(len(frames))
        ]
        if not self._places:
            raise DataError(
                f"{ref.path}: the episode has no pictures",
                hint="leave it out, or record it with a camera",
                code="data.no_pictures",
                details={"path": str(ref.path)},
            )
        check_unique_names(ref.path, self._stems)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, indices: Sequence[int]) -> Iterator[NamedImage]:
        wanted: dict[str, list[tuple[int, str]]] = {}
        for index in indices:
            camera, frame = self._places[index]
            wanted.setdefault(camera, []).append((frame, self._stems[index]))
        for camera, frames in wanted.items():
            yield from self._of_camera(camera, frames)

    def _of_camera(self, camera: str, frames: Sequence[tuple[int, str]]) -> Iterator[NamedImage]:
        source = self._cameras[camera]
        if stored_bytes(source, frames[0][0]) is None:
            read = source.read([frame for frame, _ in frames])
            for (_, stem), pixels in zip(frames, read, strict=True):
                yield NamedImage(stem, pixels)
            return
        for frame, stem in frames:
            data = stored_bytes(source, frame)
            assert data is not None, "frames of one camera are stored alike"
            yield NamedImage(stem, decoded(data, f"{self._path}: {stem}"))


@dataclass(frozen=True)
class TarItem:
    """One tar of image shards."""

    id: str
    path: Path


class ShardImages:
    """The pictures of image shards; each tar is an episode."""

    format, has_own_place = "image-shards", False

    def __init__(self, place: Path) -> None:
        tars = [place] if place.suffix == ".tar" else image_tars(place)
        if not tars:
            raise DataError(
                f"{place}: no image shards here",
                code="data.no_dataset",
                details={"path": str(place)},
            )
        short = [_SPLIT.sub("", tar.stem) for tar in tars]
        names = short if len(set(short)) == len(short) else [tar.stem for tar in tars]
        self.items = [TarItem(name, tar) for name, tar in zip(names, tars, strict=True)]
        self._place = place

    def open(self, item: TarItem) -> OpenImages:
        """The samples of a tar, by its index."""
        return _Tar(item)

    def state(self, item: TarItem) -> InputState:
        """The tar."""
        return input_state([item.path])

    def __reduce__(self) -> tuple[Any, ...]:
        return (_no_shards, ())


def _no_shards() -> ShardImages:
    """For a process that is told which tar it opens."""
    return object.__new__(ShardImages)


class _Tar:
    """Samples of a tar."""

    def __init__(self, item: TarItem) -> None:
        self._path = item.path
        try:
            version = FileVersion.of(item.path)
        except FileNotFoundError:
            raise self._broken("is missing", "data.missing_shard") from None
        self._index = shard_index(FileCache(default_cache_folder()), version)
        if not len(self):
            raise self._broken("holds no picture", "data.no_pictures")

    def __len__(self) -> int:
        return len(self._index.offsets)

    def read(self, indices: Sequence[int]) -> Iterator[NamedImage]:
        yield from map(self._image, indices)

    def _image(self, index: int) -> NamedImage:
        start = int(self._index.offsets[index])
        try:
            data = read_byte_range(
                ByteRange(self._path, start, start + int(self._index.lengths[index]))
            )
            members = read_members(data)
        except ValueError as error:
            raise self._broken(f"sample {index} is damaged: {error}", "data.broken_shard") from None
        stored = [members.contents[one] for one in IMAGE_SUFFIXES if one in members.contents]
        if not stored:
            reason = f"sample {members.key} has none of {', '.join(IMAGE_SUFFIXES)}"
            raise self._broken(reason, "data.no_image")
        stem = _file_stem(members.contents) or members.key.replace("/", "_")
        return NamedImage(stem, decoded(stored[0], f"{self._path}: {members.key}"))

    def _broken(self, problem: str, code: str) -> DataError:
        return DataError(
            f"{self._path}: {problem}",
            hint="copy the shard again, or write it again",
            code=code,
            details={"path": str(self._path)},
        )


def _file_stem(contents: Mapping[str, bytes]) -> str:
    """What the picture was called before it came into a shard; empty where nothing says it."""
    try:
        metadata = parse_json(contents.get(METADATA_SUFFIX, b"{}"))
    except DocumentError:
        return ""
    name = metadata.get("file") if isinstance(metadata, dict) else None
    return Path(name).stem if isinstance(name, str) and is_file_name(name) else ""


def decoded(data: bytes, name: str) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of a stored picture.

    Raises:
        DataError: It cannot be decoded, or is stored as something else than 8-bit RGB.
    """
    broken = partial(_refused, name)
    try:
        info = image_info(data)
        if info.frames > 1:
            raise broken("has several frames", "data.not_rgb")
        if not info.is_plain:
            raise broken("is not stored as 8-bit RGB (grey, palette or alpha)", "data.not_rgb")
        return decode_rgb(data)
    except ValueError as error:
        raise broken(f"no readable picture: {error}", "data.picture_unreadable") from None


def _refused(name: str, problem: str, code: str) -> DataError:
    hint = "get or record the picture again"
    if code == "data.not_rgb":
        hint = "convert it to RGB first; the tokenizer has seen nothing else"
    return DataError(f"{name}: {problem}", hint=hint, code=code, details={"picture": name})


def check_unique_names(place: Path, stems: Sequence[str]) -> None:
    """DataError where two pictures of an episode have one name, as codes go by names."""
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise DataError(
            f"{place}: {twice[0]} is the name of several pictures",
            hint="give every picture of an episode a name of its own",
            code="data.duplicate_picture",
            details={"path": str(place), "pictures": twice[:20]},
        )
