"""Metadata of image shards: number of samples and size in bytes of each."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlatool.artifacts.shard import ShardIndex
from vlatool.artifacts.shard_lists import find_shards
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.jobs.inputs import digest_of
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.images.config import ImageDataConfig
from vlatool.loading.shard_reader import cached_index, file_cache, shard_index
from vlatool.storage.background import in_parallel
from vlatool.storage.cache import FileCache, FileVersion
from vlatool.storage.uri import is_remote

_MAX_REQUESTS = 32


@dataclass(frozen=True)
class ImagesInfo:
    """Metadata of all data sets of a run.

    Attributes:
        datasets: Data sets with their shards, in the order of the config.
        shard_bytes: Size in bytes of each shard of each data set.
    """

    datasets: tuple[DataSet, ...]
    shard_bytes: tuple[tuple[int, ...], ...]

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Digest of names, numbers of samples and sizes of the shards of each data set."""
        digests: dict[str, str] = {}
        pairs = zip(self.datasets, self.shard_bytes, strict=True)
        for number, (dataset, sizes) in enumerate(pairs, 1):
            shards = zip(dataset.shards, sizes, strict=True)
            rows = [(shard.location.name, shard.size, size) for shard, size in shards]
            digests[f"data set {number}"] = f"{dataset.size} samples, {digest_of(rows)}"
        return digests

    @property
    def num_samples(self) -> int:
        """Number of samples in all data sets."""
        return sum(dataset.size for dataset in self.datasets)


def load_info(config: ImageDataConfig, reporter: Reporter = NULL) -> ImagesInfo:
    """Finds the shards and counts their samples.

    The number of samples is that of the index of a shard. A shard without an index beside it is
    scanned once, and its index is saved in the cache folder. A scan takes about 30 microseconds per
    sample for a local shard; a remote shard is streamed. The reporter receives the progress of the
    scans.

    Raises:
        DataError: No shards are configured or found, or one is missing or broken.
        StorageError: The storage failed after all retries, or the cache cannot be written.
    """
    if not config.shards:
        raise DataError(
            "no image shards are configured",
            hint="set --data or data.shards",
            code="data.no_dataset",
        )
    cache = file_cache(config.dataset_cache)
    pairs = [_dataset(text, config, cache, reporter) for text in config.shards]
    return ImagesInfo(tuple(dataset for dataset, _ in pairs), tuple(sizes for _, sizes in pairs))


def _dataset(
    text: str, config: ImageDataConfig, cache: FileCache, reporter: Reporter
) -> tuple[DataSet, tuple[int, ...]]:
    paths = find_shards(text, config.split)
    _check_listed_once(text, paths)
    each = partial(in_parallel, max_concurrent=_MAX_REQUESTS) if any(map(is_remote, paths)) else map
    known = list(each(partial(_version_and_index, cache), paths))
    new = [version for version, index in known if index is None]
    counts = {version.path: len(index.offsets) for version, index in known if index is not None}
    if new:
        with reporter.progress(f"first scan of {text}", len(new), "shards") as bar:
            for version, index in zip(new, each(partial(_scan, cache), new), strict=True):
                counts[version.path] = len(index.offsets)
                bar.advance()
    shards = tuple(ShardInfo(path, counts[path]) for path in paths)
    return DataSet(text, shards), tuple(version.size for version, _ in known)


def _version_and_index(cache: FileCache, path: Path) -> tuple[FileVersion, ShardIndex | None]:
    """Current version of a shard, and its index if there is one."""
    with _missing_as_data_error(path):
        version = FileVersion.of(path)
        return version, cached_index(cache, version)


def _scan(cache: FileCache, version: FileVersion) -> ShardIndex:
    with _missing_as_data_error(version.path):
        return shard_index(cache, version)


@contextmanager
def _missing_as_data_error(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            f"{path}: shard is missing",
            hint="copy it again, or remove it from the list or pattern that names it",
            code="data.missing_shard",
            details={"shard": str(path)},
        ) from None


def _check_listed_once(text: str, paths: Sequence[Path]) -> None:
    """Raises an error if a shard is listed twice: its samples would be counted twice."""
    if len(set(paths)) < len(paths):
        seen: set[Path] = set()
        twice = next(path for path in paths if path in seen or seen.add(path))
        raise DataError(
            f"{text}: lists {twice} twice",
            hint="remove one entry; to weight data sets, use data.dataset_weighting",
            code="data.duplicate_shard",
            details={"shard": str(twice)},
        )
