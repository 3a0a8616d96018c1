"""Open shards and the byte ranges of their samples; look-up of the frames that a user names.

Source: reference/order 11.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from vlatool.errors import DataError, StorageError
from vlatool.events import counted
from vlatool.formats.media import tar
from vlatool.formats.media.tar_sample import Members, read_members
from vlatool.loading import base
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.plugins import did_you_mean
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.uri import is_remote, local_path

_DIGITS = 18  # more are no number of an episode


def episode_named(episodes: Mapping[int, str], text: str) -> str:
    """Id of the episode that a text names: its id, or its number."""
    if text in episodes.values():
        return text
    number = int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else -1
    if number in episodes:
        return episodes[number]
    raise DataError(
        f"there is no episode {text!r} among {counted(len(episodes), 'episode')}",
        hint=_known(episodes, text),
        code="data.unknown_field",
        details={"episode": text, "episodes": len(episodes)},
    )


def _known(episodes: Mapping[int, str], text: str) -> str:
    if text.isdigit() or not text:
        low = min(episodes, default=0)
        high = max(episodes, default=0)
        return f"give a number from {low} to {high}, or the id of an episode"
    return did_you_mean(text, list(episodes.values()))


def check_frame(frame: int, frames: range | Mapping[int, int], episode: str) -> None:
    if frame not in frames:
        low = min(frames)
        high = max(frames)
        inside = low < frame < high
        raise DataError(
            f"{episode}: there is no frame {frame}; "
            + (f"near it: {_near(frame, frames)}" if inside else f"frames are {low} to {high}"),
            hint="give one of its frames; preprocessed data have the frames of their windows only",
            code="data.unknown_field",
            details={"episode": episode, "frame": frame},
        )


def _near(frame: int, frames: range | Mapping[int, int]) -> str:
    low = max(known for known in frames if known < frame)
    high = min(known for known in frames if known > frame)
    return f"{low}, {high}"


# Drop reason: the bytes in the range of the sample are not a sample.
BROKEN_SAMPLE = "broken_sample"

# Far below the usual limit of 1024 open files.
_MAX_OPEN_FILES = 192
# Number of byte ranges that stay in memory, 16 bytes per sample: more than the lanes of a run use.
_MAX_INDEXED_SAMPLES = 4_000_000
# Default size in bytes of the cache, and of the data of one run that are cached as whole shards.
_DEFAULT_CACHE_BYTES = 16_000_000_000
_DEFAULT_RUN_BYTES = 4_000_000_000
# Half of the connections of a process: the samples of a micro-batch are requested together.
_MAX_REQUESTS = 32
_MAX_PREFETCHED = 128


@dataclass(frozen=True)
class ShardCache:
    """Local cache of remote shards. Their indexes are always cached."""

    files: FileCache  # cache folder
    # number of shards that are read at the same time. If `enabled` is True, whole shards are cached
    # only if these fit into the folder
    concurrent: int
    num_shards: int  # number of shards of the run
    # cache whole shards; None: only if all of them fit into `default_limit`
    enabled: bool | None = None
    # largest size in bytes of all shards for `enabled` None; None: no limit
    default_limit: int | None = None

    @classmethod
    def of(cls, config: base.LoadingConfig, datasets: Sequence[base.DataSet]) -> "ShardCache":
        """Cache of a section `data`."""
        order = SampleOrder(datasets, OrderOptions.of(config, seed=0))
        num_shards = sum(len(dataset.shards) for dataset in datasets)
        section = config.dataset_cache
        files = file_cache(config.dataset_cache)
        is_default = section.enabled is None and section.cache_size_gb is None
        limit = _DEFAULT_RUN_BYTES if is_default else files.limit
        return cls(files, order.shards_in_use(), num_shards, section.enabled, limit)

    def stores(self, size: int) -> bool:
        """True if shards of `size` bytes are downloaded as a whole and cached."""
        limit = self.files.limit
        if self.enabled is None:
            return self.default_limit is None or size * self.num_shards <= self.default_limit
        return self.enabled and (limit is None or size * self.concurrent <= limit)


def file_cache(section: base.CacheConfig) -> FileCache:
    """Cache of copies and indexes of remote shards, as a section `data.dataset_cache` sets it."""
    folder = local_path(section.cache_dir) if section.cache_dir else default_cache_folder()
    default = None if section.enabled else _DEFAULT_CACHE_BYTES
    limit = default if section.cache_size_gb is None else int(section.cache_size_gb * 1e9)
    return FileCache(folder, limit)


@dataclass(frozen=True)
class _OpenShard:
    """A shard with its index; `file` is None if each sample is downloaded on its own."""

    path: Path
    index: tar.ShardIndex
    file: IO[bytes] | None

    def byte_range(self, number: int) -> ByteRange:
        start = int(self.index.offsets[number])
        return ByteRange(self.path, start, start + int(self.index.lengths[number]))


class ShardReader:
    """LRU cache of open shards. Thread-safe; pickled without open files."""

    def __init__(self, datasets: Sequence[base.DataSet], cache: ShardCache) -> None:
        self._datasets = tuple(datasets)
        self._cache = cache
        self._open: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()
        # Indexes of closed files.
        self._indexes: OrderedDict[tuple[int, int], tar.ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        self._prefetched: dict[tuple[base.SampleRef, ...], Future[list[bytes]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardReader, (self._datasets, self._cache))

    def members(self, refs: Sequence[base.SampleRef]) -> list[Members | base.DroppedSample]:
        """Returns the members of each sample; a `DroppedSample` if its bytes are broken."""
        prefetched = self._prefetched.pop(tuple(refs), None)
        fragments = self._fragments(refs) if prefetched is None else prefetched.result()
        return [self._parsed(ref, data) for ref, data in zip(refs, fragments, strict=True)]

    def prefetch(self, refs: Sequence[base.SampleRef]) -> None:
        """Starts to download the samples of a later call `members(refs)`, if data are remote."""
        if self._is_remote:
            if len(self._prefetched) > _MAX_PREFETCHED:  # they were never read
                self._prefetched.clear()
            self._prefetched[tuple(refs)] = in_background(partial(self._fragments, refs))

    def _parsed(self, ref: base.SampleRef, data: bytes) -> Members | base.DroppedSample:
        try:
            return read_members(data)
        except ValueError as error:
            path = self._datasets[ref.dataset].shards[ref.shard].location
            message = f"{path}: sample {ref.sample} is broken: {error}"
            return base.DroppedSample(BROKEN_SAMPLE, f"{path.name}:{ref.sample}", message)

    def _fragments(self, refs: Sequence[base.SampleRef]) -> list[bytes]:
        """Returns the bytes of each sample; remote ones are downloaded concurrently."""
        fragments: dict[int, bytes] = {}
        remote: dict[int, ByteRange] = {}
        with self._lock:
            shards = self._opened(refs)
            for number, ref in enumerate(refs):
                shard = shards[ref[:2]]
                byte_range = shard.byte_range(ref.sample)
                if shard.file is None:
                    remote[number] = byte_range
                else:
                    fragments[number] = _read(shard.file, byte_range)
            files = [key for key, shard in self._open.items() if shard.file is not None]
            for key in files[: max(0, len(files) - _MAX_OPEN_FILES)]:
                shard = self._open.pop(key)
                assert shard.file is not None
                shard.file.close()
                self._indexes[key] = shard.index
            _drop_oldest(self._indexes, [len(index.offsets) for index in self._indexes.values()])
            if len(self._open) > len(files):
                _drop_oldest(
                    self._open, [len(shard.index.offsets) for shard in self._open.values()]
                )
        try:
            contents = read_byte_ranges(remote.values(), _MAX_REQUESTS)
            fragments.update(zip(remote, contents, strict=True))
        except FileNotFoundError as error:
            raise _missing(error) from None
        return [
            _check_length(fragments[number], shards[ref[:2]], ref)
            for number, ref in enumerate(refs)
        ]

    @property
    def _is_remote(self) -> bool:
        firsts = (shard for dataset in self._datasets for shard in dataset.shards[:1])
        return any(is_remote(shard.location) for shard in firsts)

    def _opened(self, refs: Sequence[base.SampleRef]) -> Mapping[tuple[int, int], _OpenShard]:
        """Returns the shards of some samples; remote ones are opened concurrently."""
        shards = {ref[:2]: self._datasets[ref.dataset].shards[ref.shard] for ref in refs}
        closed = {key: shard for key, shard in shards.items() if key not in self._open}
        indexes = [self._indexes.pop(key, None) for key in closed]
        opened = self._open_all(list(zip(closed.values(), indexes, strict=True)))
        self._open.update(zip(closed, opened, strict=True))
        for key in shards:
            self._open.move_to_end(key)
        return {key: self._open[key] for key in shards}

    def _open_all(
        self, shards: Sequence[tuple[base.ShardInfo, tar.ShardIndex | None]]
    ) -> Iterator[_OpenShard]:
        work = partial(_open_shard, self._cache)
        if any(is_remote(shard.location) for shard, _ in shards):
            return in_parallel(work, shards, _MAX_REQUESTS)
        return map(work, shards)


def _drop_oldest(entries: OrderedDict[tuple[int, int], Any], sizes: Sequence[int]) -> None:
    left = sum(sizes)
    for size in sizes:
        if left <= _MAX_INDEXED_SAMPLES:
            return
        _, removed = entries.popitem(last=False)
        if isinstance(removed, _OpenShard) and removed.file is not None:
            removed.file.close()
        left -= size


def _open_shard(
    cache: ShardCache, item: tuple[base.ShardInfo, tar.ShardIndex | None]
) -> _OpenShard:
    shard, index = item
    try:
        if is_remote(shard.location):
            opened = _remote(cache, shard.location)
        else:
            file = shard.location.open("rb", buffering=0)
            size = os.fstat(file.fileno()).st_size
            if index is None:
                index = tar.cached_index(cache.files, FileVersion.of(shard.location))
            if index is None or index.shard_bytes != size:
                index = tar.index_by_headers(
                    shard.location
                )  # takes milliseconds: not worth caching
            opened = _OpenShard(shard.location, index, file)
    except FileNotFoundError as error:
        raise _missing(error, shard.location) from None
    except OSError as error:
        raise _unreadable(shard.location, error) from error
    count = len(opened.index.offsets)
    if count != shard.size:
        raise DataError(
            f"{shard.location}: has {counted(count, 'sample')}, expected {shard.size}",
            hint="the shard changed or belongs to another manifest: create it or copy it again",
            code="data.mismatch",
            details={"shard": str(shard.location), "samples": count, "expected": shard.size},
        )
    return opened


def _remote(cache: ShardCache, path: Path) -> _OpenShard:
    version = FileVersion.of(path)
    file = cache.files.open_copy(version) if cache.stores(version.size) else None
    return _OpenShard(path, tar.shard_index(cache.files, version, file), file)


def _read(file: IO[bytes], byte_range: ByteRange) -> bytes:
    try:
        return os.pread(file.fileno(), byte_range.stop - byte_range.start, byte_range.start)
    except OSError as error:
        raise _unreadable(byte_range.path, error) from error


def _check_length(data: bytes, shard: _OpenShard, ref: base.SampleRef) -> bytes:
    length = int(shard.index.lengths[ref.sample])
    if len(data) != length:
        raise DataError(
            f"{shard.path}: sample {ref.sample} has {len(data)} bytes, its index records {length}",
            hint="preprocess or copy the data again",
            code="data.broken",
            details={"shard": str(shard.path)},
        )
    return data


def _missing(error: FileNotFoundError, path: Path | None = None) -> DataError:
    return DataError(
        f"{path or error.filename}: shard is missing, but its manifest or list names it",
        hint="preprocess or copy the data again",
        code="data.missing",
        details={"shard": str(path or error.filename)},
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError.at(
        path,
        f"cannot be read: {error.strerror or error}",
        hint="check the disk, then run the same command again",
        code="storage.unreadable",
    )
