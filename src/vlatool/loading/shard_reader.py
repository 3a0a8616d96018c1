"""Shards that are open for reading, and the byte ranges of samples in them. Source: reference/order 11."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from vlatool.artifacts.fragment import Members, read_members
from vlatool.artifacts.shard import (
    INDEX_SUFFIX,
    ShardIndex,
    index_by_headers,
    index_path,
    parse_index,
    read_index,
)
from vlatool.errors import DataError, StorageError
from vlatool.loading.base import DataSet, DroppedSample, SampleRef, ShardInfo
from vlatool.loading.config import CacheConfig, LoadingConfig
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.uri import is_remote, local_path

# Why a sample is dropped whose bytes are not those of one.
BROKEN_SAMPLE = "broken_sample"

# Far below the usual limit of 1024 open files.
_MOST_OPEN = 192
# Samples whose places are remembered, at 16 bytes each: more than the lanes of a run touch.
_MOST_KNOWN = 4_000_000
# Bytes that are kept without being asked: of all data, and of those of one run.
_MOST_UNASKED = 16_000_000_000
_LARGEST_UNASKED = 4_000_000_000
# Half of the connections of a process: the samples of a micro-batch come together.
_REQUESTS_AT_ONCE = 32
_MOST_COMING = 128


@dataclass(frozen=True)
class ShardCache:
    """Where what is remote is kept.

    Attributes:
        files: The folder.
        in_use: Blocks that are read at the same time; whole ones are kept where all of these fit.
        blocks: How many there are.
        enabled: Whether whole blocks are kept at all; None where all of them are few. What is found
            out about them is always kept.
        unasked: Bytes up to which they are few; None for any.
    """

    files: FileCache
    concurrent: int
    num_shards: int
    enabled: bool | None = None
    default_limit: int | None = None

    @classmethod
    def of(cls, config: LoadingConfig, datasets: Sequence[DataSet]) -> "ShardCache":
        """As a data section says."""
        order = SampleOrder(datasets, OrderOptions.of(config, seed=0))
        blocks = sum(len(dataset.shards) for dataset in datasets)
        section, files = config.dataset_cache, file_cache(config.dataset_cache)
        is_free = section.enabled is None and section.cache_size_gb is None
        unasked = _LARGEST_UNASKED if is_free else files.limit
        return cls(files, order.shards_in_use(), blocks, section.enabled, unasked)

    def stores(self, size: int) -> bool:
        """Whether blocks of so many bytes are fetched whole."""
        limit = self.files.limit
        if self.enabled is None:
            return self.default_limit is None or size * self.num_shards <= self.default_limit
        return self.enabled and (limit is None or size * self.concurrent <= limit)


def file_cache(section: CacheConfig) -> FileCache:
    """The folder in which a data section has copies kept, and what is found out about shards."""
    folder = local_path(section.cache_dir) if section.cache_dir else default_cache_folder()
    most = None if section.enabled else _MOST_UNASKED
    limit = most if section.cache_size_gb is None else int(section.cache_size_gb * 1e9)
    return FileCache(folder, limit)


def cached_index(cache: FileCache, version: FileVersion) -> ShardIndex | None:
    """The index beside a shard, or the one that was kept; None where it was never scanned.

    An index of a shard of another length is none of this one's.
    """
    index = read_index(index_path(version.path))
    if index is None or index.shard_bytes != version.size:
        kept = cache.get(version, INDEX_SUFFIX)
        index = None if kept is None else parse_index(kept)
    return None if index is None or index.shard_bytes != version.size else index


def shard_index(
    cache: FileCache, version: FileVersion, copy: IO[bytes] | None = None
) -> ShardIndex:
    """The index of a shard: the one beside it, else one that is made once and kept.

    Args:
        cache: Where it is kept.
        version: The shard; one of another length than the index beside it says has none.
        copy: The same shard, open; read instead.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It cannot be walked to its end.
        StorageError: The shard is remote and the cache cannot be written.
    """
    index = read_index(index_path(version.path))
    if index is not None and index.shard_bytes == version.size:
        return index
    try:
        content = cache.get_or_create(
            version, INDEX_SUFFIX, lambda: index_by_headers(version.path, copy).content()
        )
    except StorageError:
        if is_remote(version.path):
            raise
        return index_by_headers(version.path, copy)  # a scan costs milliseconds
    index = parse_index(content)
    if index is None or index.shard_bytes != version.size:
        raise DataError(
            f"{cache.folder}: what is kept there of {version.path} cannot be read",
            hint="empty that folder, then run the same command again",
            code="data.broken_cache",
            details={"path": str(cache.folder)},
        )
    return index


@dataclass(frozen=True)
class _OpenShard:
    """A shard that was looked at; `file` is None where each sample is a request."""

    path: Path
    index: ShardIndex
    file: IO[bytes] | None

    def byte_range(self, number: int) -> ByteRange:
        start = int(self.index.offsets[number])
        return ByteRange(self.path, start, start + int(self.index.lengths[number]))


class ShardReader:
    """The shards that were read last; pickled without open files. Several threads may read.

    Args:
        datasets: What places refer to.
        cache: Of what is remote.
    """

    def __init__(self, datasets: Sequence[DataSet], cache: ShardCache) -> None:
        self._datasets = tuple(datasets)
        self._cache = cache
        self._open: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()
        # Of files that were closed.
        self._known: OrderedDict[tuple[int, int], ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        self._coming: dict[tuple[SampleRef, ...], Future[list[bytes]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardReader, (self._datasets, self._cache))

    def members(self, refs: Sequence[SampleRef]) -> list[Members | DroppedSample]:
        """The members of each sample, a `Dropped` in place of one whose bytes are damaged.

        Raises:
            StorageError: The storage failed for good.
            DataError: A shard is missing, broken, or holds another count than is expected.
        """
        coming = self._coming.pop(tuple(refs), None)
        fragments = self._fragments(refs) if coming is None else coming.result()
        return [self._parsed(*one) for one in zip(refs, fragments, strict=True)]

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Begins to fetch remote ones, which `members` is going to be asked for together."""
        if self._have_latency:
            if len(self._coming) > _MOST_COMING:  # nobody came for them
                self._coming.clear()
            self._coming[tuple(refs)] = in_background(partial(self._fragments, refs))

    def _parsed(self, place: SampleRef, data: bytes) -> Members | DroppedSample:
        try:
            return read_members(data)
        except ValueError as error:
            path = self._datasets[place.dataset].shards[place.shard].location
            told = f"{path}: sample {place.sample} of it is damaged: {error}"
            return DroppedSample(BROKEN_SAMPLE, f"{path.name}:{place.sample}", told)

    def _fragments(self, places: Sequence[SampleRef]) -> list[bytes]:
        """The bytes of each sample; remote ones come together."""
        found: dict[int, bytes] = {}
        parts: dict[int, ByteRange] = {}
        with self._lock:
            blocks = self._opened(places)
            for number, place in enumerate(places):
                block = blocks[place[:2]]
                part = block.byte_range(place.sample)
                if block.file is None:
                    parts[number] = part
                else:
                    found[number] = _read(block.file, part)
            self._trim()
        try:
            found.update(
                zip(parts, read_byte_ranges(parts.values(), _REQUESTS_AT_ONCE), strict=True)
            )
        except FileNotFoundError as error:
            raise _missing(error) from None
        return [
            _whole(found[number], blocks[place[:2]], place) for number, place in enumerate(places)
        ]

    @property
    def _have_latency(self) -> bool:
        """Whether some are remote, so that it pays to ask for samples before they are needed."""
        blocks = (block for one in self._datasets for block in one.shards[:1])
        return any(is_remote(block.location) for block in blocks)

    def _opened(self, places: Sequence[SampleRef]) -> Mapping[tuple[int, int], _OpenShard]:
        """The shards of some places; remote ones are looked at together."""
        wanted = {place[:2]: self._datasets[place.dataset].shards[place.shard] for place in places}
        fresh = {key: block for key, block in wanted.items() if key not in self._open}
        known = [self._known.pop(key, None) for key in fresh]
        opened = self._open_all(list(zip(fresh.values(), known, strict=True)))
        self._open.update(zip(fresh, opened, strict=True))
        for key in wanted:
            self._open.move_to_end(key)
        return {key: self._open[key] for key in wanted}

    def _open_all(
        self, blocks: Sequence[tuple[ShardInfo, ShardIndex | None]]
    ) -> Iterator[_OpenShard]:
        work = partial(_open_shard, self._cache)
        if any(is_remote(block.location) for block, _ in blocks):
            return in_parallel(work, blocks, _REQUESTS_AT_ONCE)
        return map(work, blocks)

    def _trim(self) -> None:
        """Closes the files that were not read for the longest time; forgets what is too much."""
        files = [key for key, block in self._open.items() if block.file is not None]
        for key in files[: max(0, len(files) - _MOST_OPEN)]:
            block = self._open.pop(key)
            assert block.file is not None
            block.file.close()
            self._known[key] = block.index
        _forget(self._known, [len(index.offsets) for index in self._known.values()])
        if len(self._open) > len(files):
            _forget(self._open, [len(block.index.offsets) for block in self._open.values()])


