"""Image shards as episodes: each tar is one, and its images are the frames of one camera.

Source: formats/image-shards 1, 2, 3.1.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, overload

from vlatool.config.base import ConfigModel
from vlatool.datasets.image_shards import layout as image_shards_layout
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError
from vlatool.findings import Finding, finding_of_error
from vlatool.media.frames import SingleImages
from vlatool.media.tar import ShardIndex, shard_index
from vlatool.media.tar_sample import Members, read_members
from vlatool.recordings.base import FormatReader, id_part, no_episodes, unique_refs
from vlatool.recordings.rules import check_cameras
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.uri import is_file_name

CAMERA = "image"
_SEARCHED = "a folder of image shards (train-episode_000000.tar), a list of them (.txt), or one"
# Images have no time; every episode gets this frame rate.
_FPS = 1.0
# `train-episode_000001` is episode_000001.
_SPLIT = re.compile(r"^[a-z]+-(?=episode_)")
_NUMBER = re.compile(r"episode_(\d+)$")
_AGAIN = "copy or write the shard again"


class ImageShardsReader(FormatReader):
    """Reader of the tars of a folder, of a list, or of one tar."""

    Config: ClassVar[type[ConfigModel]] = ConfigModel
    default_sink: ClassVar[str] = "image-shards"

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """All tars, in the order of the manifest, the list, or the numbers in their names."""
        refs: list[EpisodeRef] = []
        for source in sources:
            refs += self._refs(source)
        return unique_refs(refs)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """One camera; the number of images is known from manifests."""
        frames: int | None = 0
        for ref in refs:
            if "pictures" not in ref.extras:
                frames = None
                break
            frames += ref.extras["pictures"]
        return Survey(len(refs), {CAMERA: None}, {}, frames, _FPS)

    def read(self, ref: EpisodeRef) -> Episode:
        """An episode; its images stay in the tar, which is scanned if it has no index."""
        try:
            version = FileVersion.of(ref.path)
        except FileNotFoundError:
            raise _shard_error(ref.path, "is missing", "data.missing") from None
        images = ShardImages(ref.path, shard_index(FileCache(default_cache_folder()), version))
        if not len(images):
            raise _shard_error(ref.path, "has no image", "data.missing")
        return Episode(
            id=ref.id,
            task=ref.task,
            fps=_FPS,
            num_frames=len(images),
            cameras={CAMERA: images},
            lowdim={},
            frame_metadata={"file": ShardImageNames(images)},
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        try:
            episode = self.read(ref)
        except DataError as error:
            yield finding_of_error(error, episode=ref.id)
            return
        if deep:
            yield from check_cameras(ref.id, episode.cameras)

    def _refs(self, source: Path) -> list[EpisodeRef]:
        counts = self._tars(source)
        if not counts:
            raise no_episodes(source, _SEARCHED)
        names = [_SPLIT.sub("", tar.stem) for tar in counts]
        if len(set(names)) < len(names):
            names = [tar.stem for tar in counts]
        refs: list[EpisodeRef] = []
        for name, (tar, count) in zip(names, counts.items(), strict=True):
            episode_id = id_part(name)
            match = _NUMBER.search(episode_id)
            ref = EpisodeRef(
                id=episode_id,
                path=tar,
                source=str(source),
                number=int(match[1]) if match else None,
                extras={} if count is None else {"pictures": count},
            )
            refs.append(ref)
        return refs

    def _tars(self, source: Path) -> Mapping[Path, int | None]:
        """Tars of a source, and their numbers of images where a manifest has them."""
        if source.suffix == image_shards_layout.LIST_SUFFIX and image_shards_layout.is_list(source):
            return dict.fromkeys(image_shards_layout.find_shards(str(source)))
        if not image_shards_layout.is_image_shards(source):
            return {}
        if source.suffix == image_shards_layout.SHARD_SUFFIX:
            return {source: None}
        manifest = image_shards_layout.read_manifest(source)
        if manifest is None:
            return dict.fromkeys(image_shards_layout.published_tars(source))
        return {source / shard.name: shard.pictures for shard in manifest.shards}


class ShardImages(SingleImages):
    """Images of a tar as a `FrameSource`; images of different sizes are read one at a time."""

    may_differ: ClassVar[bool] = True

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self._path = path
        self._index = index
        # The sample that was read last: its image and its name are used one after the other.
        self._last: tuple[int, Members] | None = None

    def __len__(self) -> int:
        return len(self._index.offsets)

    def encoded(self, index: int) -> bytes:
        members = self.members(index)
        data = image_shards_layout.sample_image(members.contents)
        if data is None:
            reason = (
                f"sample {members.key} has none of {', '.join(image_shards_layout.IMAGE_SUFFIXES)}"
            )
            raise _shard_error(self._path, reason, "data.mismatch", frame=index)
        return data

    def members(self, index: int) -> Members:
        """Members of a sample."""
        if self._last is None or self._last[0] != index:
            start = int(self._index.offsets[index])
            stop = start + int(self._index.lengths[index])
            try:
                members = read_members(read_byte_range(ByteRange(self._path, start, stop)))
            except ValueError as error:
                reason = f"sample {index} is damaged: {error}"
                raise _shard_error(self._path, reason, "data.broken", frame=index) from None
            self._last = index, members
        return self._last[1]

    def image_error(self, index: int, reason: str) -> DataError:
        key = self.members(index).key
        reason = f"sample {key}: unreadable image: {reason}"
        return _shard_error(self._path, reason, "data.broken", frame=index)


class ShardImageNames(Sequence[str]):
    """File names of the images of a tar, read with the images.

    The name comes from the original file if the metadata have it, else from the member.
    """

    def __init__(self, images: ShardImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        members = self._images.members(index)
        name = image_shards_layout.sample_metadata(members.contents).get("file")
        if isinstance(name, str) and is_file_name(name):
            return name
        key = members.key.replace("/", "_")
        for suffix in image_shards_layout.IMAGE_SUFFIXES:
            if suffix in members.contents:
                return f"{key}.{suffix}"
        return key


def _shard_error(path: Path, problem: str, code: str, **place: int) -> DataError:
    return DataError(
        f"{path}: {problem}", hint=_AGAIN, code=code, details={"path": str(path), **place}
    )
