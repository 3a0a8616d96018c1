"""Samples of image shards by their places. Source: reference/order 11."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.fragment import Members
from vlatool.artifacts.image import decode_rgb, image_mode
from vlatool.artifacts.image_shards import IMAGE_SUFFIXES, METADATA_SUFFIX
from vlatool.episode import UInt8Array
from vlatool.loading.base import DroppedSample, SampleRef
from vlatool.loading.images.config import ImageDataConfig
from vlatool.loading.images.info import ImagesInfo
from vlatool.loading.images.preprocessing import prepare_image
from vlatool.loading.shard_reader import BROKEN_SAMPLE, ShardCache, ShardReader
from vlatool.storage.documents import DocumentError, parse_json

NO_IMAGE, BROKEN_IMAGE, NOT_RGB = "no_image", "broken_image", "not_rgb"
DROP_REASONS = (BROKEN_SAMPLE, NO_IMAGE, BROKEN_IMAGE, NOT_RGB)


@dataclass(frozen=True)
class ImageSample:
    """One picture.

    Attributes:
        key: As the shard's metadata name it among all pictures; else shard and key in it, because
            keys may begin anew in every shard.
        image: uint8 [S, S, 3].
    """

    key: str
    image: UInt8Array


class ImageReader:
    """Reads, decodes and prepares pictures; picklable.

    Args:
        config: Data section.
        facts: Of the same data.
    """

    def __init__(self, config: ImageDataConfig, info: ImagesInfo) -> None:
        self._config = config
        self._info = info
        self._blocks = ShardReader(info.datasets, ShardCache.of(config, info.datasets))

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[ImageSample | DroppedSample]:
        """The samples at some places, in order; see `loading.base.SampleReader`."""
        found = zip(refs, self._blocks.members(refs), rngs, strict=True)
        return [
            one if isinstance(one, DroppedSample) else self._sample(place, one, rng)
            for place, one, rng in found
        ]

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Begins to fetch them where they are remote; see `loading.base.Prefetching`."""
        self._blocks.prefetch(refs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ImageReader, (self._config, self._info))

    def _sample(
        self, place: SampleRef, members: Members, rng: np.random.Generator
    ) -> ImageSample | DroppedSample:
        shard = self._info.datasets[place.dataset].shards[place.shard].location
        key = _global_key(members.contents) or f"{shard.stem}/{members.key}"
        data = _image(members.contents)
        if data is None:
            told = f"{shard}: sample {members.key} has none of {', '.join(IMAGE_SUFFIXES)}"
            return DroppedSample(NO_IMAGE, key, told)
        try:
            mode = image_mode(data)
            if mode != "RGB" and not self._config.convert_colors:
                told = f"{shard}: sample {members.key} is {mode}, not RGB; data.convert_colors"
                return DroppedSample(NOT_RGB, key, f"{told} makes it so")
            pixels = decode_rgb(data)
        except ValueError as error:
            told = f"{shard}: the picture of sample {members.key} cannot be decoded: {error}"
            return DroppedSample(BROKEN_IMAGE, key, told)
        return ImageSample(key, prepare_image(pixels, self._config.preprocessing, rng))


def _global_key(contents: Mapping[str, bytes]) -> str:
    """The name that metadata beside a picture give it; empty where they give none."""
    try:
        metadata = parse_json(contents.get(METADATA_SUFFIX, b"{}"))
    except DocumentError:
        return ""
    key = metadata.get("key") if isinstance(metadata, dict) else None
    return key if isinstance(key, str) else ""


def _image(contents: Mapping[str, bytes]) -> bytes | None:
    return next((contents[suffix] for suffix in IMAGE_SUFFIXES if suffix in contents), None)
