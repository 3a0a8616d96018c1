"""Data kind of image shards: `load_info` counts their samples, `ImageReader` reads them.

Source: reference/order 11.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ValidationError

from vlatool.datasets.image_shards import layout as image_shards_layout
from vlatool.datasets.lbm.layout import (
    CONFIG_NAME,
    read_preprocessing_config,
    write_preprocessing_config,
)
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.jobs.job import digest_of
from vlatool.loading import base, shard_reader
from vlatool.loading.images.config import ImageDataConfig, ImagePreprocessing, prepare_image
from vlatool.media.images import NotRgbError, decode_plain
from vlatool.media.tar import ShardIndex, cached_index, shard_index
from vlatool.media.tar_sample import StoredSample
from vlatool.storage.background import in_parallel
from vlatool.storage.cache import FileCache, FileVersion
from vlatool.storage.uri import is_remote


@dataclass(frozen=True)
class ImagesInfo:
    """Metadata of all data sets of a run."""

    datasets: tuple[base.DataSet, ...]  # data sets with their shards, in the order of the config
    shard_bytes: tuple[tuple[int, ...], ...]  # size in bytes of each shard of each data set

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Digest of names, numbers of samples and sizes of the shards of each data set."""
        digests: dict[str, str] = {}
        for number, dataset in enumerate(self.datasets):
            rows: list[tuple[str, int, int]] = []
            for shard, size in zip(dataset.shards, self.shard_bytes[number], strict=True):
                rows.append((shard.location.name, shard.size, size))
            digests[f"data set {number + 1}"] = f"{dataset.size} samples, {digest_of(rows)}"
        return digests

    @property
    def num_samples(self) -> int:
        """Number of samples in all data sets."""
        return sum(dataset.size for dataset in self.datasets)


def load_info(config: ImageDataConfig, reporter: Reporter = NULL) -> ImagesInfo:
    """Finds the shards and counts their samples.

    The index of a shard has its number of samples. A shard without an index beside it is
    scanned once, and its index is saved in the cache folder. A scan takes about 30 microseconds per
    sample for a local shard; a remote shard is streamed. The reporter receives the progress of the
    scans.
    """
    if not config.shards:
        raise DataError(
            "there are no image shards to train on",
            hint="add --data with the output of `vlatool preprocess --sink image-shards`",
            code="data.no_source",
        )
    cache = shard_reader.file_cache(config.dataset_cache)
    datasets: list[base.DataSet] = []
    shard_bytes: list[tuple[int, ...]] = []
    for text in config.shards:
        dataset, sizes = _dataset(text, config, cache, reporter)
        datasets.append(dataset)
        shard_bytes.append(sizes)
    return ImagesInfo(tuple(datasets), tuple(shard_bytes))


def _dataset(
    text: str, config: ImageDataConfig, cache: FileCache, reporter: Reporter
) -> tuple[base.DataSet, tuple[int, ...]]:
    """The shards of a data set, and their sizes in bytes; remote ones are read concurrently."""
    paths = image_shards_layout.find_shards(text, config.split)
    if len({*paths}) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(
            f"{text}: lists {twice} twice",
            hint="remove one entry; to weight data sets, use data.dataset_weighting",
            code="data.broken",
            details={"shard": str(twice)},
        )
    apply = map
    if any(map(is_remote, paths)):
        apply = partial(in_parallel, max_concurrent=shard_reader.MAX_REQUESTS)
    versions: list[FileVersion] = []
    counts: dict[Path, int] = {}
    for version, index in apply(partial(_version_and_index, cache), paths):
        versions.append(version)
        if index is not None:
            counts[version.path] = len(index.offsets)
    new = [version for version in versions if version.path not in counts]
    if new:
        with reporter.progress(f"first scan of {text}", len(new), "shards") as bar:
            for version, index in zip(new, apply(partial(shard_index, cache), new), strict=True):
                counts[version.path] = len(index.offsets)
                bar.advance()
    shards = tuple(base.ShardInfo(path, counts[path]) for path in paths)
    return base.DataSet(text, shards), tuple(version.size for version in versions)


def _version_and_index(cache: FileCache, path: Path) -> tuple[FileVersion, ShardIndex | None]:
    """Current version of a shard, and its index if there is one."""
    with shard_reader.shard_errors(path):
        version = FileVersion.of(path)
        return version, cached_index(cache, version)


NO_IMAGE = "no_image"
BROKEN_IMAGE = "broken_image"
NOT_RGB = "not_rgb"
DROP_REASONS = (shard_reader.BROKEN_SAMPLE, NO_IMAGE, BROKEN_IMAGE, NOT_RGB)


@dataclass(frozen=True)
class ImageSample:
    # unique name from the metadata of the sample; without one, name of the shard and key in the
    # shard, because keys may repeat from shard to shard
    key: str
    image: UInt8Array  # uint8 [S, S, 3]


