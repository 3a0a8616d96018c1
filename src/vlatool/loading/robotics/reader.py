"""Samples of `lbm` shards by their places. Source: reference/order 11."""

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
    """Reads and decodes samples; picklable.

    Args:
        config: Data section, derived.
        facts: Of the same data.
    """

    def __init__(self, config: RoboticsDataConfig, info: RoboticsInfo) -> None:
        self._arguments = (config, info)
        self._blocks = ShardReader(info.datasets, ShardCache.of(config, info.datasets))
        names = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        widths = dict(zip(names, info.widths(names), strict=True))
        self._decoders = [
            SampleDecoder(config, image_size(options), widths, number)
            for number, options in enumerate(info.options)
        ]
        # Of the pictures of a sample.
        self._shape: tuple[int, ...] = ()

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[DecodedSample | DroppedSample]:
        """The samples at some places, in order; see `loading.base.SampleReader`."""
        return self._read(refs, rngs, [None] * len(refs))

    def read_into(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator], allocate: Allocate
    ) -> list[DecodedSample | DroppedSample]:
        """The same, their pictures one after another; see `loading.base.ReadsIntoBuffer`.

        They get as much room as those that were read before.
        """
        rows: Sequence[UInt8Array | None] = [None] * len(refs)
        if self._shape:
            rows = [*allocate(len(refs) * math.prod(self._shape)).reshape(-1, *self._shape)]
        found = self._read(refs, rngs, rows)
        shapes = [one.images.shape for one in found if not isinstance(one, DroppedSample)]
        self._shape = shapes[-1] if shapes else self._shape
        return found

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Begins to fetch them where they are remote; see `loading.base.Prefetching`."""
        self._blocks.prefetch(refs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RoboticsReader, self._arguments)

    def _read(
        self,
        places: Sequence[SampleRef],
        rngs: Sequence[np.random.Generator],
        rows: Sequence[UInt8Array | None],
    ) -> list[DecodedSample | DroppedSample]:
        """Samples, the pictures of those that are not dropped in the first of the rows."""
        found: list[DecodedSample | DroppedSample] = []
        kept = 0
        for place, members, rng in zip(places, self._blocks.members(places), rngs, strict=True):
            one = members
            if not isinstance(one, DroppedSample):
                one = self._sample(place, one, rng, rows[kept])
            kept += not isinstance(one, DroppedSample)
            found.append(one)
        return found

    def _sample(
        self,
        place: SampleRef,
        members: Members,
        rng: np.random.Generator,
        room: UInt8Array | None,
    ) -> DecodedSample | DroppedSample:
        try:
            return self._decoders[place.dataset](members.key, members.contents, rng, room)
        except DataError as error:
            reason = error.code.removeprefix("data.")
            if reason not in DROP_REASONS:
                raise
            return DroppedSample(reason, members.key, f"{error.message} ({error.hint})")
