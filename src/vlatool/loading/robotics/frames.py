"""Windows of frames: how many, their statistics, and their samples, in the form of `lbm` shards.

A block of the order is the tar of an episode. What a window needs of it is a row per step of the
numbers, which stay in memory while the episode is in use, and the images of a few frames, which are
read by their byte ranges.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from vlatool.conventions.file import Conventions, conventions_of
from vlatool.datasets.frames.layout import (
    CONFIG_NAME,
    FrameRange,
    FramesEpisode,
    FramesFolder,
    FramesTar,
    tar_name,
)
from vlatool.datasets.lbm.layout import ShardTable
from vlatool.datasets.stats.layout import STATS_NAME, write_with_digests
from vlatool.episode import Array, EpisodeRef
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.job import digest_of
from vlatool.loading.base import DataSet, DroppedSample, SampleRef, ShardInfo, Split
from vlatool.loading.robotics.config import FrameWindowsConfig
from vlatool.loading.robotics.options import DataOptions
from vlatool.loading.shard_reader import (
    BROKEN_SAMPLE,
    MAX_REQUESTS,
    BlockReader,
    ShardCache,
)
from vlatool.media.tar_sample import METADATA, image_suffix
from vlatool.recordings.choice import chosen_numbers, select
from vlatool.storage.atomic import atomic_folder, write_json
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import read_byte_ranges
from vlatool.storage.documents import read_json
from vlatool.storage.uri import is_remote
from vlatool.transforms.rates import NearestFrames, at_rate, command_fields
from vlatool.transforms.statistics import StatisticsAccumulator, field_entries
from vlatool.transforms.windows import EpisodeSampler, SampleSpec, WindowsConfig

_COUNTS = "windows.json"
_SUFFIX = ".windows"
_POSE_BYTES = 72  # three numbers of a position and six of a rotation


@dataclass(frozen=True)
class FrameWindows:
    """A folder of frames, and the windows that a run cuts from it; picklable."""

    folder: FramesFolder
    config: FrameWindowsConfig
    cache: Path  # local folder for statistics
    fields: tuple[str, ...]  # fields with statistics; empty: all
    episodes: str | None  # as `data.episodes`
    split: Split  # as `data.split`

    @cached_property
    def stored(self) -> DataOptions:
        """Options of the folder, without windows."""
        return DataOptions.parse(self.folder.options(), self.options_file)

    @cached_property
    def keys(self) -> WindowsConfig:
        """Keys of the windows, none of them null."""
        return self.config.complete(self.stored.stored)

    @property
    def changes_rate(self) -> bool:
        return self.config.fps not in (None, self.stored.fps)

    @cached_property
    def _refs(self) -> list[EpisodeRef]:
        return [EpisodeRef(episode.id, self.folder.path, "") for episode in self.folder.episodes]

    @cached_property
    def numbers(self) -> str | None:
        """Numbers and ranges of `episodes`, of a curation those that it keeps."""
        return chosen_numbers(self.episodes, self._refs)

    @cached_property
    def selected(self) -> tuple[FramesEpisode, ...]:
        """The episodes that are used; may be empty."""
        episodes = self.folder.episodes
        if self.split != "all":
            episodes = tuple(episode for episode in episodes if episode.split == self.split)
        if self.episodes is None:
            return episodes
        selected = select(self._refs, self.numbers, option="data.episodes")
        ids = {ref.id for ref in selected}
        return tuple(episode for episode in episodes if episode.id in ids)

    def options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml, as of `lbm` shards with these windows."""
        stored = self.stored.stored
        options = {**stored, **self.keys.model_dump(mode="json"), "fps": stored.get("fps")}
        if self.config.fps:
            options["fps"] = self.config.fps
            conversions = stored.get("conversions") or {"pose_groups": []}
            options["conversions"] = {**conversions, "fps": stored.get("fps")}
        return options

    @property
    def options_file(self) -> Path:
        return self.folder.path / CONFIG_NAME

    def conventions(self) -> Conventions | None:
        """Measured meaning of the recorded actions; None if there is none that can be read."""
        with suppress(DataError):  # `verify` reports it; nothing needs the file
            return conventions_of(self.folder.path)
        return None

    @cached_property
    def spec(self) -> SampleSpec:
        images = self.stored.images
        return SampleSpec(
            windows=self.keys.window_spec(),
            image_offsets=tuple(self.keys.image_indices),
            image_size=images.size,
            resize_method=images.method,
            resize_filter=images.resample,
            rotations=images.rotations,
            still=self.keys.stillness(),
            compat=bool(self.stored.stored.get("compat")),
        )

    def sampler(self, tar: FramesTar, episode_id: str) -> EpisodeSampler:
        """Windows of an episode. DataError if its numbers are damaged."""
        episode = tar.episode(episode_id)
        if self.config.fps is not None:
            commands = command_fields(
                self.stored.action_fields,
                self.stored.proprioception_fields,
                self.stored.pose_groups or (),
                episode.lowdim,
            )
            episode, _ = at_rate(episode, self.config.fps, commands)
        return EpisodeSampler(episode, tuple(episode.cameras), self.spec)

    @property
    def statistics_file(self) -> Path:
        return self.computed() / STATS_NAME

    def shards(self) -> ShardTable:
        """The tars with windows, and how many."""
        counts: Any = read_json(self.computed() / _COUNTS)
        names: list[str] = []
        sizes: list[int] = []
        digests: list[str] = []
        for episode, count in zip(self.selected, counts, strict=True):
            if count:
                names.append(tar_name(episode.id))
                sizes.append(count)
                digests.append(episode.sha256)
        return ShardTable(self.folder.path, names, np.array(sizes, np.int64), digests)

    def computed(self) -> Path:
        """Folder in the cache with the statistics and the number of windows of each episode.

        It is made from the numbers of all episodes if it is not there yet.
        """
        if not self.selected:
            among = "" if self.episodes is None else f" among data.episodes {self.episodes}"
            raise DataError.at(
                self.folder.path,
                f"has no episodes for data.split {self.split}{among}",
                hint="choose other episodes, or all with --data.split all",
                code="data.no_samples",
            )
        rows = [(episode.id, episode.sha256) for episode in self.selected]
        names = sorted(self.fields) or None
        place = self.cache / f"{digest_of([rows, self.options(), names])}{_SUFFIX}"
        if (place / _COUNTS).is_file():
            return place

        total = StatisticsAccumulator()
        counts: list[int] = []
        widths: dict[str, int] = {}
        for sampler in self._samplers():
            counts.append(len(sampler))
            if not len(sampler):
                continue
            if not widths:
                if names and not sampler.widths(names).keys() >= set(names):
                    names = None  # the error names those that there are
                widths = sampler.widths(names)
            total.add(sampler.statistics(names))
        statistics = total.total()
        if statistics is None:
            raise DataError.at(
                self.folder.path,
                "gives no window with these values of data.windows",
                hint="use smaller windows, or allow more padding",
                code="data.no_samples",
            )
        with atomic_folder(place) as partial_folder:
            entries = dict(field_entries(statistics, widths))
            write_with_digests(partial_folder / STATS_NAME, entries)
            write_json(partial_folder / _COUNTS, counts)
        return place

    def _samplers(self) -> Iterator[EpisodeSampler]:
        """Windows of the selected episodes; remote ones are read concurrently."""

        def open_one(episode: FramesEpisode) -> EpisodeSampler:
            return self.sampler(self.folder.tar(episode.id), episode.id)

        if is_remote(self.folder.path):
            return in_parallel(open_one, self.selected, MAX_REQUESTS)
        return map(open_one, self.selected)


