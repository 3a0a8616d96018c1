"""Images to encode, by episode: folders of images, image shards, raw episodes of any format.

An item of a set is opened twice: by the process that lists its images, and by that which decodes.
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
from vlatool.artifacts.image_shards.format import (
    IMAGE_SUFFIXES,
    METADATA_SUFFIX,
    image_tars,
    is_image_shards,
)
from vlatool.artifacts.stored_image import image_info
from vlatool.artifacts.windows.folder import is_windows
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
    """Image and its name in its episode.

    Attributes:
        stem: File name without suffix.
        pixels: uint8 [H, W, 3].
    """

    stem: str
    pixels: UInt8Array


class OpenImages(Protocol):
    """Images of one episode."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, indices: Sequence[int]) -> Iterator[NamedImage]:
        """Yields the decoded images at `indices`.

        Raises:
            DataError: An image is missing, broken, or not stored as 8-bit RGB; names the image.
        """
        ...


class ImageItem(Protocol):
    """Episode of a set; picklable."""

    @property
    def id(self) -> str:
        """Name of the episode."""
        ...

    @property
    def path(self) -> Path:
        """File or folder of the episode."""
        ...


class ImageSet(Protocol):
    """Images of several episodes; picklable.

    Attributes:
        format: Name of the format.
        has_own_place: True if codes are written into the folder of the images by default.
    """

    format: str
    has_own_place: bool

    @property
    def items(self) -> Sequence[Any]:
        """Episodes, in order."""
        ...

    def open(self, item: Any) -> OpenImages:
        """Opens the images of an episode without reading any; DataError if it has none."""
        ...

    def state(self, item: Any) -> InputState:
        """Current state of the files of an episode."""
        ...


def find_images(location: Path, forced: str | None = None) -> ImageSet:
    """Detects the images at a location.

    Args:
        location: Folder of windows or of images, image shards, or raw episodes.
        forced: Format to use; None: detect it.

    Raises:
        DataError: There are no images.
        UsageError: Several formats find episodes.
    """
    if forced is None and is_image_shards(location):
        return ShardImages(location)
    if forced is None and is_windows(location):
        forced = _IMAGES
    source = detect_source(location, forced)
    return RecordedImages(source.format, source.reader, source.refs)


class RecordedImages:
    """Images of all cameras of the episodes of a registered format."""

    def __init__(self, name: str, reader: FormatReader, refs: Sequence[EpisodeRef]) -> None:
        self.format = name
        self.has_own_place = name == _IMAGES
        self.items = [ref for ref in refs if not ref.excluded]
        self._reader = reader

    def open(self, item: EpisodeRef) -> OpenImages:
        """Opens the images of the episode, camera by camera."""
        return _Recorded(item, self._reader.read(item))

    def state(self, item: EpisodeRef) -> InputState:
        """Current state of the files of the episode."""
        return episode_state(item)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled without the episodes: a process gets the items that it reads one by one.
        return (_reader_only, (self.format, getattr(self._reader, "config", None)))


def _reader_only(name: str, config: Any) -> RecordedImages:
    reader = FORMATS.get(name)
    return RecordedImages(name, reader(reader.Config() if config is None else config), [])


class _Recorded:
    """Images of the frames of an episode."""

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
        self._frames = [
            (camera, frame)
            for camera, frames in self._cameras.items()
            for frame in range(len(frames))
        ]
        if not self._frames:
            raise DataError(
                f"{ref.path}: the episode has no images",
                hint="remove the episode, or record it with a camera",
                code="data.no_pictures",
                details={"path": str(ref.path)},
            )
        check_unique_names(ref.path, self._stems)

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, indices: Sequence[int]) -> Iterator[NamedImage]:
        by_camera: dict[str, list[tuple[int, str]]] = {}
        for index in indices:
            camera, frame = self._frames[index]
            by_camera.setdefault(camera, []).append((frame, self._stems[index]))
        for camera, frames in by_camera.items():
            yield from self._of_camera(camera, frames)

    def _of_camera(self, camera: str, frames: Sequence[tuple[int, str]]) -> Iterator[NamedImage]:
        source = self._cameras[camera]
        if stored_bytes(source, frames[0][0]) is None:
            images = source.read([frame for frame, _ in frames])
            for (_, stem), pixels in zip(frames, images, strict=True):
                yield NamedImage(stem, pixels)
            return
        for frame, stem in frames:
            data = stored_bytes(source, frame)
            assert data is not None, "all frames of a camera are stored the same way"
            yield NamedImage(stem, decoded(data, f"{self._path}: {stem}"))


