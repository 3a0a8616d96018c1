"""Open shards and the byte ranges of their samples.

`ShardReader.members` reads samples by the index of their shard: from an open file, from a copy in
the local cache, or, if a remote shard is not cached, by one request for each sample. `ShardCache`
decides which remote shards are copied as a whole.

Source: reference/order 11.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
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
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.uri import is_remote, local_path

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
        section = config.dataset_cache
        files = file_cache(section)
        default_limit = files.limit
        if section.enabled is None and section.cache_size_gb is None:
            default_limit = _DEFAULT_RUN_BYTES
        order = SampleOrder(datasets, OrderOptions.of(config, seed=0))
        return cls(
            files=files,
            concurrent=order.shards_in_use(),
            num_shards=sum(len(dataset.shards) for dataset in datasets),
            enabled=section.enabled,
            default_limit=default_limit,
        )

    def stores(self, size: int) -> bool:
        """True if shards of `size` bytes are downloaded as a whole and cached."""
        if self.enabled is None:
            return self.default_limit is None or size * self.num_shards <= self.default_limit
        limit = self.files.limit
        return self.enabled and (limit is None or size * self.concurrent <= limit)


def file_cache(section: base.CacheConfig) -> FileCache:
    """Cache of copies and indexes of remote shards, as a section `data.dataset_cache` sets it."""
    folder = local_path(section.cache_dir) if section.cache_dir else default_cache_folder()
    if section.cache_size_gb is not None:
        return FileCache(folder, int(section.cache_size_gb * 1e9))
    return FileCache(folder, None if section.enabled else _DEFAULT_CACHE_BYTES)


@dataclass(frozen=True)
class _OpenShard:
    """A shard with its index; `file` is None if each sample is downloaded on its own."""

    path: Path
    index: tar.ShardIndex
    file: IO[bytes] | None

    @property
    def num_samples(self) -> int:
        return len(self.index.offsets)

    def byte_range(self, number: int) -> ByteRange:
        start = int(self.index.offsets[number])
        return ByteRange(self.path, start, start + int(self.index.lengths[number]))


_Key = tuple[int, int]  # data set and shard


class ShardReader:
    """LRU cache of open shards. Thread-safe; pickled without open files."""

    def __init__(self, datasets: Sequence[base.DataSet], cache: ShardCache) -> None:
        self._datasets = tuple(datasets)
        self._cache = cache
        self._open: OrderedDict[_Key, _OpenShard] = OrderedDict()
        # Indexes of closed files.
        self._indexes: OrderedDict[_Key, tar.ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        self._prefetched: dict[tuple[base.SampleRef, ...], Future[list[bytes]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardReader, (self._datasets, self._cache))

    def members(self, refs: Sequence[base.SampleRef]) -> list[Members | base.DroppedSample]:
        """Returns the members of each sample; a `DroppedSample` if its bytes are broken."""
        prefetched = self._prefetched.pop(tuple(refs), None)
        fragments = self._fragments(refs) if prefetched is None else prefetched.result()
        samples: list[Members | base.DroppedSample] = []
        for ref, data in zip(refs, fragments, strict=True):
            try:
                samples.append(read_members(data))
            except ValueError as error:
                path = self._datasets[ref.dataset].shards[ref.shard].location
                message = f"{path}: sample {ref.sample} is broken: {error}"
                name = f"{path.name}:{ref.sample}"
                samples.append(base.DroppedSample(BROKEN_SAMPLE, name, message))
        return samples

    def prefetch(self, refs: Sequence[base.SampleRef]) -> None:
        """Starts to download the samples of a later call `members(refs)`, if data are remote."""
        for dataset in self._datasets:
            if dataset.shards and is_remote(dataset.shards[0].location):
                if len(self._prefetched) > _MAX_PREFETCHED:  # they were never read
                    self._prefetched.clear()
                self._prefetched[tuple(refs)] = in_background(partial(self._fragments, refs))
                return

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
            self._close_oldest()
        try:
            contents = read_byte_ranges(remote.values(), _MAX_REQUESTS)
            fragments.update(zip(remote, contents, strict=True))
        except FileNotFoundError as error:
            raise _missing(str(error.filename)) from None

        for number, ref in enumerate(refs):
            shard = shards[ref[:2]]
            length = int(shard.index.lengths[ref.sample])
            if len(fragments[number]) != length:
                raise DataError(
                    f"{shard.path}: sample {ref.sample} has {len(fragments[number])} bytes, its "
                    f"index records {length}",
                    hint="preprocess or copy the data again",
                    code="data.broken",
                    details={"shard": str(shard.path)},
                )
        return [fragments[number] for number in range(len(refs))]

    def _opened(self, refs: Sequence[base.SampleRef]) -> Mapping[_Key, _OpenShard]:
        """Returns the shards of some samples; remote ones are opened concurrently."""
        shards = {ref[:2]: self._datasets[ref.dataset].shards[ref.shard] for ref in refs}
        closed = [key for key in shards if key not in self._open]

        def open_one(key: _Key) -> _OpenShard:
            return _open_shard(self._cache, shards[key], self._indexes.pop(key, None))

        if any(is_remote(shards[key].location) for key in closed):
            opened = in_parallel(open_one, closed, _MAX_REQUESTS)
        else:
            opened = map(open_one, closed)
        self._open.update(zip(closed, opened, strict=True))
        for key in shards:
            self._open.move_to_end(key)
        return {key: self._open[key] for key in shards}

    def _close_oldest(self) -> None:
        """Closes files beyond the limit, but keeps their indexes; drops indexes beyond theirs."""
        with_file = [key for key, shard in self._open.items() if shard.file is not None]
        for key in with_file[: max(0, len(with_file) - _MAX_OPEN_FILES)]:
            shard = self._open.pop(key)
            assert shard.file is not None
            shard.file.close()
            self._indexes[key] = shard.index
        indexed = sum(len(index.offsets) for index in self._indexes.values())
        while indexed > _MAX_INDEXED_SAMPLES:
            _, index = self._indexes.popitem(last=False)
            indexed -= len(index.offsets)

        if len(self._open) > len(with_file):  # remote shards without a copy: no file limits them
            indexed = sum(shard.num_samples for shard in self._open.values())
            while indexed > _MAX_INDEXED_SAMPLES:
                _, shard = self._open.popitem(last=False)
                if shard.file is not None:
                    shard.file.close()
                indexed -= shard.num_samples


def _open_shard(
    cache: ShardCache, shard: base.ShardInfo, index: tar.ShardIndex | None
) -> _OpenShard:
    """Opens a shard; `index`: its index, if it was read before."""
    path = shard.location
    try:
        if is_remote(path):
            version = FileVersion.of(path)
            file = cache.files.open_copy(version) if cache.stores(version.size) else None
            opened = _OpenShard(path, tar.shard_index(cache.files, version, file), file)
        else:
            file = path.open("rb", buffering=0)
            size = os.fstat(file.fileno()).st_size
            if index is None:
                index = tar.cached_index(cache.files, FileVersion.of(path))
            if index is None or index.shard_bytes != size:
                index = tar.index_by_headers(path)  # takes milliseconds: not worth caching
            opened = _OpenShard(path, index, file)
    except FileNotFoundError:
        raise _missing(str(path)) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if opened.num_samples != shard.size:
        raise DataError(
            f"{path}: has {counted(opened.num_samples, 'sample')}, expected {shard.size}",
            hint="the shard changed or belongs to another manifest: create it or copy it again",
            code="data.mismatch",
            details={"shard": str(path), "samples": opened.num_samples, "expected": shard.size},
        )
    return opened


def _read(file: IO[bytes], byte_range: ByteRange) -> bytes:
    try:
        return os.pread(file.fileno(), byte_range.stop - byte_range.start, byte_range.start)
    except OSError as error:
        raise _unreadable(byte_range.path, error) from error


def _missing(path: str) -> DataError:
    return DataError(
        f"{path}: shard is missing, but its manifest or list names it",
        hint="preprocess or copy the data again",
        code="data.missing",
        details={"shard": path},
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError.at(
        path,
        f"cannot be read: {error.strerror or error}",
        hint="check the disk, then run the same command again",
        code="storage.unreadable",
    )
