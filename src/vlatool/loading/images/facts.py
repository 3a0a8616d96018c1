"""What the image shards of a run hold: how many samples each, and how large it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlatool.artifacts.shard_lists import find_shards
from vlatool.errors import DataError
from vlatool.jobs.inputs import digest_of
from vlatool.loading.base import Block, DataSet
from vlatool.loading.blocks import file_cache, shard_index
from vlatool.loading.images.config import ImageDataConfig
from vlatool.storage.background import in_parallel
from vlatool.storage.cache import FileCache, FileVersion
from vlatool.storage.uri import is_remote

_AT_ONCE = 32


@dataclass(frozen=True)
class ImageFacts:
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
            shards = zip(one.blocks, sizes, strict=True)
            rows = [(block.location.name, block.size, size) for block, size in shards]
            found[f"data set {number}"] = f"{one.size} samples, {digest_of(rows)}"
        return found

    @property
    def num_samples(self) -> int:
        """Samples in all data sets."""
        return sum(one.size for one in self.datasets)


def read_facts(config: ImageDataConfig) -> ImageFacts:
    """Finds the shards and counts their samples.

    Shards carry no counts: one without an index beside it is scanned once, and the index kept in
    the cache folder; a local one costs some 30 microseconds a sample, a remote one is streamed.

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
    found = [_dataset(text, config, cache) for text in config.shards]
    return ImageFacts(tuple(one for one, _ in found), tuple(sizes for _, sizes in found))


def _dataset(
    text: str, config: ImageDataConfig, cache: FileCache
) -> tuple[DataSet, tuple[int, ...]]:
    paths = find_shards(text, config.split)
    _refuse_twice(text, paths)
    look = partial(_looked_at, cache)
    looked = in_parallel(look, paths, _AT_ONCE) if any(map(is_remote, paths)) else map(look, paths)
    blocks, sizes = zip(*looked, strict=True)
    return DataSet(text, blocks), sizes


def _looked_at(cache: FileCache, path: Path) -> tuple[Block, int]:
    try:
        version = FileVersion.of(path)
        index = shard_index(cache, version)
    except FileNotFoundError:
        raise DataError(
            f"{path}: is missing",
            hint="copy it again, or take it out of the list or pattern that names it",
            code="data.missing_shard",
            details={"shard": str(path)},
        ) from None
    return Block(path, len(index.offsets)), version.size


def _refuse_twice(text: str, paths: Sequence[Path]) -> None:
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
