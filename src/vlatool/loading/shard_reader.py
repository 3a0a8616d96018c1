"""Open shards and the byte ranges of their samples.

`BlockReader` keeps blocks open, and reads samples ahead. `ShardReader` reads samples by the index
of their shard: from an open file, from a copy in the local cache, or, if a remote shard is not
cached, by one request for each sample. `ShardCache` decides which remote shards are copied as a
whole.

Source: reference/order 11.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from vlatool.errors import DataError, StorageError
from vlatool.events import counted
from vlatool.loading import base
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.media import tar
from vlatool.media.tar_sample import StoredSample, read_members
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder
from vlatool.storage.uri import is_remote, local_path

# Drop reason: the bytes in the range of the sample are not a sample.
BROKEN_SAMPLE = "broken_sample"

# Far below the usual limit of 1024 open files.
_MAX_OPEN_FILES = 192
# Memory of the blocks in use, per loader worker: more than the lanes of a run use.
_MAX_BYTES = 2**28
# Default size in bytes of the cache, and of the data of one run that are cached as whole shards.
_DEFAULT_CACHE_BYTES = 16_000_000_000
_DEFAULT_RUN_BYTES = 4_000_000_000
# Half of the connections of a process: the samples of a micro-batch are requested together.
MAX_REQUESTS = 32
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


class Block(Protocol):
    """A file of samples that is in use."""

    @property
    def file(self) -> IO[bytes] | None:
        """The open file, or the open copy of a remote one; None if each read opens it."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        ...


_Block = TypeVar("_Block", bound=Block)
_Key = tuple[int, int]  # data set and shard


class BlockReader(Generic[_Block]):
    """Reads samples from blocks: shards, or episodes. The blocks used last stay open.

    Thread-safe. A block closes its file with its last reference.
    """

    def __init__(self, datasets: Sequence[base.DataSet], cache: ShardCache) -> None:
        self._datasets = tuple(datasets)
        # All files of a data set are in one place.
        self._is_remote = [
            any(is_remote(shard.location) for shard in islice(dataset.shards, 1))
            for dataset in datasets
        ]
        self._cache = cache
        self._open: OrderedDict[_Key, _Block] = OrderedDict()
        self._bytes = 0
        self._files = 0
        self._lock = threading.Lock()
        self._prefetched: dict[tuple[base.SampleRef, ...], Future[list[Any]]] = {}

    def prefetch(self, refs: Sequence[base.SampleRef]) -> None:
        """Starts to read the samples of a later call `samples(refs)`, if data are remote."""
        if any(self._is_remote[ref[0]] for ref in refs):
            if len(self._prefetched) > _MAX_PREFETCHED:  # they were never read
                self._prefetched.clear()
            self._prefetched[tuple(refs)] = in_background(partial(self._read, refs))

    def samples(self, refs: Sequence[base.SampleRef]) -> list[Any]:
        """Returns the samples before they are decoded; a `DroppedSample` if bytes are broken."""
        prefetched = self._prefetched.pop(tuple(refs), None)
        return self._read(refs) if prefetched is None else prefetched.result()

    def _read(self, refs: Sequence[base.SampleRef]) -> list[Any]:
        raise NotImplementedError

    def _open_block(self, shard: base.ShardInfo) -> _Block:
        raise NotImplementedError

    def _shard(self, key: _Key) -> base.ShardInfo:
        return self._datasets[key[0]].shards[key[1]]

    def _blocks(self, refs: Sequence[base.SampleRef]) -> Mapping[_Key, _Block]:
        """Returns the blocks of some samples; remote ones are opened concurrently."""
        shards = {ref[:2]: self._shard(ref[:2]) for ref in refs}
        with self._lock:
            closed = [key for key in shards if key not in self._open]
            apply = map
            if any(is_remote(shards[key].location) for key in closed):
                apply = partial(in_parallel, max_concurrent=MAX_REQUESTS)
            opened = apply(self._open_block, [shards[key] for key in closed])
            for key, block in zip(closed, opened, strict=True):
                self._open[key] = block
                self._bytes += block.num_bytes
                self._files += block.file is not None
            for key in shards:
                self._open.move_to_end(key)
            blocks = {key: self._open[key] for key in shards}
            while len(self._open) > len(shards) and (
                self._bytes > _MAX_BYTES or self._files > _MAX_OPEN_FILES
            ):
                _, oldest = self._open.popitem(last=False)
                self._bytes -= oldest.num_bytes
                self._files -= oldest.file is not None
        return blocks