def _forget(known: OrderedDict[tuple[int, int], Any], sizes: Sequence[int]) -> None:
    """Takes out the oldest until few enough samples are left."""
    left = sum(sizes)
    for size in sizes:
        if left <= _MOST_KNOWN:
            return
        _, gone = known.popitem(last=False)
        if isinstance(gone, _OpenShard) and gone.file is not None:
            gone.file.close()
        left -= size


def _open_shard(cache: ShardCache, given: tuple[ShardInfo, ShardIndex | None]) -> _OpenShard:
    """A shard with its index, whose count is that of the manifest."""
    block, known = given
    try:
        if is_remote(block.location):
            opened = _remote(cache, block.location)
        else:
            opened = _local(cache, block.location, known)
    except FileNotFoundError as error:
        raise _missing(error, block.location) from None
    except OSError as error:
        raise _unreadable(block.location, error) from error
    count = len(opened.index.offsets)
    if count != block.size:
        raise DataError(
            f"{block.location}: holds {count} samples, {block.size} are expected of it",
            hint="it changed, or belongs to other data than its manifest; make or copy it again",
            code="data.shard_count",
            details={"shard": str(block.location), "samples": count, "expected": block.size},
        )
    return opened


def _local(cache: ShardCache, path: Path, known: ShardIndex | None) -> _OpenShard:
    file = path.open("rb", buffering=0)
    size = os.fstat(file.fileno()).st_size
    index = cached_index(cache.files, FileVersion.of(path)) if known is None else known
    if index is None or index.shard_bytes != size:
        index = index_by_headers(path)  # milliseconds: not worth keeping
    return _OpenShard(path, index, file)


def _remote(cache: ShardCache, path: Path) -> _OpenShard:
    version = FileVersion.of(path)
    file = cache.files.open_copy(version) if cache.stores(version.size) else None
    return _OpenShard(path, shard_index(cache.files, version, file), file)


def _read(file: IO[bytes], part: ByteRange) -> bytes:
    try:
        return os.pread(file.fileno(), part.stop - part.start, part.start)
    except OSError as error:
        raise _unreadable(part.path, error) from error


def _whole(data: bytes, block: _OpenShard, place: SampleRef) -> bytes:
    length = int(block.index.lengths[place.sample])
    if len(data) != length:
        raise DataError(
            f"{block.path}: sample {place.sample} has {len(data)} bytes, the index says {length}",
            hint="preprocess or copy the data again",
            code="data.broken_shard",
            details={"shard": str(block.path)},
        )
    return data


def _missing(error: FileNotFoundError, path: Path | None = None) -> DataError:
    return DataError(
        f"{path or error.filename}: is missing; it is listed",
        hint="preprocess or copy the data again",
        code="data.missing_shard",
        details={"shard": str(path or error.filename)},
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot be read: {error.strerror or error}",
        hint="check the disk, then run the same command again",
        code="storage.read",
        details={"path": str(path)},
    )