@dataclass(frozen=True)
class WindowSample:
    """A sample cut from frames; has the interface of `StoredSample` that decoders use."""

    key: str
    members: Mapping[str, bytes]  # the images, by their suffixes in shards
    index: int
    sampler: EpisodeSampler

    def json(self, suffix: str) -> object:
        return self.metadata() if suffix == METADATA else None

    def metadata(self) -> dict[str, Any]:
        return self.sampler.metadata(self.index)

    def arrays(self, names: Sequence[str]) -> dict[str, Array]:
        return self.sampler.arrays(self.index, names)

    def language(self) -> Mapping[str, Sequence[str]]:
        return self.sampler.episode.texts(int(self.sampler.windows.anchors[self.index]))


@dataclass(frozen=True)
class _OpenEpisode:
    """An episode in use."""

    tar: FramesTar
    sampler: EpisodeSampler

    @property
    def file(self) -> IO[bytes] | None:
        return self.tar.copy

    @property
    def num_bytes(self) -> int:
        """Size of its numbers, of its windows and of their relative poses."""
        episode = self.sampler.episode
        rows = self.sampler.windows.rows
        lowdim = sum(values.nbytes for values in episode.lowdim.values())
        return lowdim + rows.nbytes + rows.size * len(episode.pose_groups) * _POSE_BYTES

    def stored_frames(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        """Frame of the recording at each image offset of a window."""
        frames = self.sampler.image_frames(index, offsets)
        for source in self.sampler.episode.cameras.values():
            if isinstance(source, NearestFrames):  # the same rows for all cameras
                return {offset: int(source.rows[frame]) for offset, frame in frames.items()}
        return frames


class WindowReader(BlockReader[_OpenEpisode]):
    """Reads the windows of one data set of frames; pickled without open episodes."""

    def __init__(
        self,
        windows: FrameWindows,
        datasets: Sequence[DataSet],
        cameras: Sequence[str],
        offsets: Sequence[int],
        cache: ShardCache,
    ) -> None:
        super().__init__(datasets, cache)
        self._windows = windows
        self._cameras = tuple(cameras)
        self._offsets = tuple(offsets)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._windows, self._datasets, self._cameras, self._offsets, self._cache)
        return (WindowReader, arguments)

    def _read(self, refs: Sequence[SampleRef]) -> list[WindowSample | DroppedSample]:
        episodes = self._blocks(refs)
        frames_of_refs: list[dict[int, int]] = []
        remote: list[FrameRange] = []
        contents: dict[FrameRange, bytes] = {}
        for ref in refs:
            episode = episodes[ref[:2]]
            offsets = self._offsets if self._cameras and episode.sampler.cameras else ()
            frames = episode.stored_frames(ref.sample, offsets)
            frames_of_refs.append(frames)
            for part in episode.tar.ranges(frames.values()):
                if episode.tar.copy is None:
                    remote.append(part)
                else:
                    contents[part] = episode.tar.read(part.place)
        downloads = read_byte_ranges([part.place for part in remote], MAX_REQUESTS)
        contents.update(zip(remote, downloads, strict=True))

        samples: list[WindowSample | DroppedSample] = []
        for ref, frames in zip(refs, frames_of_refs, strict=True):
            tar = episodes[ref[:2]].tar
            sampler = episodes[ref[:2]].sampler
            key = sampler.key(ref.sample)
            try:
                images: dict[int, Mapping[str, bytes]] = {}
                for part in tar.ranges(frames.values()):
                    images |= part.frames(contents[part])
            except ValueError as error:
                message = f"{tar.path}: an image of sample {key} is broken: {error}"
                samples.append(DroppedSample(BROKEN_SAMPLE, key, message))
                continue
            members: dict[str, bytes] = {}  # by their suffixes in shards
            for camera in self._cameras:
                stored_suffix = image_suffix(camera, 0).lower()
                for offset, frame in frames.items():
                    if stored_suffix in images[frame]:
                        suffix = image_suffix(camera, offset).lower()
                        members[suffix] = images[frame][stored_suffix]
            samples.append(WindowSample(key, members, ref.sample, sampler))
        return samples

    def _open_block(self, shard: ShardInfo) -> _OpenEpisode:
        """Opens an episode; the run ends if it changed."""
        tar = FramesTar(shard.location)
        if is_remote(tar.path) and self._cache.stores(tar.version.size):
            tar = FramesTar(tar.path, self._cache.files.open_copy(tar.version))
        sampler = self._windows.sampler(tar, tar.episode_id)
        if len(sampler) != shard.size:
            raise tar.error(f"has {counted(len(sampler), 'window')}, expected {shard.size}")
        return _OpenEpisode(tar, sampler)
