"""Samples of `lbm` shards by their places. Source: data-order, Reading."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlatool.artifacts.fragment import Members
from vlatool.errors import DataError
from vlatool.loading.base import Dropped, Place
from vlatool.loading.blocks import BlockCache, OpenBlocks
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import DROP_REASONS, DecodedSample, SampleDecoder
from vlatool.loading.robotics.facts import DatasetFacts, picture_size


class RoboticsReader:
    """Reads and decodes samples; picklable.

    Args:
        config: Data section, derived.
        facts: Of the same data.
    """

    def __init__(self, config: RoboticsDataConfig, facts: DatasetFacts) -> None:
        self._arguments = (config, facts)
        self._blocks = OpenBlocks(facts.datasets, BlockCache.of(config, facts.datasets))
        names = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        widths = dict(zip(names, facts.widths(names), strict=True))
        self._decoders = [
            SampleDecoder(config, picture_size(options), widths, number)
            for number, options in enumerate(facts.options)
        ]

    def read(
        self, places: Sequence[Place], rngs: Sequence[np.random.Generator]
    ) -> list[DecodedSample | Dropped]:
        """The samples at some places, in order; see `loading.base.SampleReader`."""
        found = zip(places, self._blocks.members(places), rngs, strict=True)
        return [
            one if isinstance(one, Dropped) else self._sample(place, one, rng)
            for place, one, rng in found
        ]

    def ahead(self, places: Sequence[Place]) -> None:
        """Begins to fetch them where they are remote; see `loading.base.ReadsAhead`."""
        self._blocks.ahead(places)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RoboticsReader, self._arguments)

    def _sample(
        self, place: Place, members: Members, rng: np.random.Generator
    ) -> DecodedSample | Dropped:
        try:
            return self._decoders[place.dataset](members.key, members.contents, rng)
        except DataError as error:
            reason = error.code.removeprefix("data.")
            if reason not in DROP_REASONS:
                raise
            return Dropped(reason, members.key, f"{error.message} ({error.hint})")
