"""Reader of the samples of image shards.

Source: reference/order 11.
"""

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
    """One image.

    Attributes:
        key: Unique name from the metadata of the sample; without one, name of the shard and key in
            the shard, because keys may repeat from shard to shard.
        image: uint8 [S, S, 3].
    """

    key: str
    image: UInt8Array


class ImageReader:
    """Reads, decodes and preprocesses images; picklable.

    Args:
        config: Section `data`.
        info: Metadata of the same data.
    """

    def __init__(self, config: ImageDataConfig, info: ImagesInfo) -> None:
        self._config = config
        self._info = info
        self._shards = ShardReader(info.datasets, ShardCache.of(config, info.datasets))

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[ImageSample | DroppedSample]:
        """Returns the samples in order; see `loading.base.SampleReader`."""
        rows = zip(refs, self._shards.members(refs), rngs, strict=True)
        return [
            members if isinstance(members, DroppedSample) else self._sample(ref, members, rng)
            for ref, members, rng in rows
        ]

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Starts to download remote samples; see `loading.base.Prefetching`."""
        self._shards.prefetch(refs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ImageReader, (self._config, self._info))

    def _sample(
        self, ref: SampleRef, members: Members, rng: np.random.Generator
    ) -> ImageSample | DroppedSample:
        shard = self._info.datasets[ref.dataset].shards[ref.shard].location
        key = _global_key(members.contents) or f"{shard.stem}/{members.key}"
        data = _image(members.contents)
        if data is None:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            message = f"{shard}: sample {members.key} has no image ({suffixes})"
            return DroppedSample(NO_IMAGE, key, message)
        try:
            mode = image_mode(data)
            if mode != "RGB" and not self._config.convert_colors:
                message = (
                    f"{shard}: the image of sample {members.key} is {mode}, not RGB; set "
                    "data.convert_colors to convert it"
                )
                return DroppedSample(NOT_RGB, key, message)
            pixels = decode_rgb(data)
        except ValueError as error:
            message = f"{shard}: the image of sample {members.key} cannot be decoded: {error}"
            return DroppedSample(BROKEN_IMAGE, key, message)
        return ImageSample(key, prepare_image(pixels, self._config.preprocessing, rng))


def _global_key(contents: Mapping[str, bytes]) -> str:
    """Returns the unique name in the metadata of a sample; empty if there is none."""
    try:
        metadata = parse_json(contents.get(METADATA_SUFFIX, b"{}"))
    except DocumentError:
        return ""
    key = metadata.get("key") if isinstance(metadata, dict) else None
    return key if isinstance(key, str) else ""


def _image(contents: Mapping[str, bytes]) -> bytes | None:
    return next((contents[suffix] for suffix in IMAGE_SUFFIXES if suffix in contents), None)