class _OpenShard:
    """A shard with its index; `file` is None if each sample is downloaded on its own."""

    def __init__(self, path: Path, index: tar.ShardIndex, file: IO[bytes] | None) -> None:
        self.path = path
        self.index = index
        self.file = file
        self.num_bytes = index.offsets.nbytes + index.lengths.nbytes
        if file is not None:
            weakref.finalize(self, file.close)

    def byte_range(self, number: int) -> ByteRange:
        start = int(self.index.offsets[number])
        return ByteRange(self.path, start, start + int(self.index.lengths[number]))


class ShardReader(BlockReader[_OpenShard]):
    """Reads samples from shards; pickled without open files."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardReader, (self._datasets, self._cache))

    def _read(self, refs: Sequence[base.SampleRef]) -> list[StoredSample | base.DroppedSample]:
        """Returns the samples; remote ones are downloaded concurrently."""
        shards = self._blocks(refs)
        ranges = [shards[ref[:2]].byte_range(ref.sample) for ref in refs]
        contents: dict[ByteRange, bytes] = {}
        remote: list[ByteRange] = []
        for ref, part in zip(refs, ranges, strict=True):
            file = shards[ref[:2]].file
            if file is None:
                remote.append(part)
                continue
            with shard_errors(part.path):
                contents[part] = os.pread(file.fileno(), part.stop - part.start, part.start)
        if remote:
            with shard_errors(remote[0].path):
                contents.update(zip(remote, read_byte_ranges(remote, MAX_REQUESTS), strict=True))

        samples: list[StoredSample | base.DroppedSample] = []
        for ref, part in zip(refs, ranges, strict=True):
            data = contents[part]
            if len(data) != part.stop - part.start:
                raise DataError(
                    f"{part.path}: sample {ref.sample} has {len(data)} bytes, its index records "
                    f"{part.stop - part.start}",
                    hint="preprocess or copy the data again",
                    code="data.broken",
                    details={"shard": str(part.path)},
                )
            try:
                samples.append(StoredSample(*read_members(data)))
            except ValueError as error:
                message = f"{part.path}: sample {ref.sample} is broken: {error}"
                name = f"{part.path.name}:{ref.sample}"
                samples.append(base.DroppedSample(BROKEN_SAMPLE, name, message))
        return samples

    def _open_block(self, shard: base.ShardInfo) -> _OpenShard:
        path = shard.location
        with shard_errors(path):
            if is_remote(path):
                version = FileVersion.of(path)
                file = None
                if self._cache.stores(version.size):
                    file = self._cache.files.open_copy(version)
                opened = _OpenShard(path, tar.shard_index(self._cache.files, version, file), file)
            else:
                file = path.open("rb", buffering=0)
                index = tar.cached_index(self._cache.files, FileVersion.of(path))
                if index is None:
                    index = tar.index_by_headers(path)  # takes milliseconds: not worth caching
                opened = _OpenShard(path, index, file)
        count = len(opened.index.offsets)
        if count != shard.size:
            raise DataError(
                f"{path}: has {counted(count, 'sample')}, expected {shard.size}",
                hint="the shard changed or belongs to another manifest: create it or copy it again",
                code="data.mismatch",
                details={"shard": str(path), "samples": count, "expected": shard.size},
            )
        return opened


@contextmanager
def shard_errors(path: Path) -> Generator[None]:
    """Makes errors that name a shard of the errors of reading it."""
    try:
        yield
    except FileNotFoundError as error:
        shard = str(error.filename or path)
        raise DataError(
            f"{shard}: shard is missing, but its manifest or list names it",
            hint="copy it or preprocess again, or remove it from the list that names it",
            code="data.missing",
            details={"shard": shard},
        ) from None
    except OSError as error:
        raise StorageError.at(
            path,
            f"cannot be read: {error.strerror or error}",
            hint="check the disk, then run the same command again",
            code="storage.unreadable",
        ) from error