@dataclass(frozen=True)
class TarItem:
    """Tar of image shards."""

    id: str
    path: Path


class ShardImages:
    """Images of image shards; each tar is an episode."""

    format, has_own_place = "image-shards", False

    def __init__(self, location: Path) -> None:
        tars = [location] if location.suffix == ".tar" else image_tars(location)
        if not tars:
            raise DataError(
                f"{location}: no image shards here",
                code="data.no_dataset",
                details={"path": str(location)},
            )
        short = [_SPLIT.sub("", tar.stem) for tar in tars]
        names = short if len(set(short)) == len(short) else [tar.stem for tar in tars]
        self.items = [TarItem(name, tar) for name, tar in zip(names, tars, strict=True)]

    def open(self, item: TarItem) -> OpenImages:
        """Opens the samples of a tar by its index."""
        return _Tar(item)

    def state(self, item: TarItem) -> InputState:
        """Current state of the tar."""
        return input_state([item.path])

    def __reduce__(self) -> tuple[Any, ...]:
        return (_no_shards, ())


def _no_shards() -> ShardImages:
    """Set without shards, for a process that gets the tars to open one by one."""
    return object.__new__(ShardImages)


class _Tar:
    """Images of a tar."""

    def __init__(self, item: TarItem) -> None:
        self._path = item.path
        try:
            version = FileVersion.of(item.path)
        except FileNotFoundError:
            raise self._broken("is missing", "data.missing_shard") from None
        self._index = shard_index(FileCache(default_cache_folder()), version)
        if not len(self):
            raise self._broken("has no image", "data.no_pictures")

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
        stored = [members.contents[name] for name in IMAGE_SUFFIXES if name in members.contents]
        if not stored:
            reason = f"sample {members.key} has none of {', '.join(IMAGE_SUFFIXES)}"
            raise self._broken(reason, "data.no_image")
        stem = _file_stem(members.contents) or members.key.replace("/", "_")
        return NamedImage(stem, decoded(stored[0], f"{self._path}: {members.key}"))

    def _broken(self, problem: str, code: str) -> DataError:
        return DataError(
            f"{self._path}: {problem}",
            hint="copy or write the shard again",
            code=code,
            details={"path": str(self._path)},
        )


def _file_stem(contents: Mapping[str, bytes]) -> str:
    """Original file name of an image without suffix, from its metadata; empty if not recorded."""
    try:
        metadata = parse_json(contents.get(METADATA_SUFFIX, b"{}"))
    except DocumentError:
        return ""
    name = metadata.get("file") if isinstance(metadata, dict) else None
    return Path(name).stem if isinstance(name, str) and is_file_name(name) else ""


def decoded(data: bytes, name: str) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of a stored image.

    Raises:
        DataError: The image cannot be decoded, or is not stored as 8-bit RGB.
    """
    broken = partial(_image_error, name)
    try:
        info = image_info(data)
        if info.frames > 1:
            raise broken("has several frames", "data.not_rgb")
        if not info.is_plain:
            raise broken("is not stored as 8-bit RGB (gray, palette or alpha)", "data.not_rgb")
        return decode_rgb(data)
    except ValueError as error:
        raise broken(f"not a readable image: {error}", "data.picture_unreadable") from None


def _image_error(name: str, problem: str, code: str) -> DataError:
    hint = "copy or record the image again"
    if code == "data.not_rgb":
        hint = "convert the image to RGB first: the tokenizer was trained on RGB only"
    return DataError(f"{name}: {problem}", hint=hint, code=code, details={"picture": name})


def check_unique_names(location: Path, stems: Sequence[str]) -> None:
    """Raises DataError if two images of an episode share a name, which identifies their codes."""
    duplicates = [stem for stem, count in Counter(stems).items() if count > 1]
    if duplicates:
        raise DataError(
            f"{location}: {duplicates[0]} is the name of several images",
            hint="give each image of an episode a unique name",
            code="data.duplicate_picture",
            details={"path": str(location), "pictures": duplicates[:20]},
        )
