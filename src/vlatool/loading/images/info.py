"""What the image shards of a run hold: how many samples each, and how large it is."""

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

_AT_ONCE = 32


@dataclass(frozen=True)
class ImagesInfo:
    """Facts of all data sets of a run together.

    Attributes:
        datasets: Their shards, in the order of the config.
        shard_bytes: Length of each shard, data set by data set.
    """

    datasets: tuple[DataSet, ...]
    shard_bytes: tuple[tuple[int, ...], ...]

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Names, counts and lengths of the shards, wherever they lie."""
        found: dict[str, str] = {}
        for number, (one, sizes) in enumerate(zip(self.datasets, self.shard_bytes, strict=True), 1):
            shards = zip(one.shards, sizes, strict=True)
            rows = [(block.location.name, block.size, size) for block, size in shards]
            found[f"data set {number}"] = f"{one.size} samples, {digest_of(rows)}"
        return found

    @property
    def num_samples(self) -> int:
        """Samples in all data sets."""
        return sum(one.size for one in self.datasets)


def load_info(config: ImageDataConfig, reporter: Reporter = NULL) -> ImagesInfo:
    """Finds the shards and counts their samples.

    Shards carry no counts: one without an index beside it is scanned once, and the index kept in
    the cache folder; a local one costs some 30 microseconds a sample, a remote one is streamed.
    The reporter hears how many are scanned, if any.

    Raises:
        DataError: No shards are given or found, or one is missing or broken.
        StorageError: The storage failed for good, or the cache cannot be written.
    """
    if not config.shards:
        raise DataError(
            "no image shards are given",
            hint="give them with --data or data.shards",
            code="data.no_dataset",
        )
    cache = file_cache(config.dataset_cache)
    found = [_dataset(text, config, cache, reporter) for text in config.shards]
    return ImagesInfo(tuple(one for one, _ in found), tuple(sizes for _, sizes in found))


def _dataset(
    text: str, config: ImageDataConfig, cache: FileCache, reporter: Reporter
) -> tuple[DataSet, tuple[int, ...]]:
    paths = find_shards(text, config.split)
    _check_listed_once(text, paths)
    each = partial(in_parallel, at_once=_AT_ONCE) if any(map(is_remote, paths)) else map
    looked = list(each(partial(_version_and_index, cache), paths))
    fresh = [version for version, index in looked if index is None]
    counts = {version.path: len(index.offsets) for version, index in looked if index is not None}
    if fresh:
        with reporter.progress(f"first scan of {text}", len(fresh), "shards") as bar:
            for version, index in zip(fresh, each(partial(_scan, cache), fresh), strict=True):
                counts[version.path] = len(index.offsets)
                bar.advance()
    blocks = tuple(ShardInfo(path, counts[path]) for path in paths)
    return DataSet(text, blocks), tuple(version.size for version, _ in looked)


def _version_and_index(cache: FileCache, path: Path) -> tuple[FileVersion, ShardIndex | None]:
    """A shard as it is now, and its index where there is one."""
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
            f"{path}: is missing",
            hint="copy it again, or take it out of the list or pattern that names it",
            code="data.missing_shard",
            details={"shard": str(path)},
        ) from None


def _check_listed_once(text: str, paths: Sequence[Path]) -> None:
    """A shard that is listed twice would count twice."""
    if len(set(paths)) < len(paths):
        seen: set[Path] = set()
        twice = next(path for path in paths if path in seen or seen.add(path))
        raise DataError(
            f"{text}: names {twice} twice",
            hint="take it out of the list once; to weight data sets, use data.dataset_weighting",
            code="data.duplicate_shard",
            details={"shard": str(twice)},
        )