class ImageReader(base.SampleReader):
    """Reads, decodes and preprocesses images; picklable."""

    def __init__(self, config: ImageDataConfig, info: ImagesInfo) -> None:
        self._config = config
        self._info = info
        cache = shard_reader.ShardCache.of(config, info.datasets)
        self._shards = shard_reader.ShardReader(info.datasets, cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ImageReader, (self._config, self._info))

    def read(
        self, refs: Sequence[base.SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[ImageSample | base.DroppedSample]:
        samples: list[ImageSample | base.DroppedSample] = []
        for ref, stored, rng in zip(refs, self._shards.samples(refs), rngs, strict=True):
            if isinstance(stored, base.DroppedSample):
                samples.append(stored)
            else:
                samples.append(self._sample(ref, stored, rng))
        return samples

    def prefetch(self, refs: Sequence[base.SampleRef]) -> None:
        self._shards.prefetch(refs)

    def _sample(
        self, ref: base.SampleRef, stored: StoredSample, rng: np.random.Generator
    ) -> ImageSample | base.DroppedSample:
        shard = self._info.datasets[ref.dataset].shards[ref.shard].location
        key = image_shards_layout.sample_metadata(stored.members).get("key")
        if not isinstance(key, str) or not key:
            key = f"{shard.stem}/{stored.key}"
        data = image_shards_layout.sample_image(stored.members)
        if data is None:
            suffixes = ", ".join(image_shards_layout.IMAGE_SUFFIXES)
            message = f"{shard}: sample {stored.key} has no image ({suffixes})"
            return base.DroppedSample(NO_IMAGE, key, message)
        place = f"{shard}: the image of sample {stored.key}"
        try:
            pixels = decode_plain(data, convert=self._config.convert_colors)
        except NotRgbError as error:
            message = f"{place} {error}; set data.convert_colors to convert it"
            return base.DroppedSample(NOT_RGB, key, message)
        except ValueError as error:
            return base.DroppedSample(BROKEN_IMAGE, key, f"{place} cannot be decoded: {error}")
        return ImageSample(key, prepare_image(pixels, self._config.preprocessing, rng))


@dataclass(frozen=True)
class ImagesAssets:
    """Assets that encoding needs besides weights."""

    preprocessing: ImagePreprocessing  # preprocessing of the training images


class ImagesKind(base.DataKind):
    """Image shards (tar files); see `loading.base.DataKind`."""

    name: ClassVar[str] = "images"
    Config: ClassVar[type[base.LoadingConfig]] = ImageDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("shards",)
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS
    has_plain: ClassVar[bool] = True

    def load_info(self, config: ImageDataConfig, reporter: Reporter = NULL) -> ImagesInfo:
        return load_info(config, reporter)

    def validation(self, config: ImageDataConfig) -> ImageDataConfig | None:
        """Returns the section of `val_shards`: stored order, center crop; None without shards."""
        if not config.val_shards:
            return None
        changes = {
            "shards": config.val_shards,
            "val_shards": [],
            "dataset_weighting": [],
            "split": "val",
            "shuffle": False,
            "preprocessing": config.preprocessing.without_randomness(),
        }
        return config.model_copy(update=changes)

    def derive(
        self, config: ImageDataConfig, info: ImagesInfo
    ) -> tuple[ImageDataConfig, dict[str, str]]:
        """Returns the section unchanged."""
        return config, {}

    def contents(self, config: ImageDataConfig, sample: ImageSample) -> Mapping[str, Any]:
        return {"images": sample.image}

    def reader(self, config: ImageDataConfig, info: ImagesInfo) -> ImageReader:
        return ImageReader(config, info)

    def plain(
        self, config: ImageDataConfig, sample: ImageSample, *, channels_first: bool = True
    ) -> dict[str, Any]:
        import torch

        image = torch.from_numpy(sample.image)
        if channels_first:
            image = image.permute(2, 0, 1).contiguous()
        return {"image": image, "key": sample.key}

    def make_assets(self, config: ImageDataConfig, info: ImagesInfo) -> ImagesAssets:
        return ImagesAssets(config.preprocessing)

    def save_assets(self, config: ImageDataConfig, info: ImagesInfo, folder: Path) -> None:
        write_preprocessing_config(folder, config.preprocessing.model_dump(mode="json"))

    def load_assets(self, config: ImageDataConfig, folder: Path) -> ImagesAssets:
        try:
            preprocessing = ImagePreprocessing.model_validate(read_preprocessing_config(folder))
        except ValidationError as error:
            raise _unusable(folder, str(error.errors()[0]["msg"])) from None
        if preprocessing.without_randomness() != config.preprocessing.without_randomness():
            raise _unusable(folder, "differs from data.preprocessing of the run")
        return ImagesAssets(preprocessing)


def _unusable(folder: Path, reason: str) -> DataError:
    return DataError.at(
        folder / CONFIG_NAME,
        reason,
        hint="copy it again from the original run folder",
        code="data.broken",
    )
