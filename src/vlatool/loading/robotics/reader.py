"""Reader of the samples of `lbm` shards. Source: reference/order 11."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlatool.artifacts.fragment import Members
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.loading.base import Allocate, DroppedSample, SampleRef
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import DROP_REASONS, DecodedSample, SampleDecoder
from vlatool.loading.robotics.info import RoboticsInfo, image_size
from vlatool.loading.shard_reader import ShardCache, ShardReader


class RoboticsReader:
    """Reads and decodes samples; picklable."""

    def __init__(self, config: RoboticsDataConfig, info: RoboticsInfo) -> None:
        self._arguments = (config, info)
        self._shards = ShardReader(info.datasets, ShardCache.of(config, info.datasets))
        names = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        widths = dict(zip(names, info.widths(names), strict=True))
        self._decoders = [
            SampleDecoder(config, image_size(options), widths, number)
            for number, options in enumerate(info.options)
        ]
        # Shape of the images of a sample.
        self._shape: tuple[int, ...] = ()

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[DecodedSample | DroppedSample]:
        """Returns the samples in order; see `loading.base.SampleReader`."""
        return self._read(refs, rngs, [None] * len(refs))

    def read_into(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator], allocate: Allocate
    ) -> list[DecodedSample | DroppedSample]:
        """Returns the samples, their images in one buffer; see `loading.base.ReadsIntoBuffer`.

        The buffer has the image shape of the previous call; the first call uses none.
        """
        rows: Sequence[UInt8Array | None] = [None] * len(refs)
        if self._shape:
            rows = [*allocate(len(refs) * math.prod(self._shape)).reshape(len(refs), *self._shape)]
        samples = self._read(refs, rngs, rows)
        shapes = [item.images.shape for item in samples if not isinstance(item, DroppedSample)]
        self._shape = shapes[-1] if shapes else self._shape
        return samples

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Starts to download remote samples; see `loading.base.Prefetching`."""
        self._shards.prefetch(refs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RoboticsReader, self._arguments)

    def _read(
        self,
        refs: Sequence[SampleRef],
        rngs: Sequence[np.random.Generator],
        rows: Sequence[UInt8Array | None],
    ) -> list[DecodedSample | DroppedSample]:
        """Returns the samples; images are written to `rows`, which dropped samples do not use."""
        results: list[DecodedSample | DroppedSample] = []
        row = 0
        for ref, members, rng in zip(refs, self._shards.members(refs), rngs, strict=True):
            result = members
            if not isinstance(result, DroppedSample):
                result = self._sample(ref, result, rng, rows[row])
            row += not isinstance(result, DroppedSample)
            results.append(result)
        return results

    def _sample(
        self,
        ref: SampleRef,
        members: Members,
        rng: np.random.Generator,
        buffer: UInt8Array | None,
    ) -> DecodedSample | DroppedSample:
        try:
            return self._decoders[ref.dataset](members.key, members.contents, rng, buffer)
        except DataError as error:
            reason = error.code.removeprefix("data.")
            if reason not in DROP_REASONS:
                raise
            return DroppedSample(reason, members.key, f"{error.message} ({error.hint})")
