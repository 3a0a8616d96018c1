"""Samples of `lbm` shards by their places. Source: data-order, Reading."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from vlatool.artifacts.fragment import read_members
from vlatool.errors import DataError
from vlatool.loading.base import Dropped, Place
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.blocks import BlockCache, OpenBlocks
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import (
    BROKEN_SAMPLE,
    DROP_REASONS,
    DecodedSample,
    SampleDecoder,
)
from vlatool.loading.robotics.facts import DatasetFacts
from vlatool.storage.background import in_background
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import local_path

_MOST_COMING = 128
# Bytes that are kept without being asked: of all data, and of those of one run.
_MOST_UNASKED = 16_000_000_000
_LARGEST_UNASKED = 4_000_000_000


class RoboticsReader:
    """Reads and decodes samples; picklable.

    Args:
        config: Data section, derived.
        facts: Of the same data.
    """

    def __init__(self, config: RoboticsDataConfig, facts: DatasetFacts) -> None:
        self._arguments = (config, facts)
        self._datasets = facts.datasets
        self._blocks = OpenBlocks(facts.datasets, _cache(config, facts))
        names = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        widths = dict(zip(names, facts.widths(names), strict=True))
        self._decoders = [
            SampleDecoder(config, _picture_size(options), widths) for options in facts.options
        ]
        self._coming: dict[tuple[Place, ...], Future[list[bytes]]] = {}

    def read(
        self, places: Sequence[Place], rngs: Sequence[np.random.Generator]
    ) -> list[DecodedSample | Dropped]:
        """The samples at some places, in order; see `loading.base.SampleReader`."""
        coming = self._coming.pop(tuple(places), None)
        fragments = self._blocks.fragments(places) if coming is None else coming.result()
        return [
            self._sample(place, data, rng)
            for place, data, rng in zip(places, fragments, rngs, strict=True)
        ]

    def ahead(self, places: Sequence[Place]) -> None:
        """Begins to fetch them where they are remote; see `loading.base.ReadsAhead`."""
        if self._blocks.have_latency:
            if len(self._coming) > _MOST_COMING:  # nobody came for them
                self._coming.clear()
            fetch = partial(self._blocks.fragments, places)
            self._coming[tuple(places)] = in_background(fetch)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RoboticsReader, self._arguments)

    def _sample(
        self, place: Place, data: bytes, rng: np.random.Generator
    ) -> DecodedSample | Dropped:
        try:
            members = read_members(data)
        except ValueError as error:
            path = self._datasets[place.dataset].blocks[place.block].location
            told = f"{path}: sample {place.sample} of it is damaged: {error}"
            return Dropped(BROKEN_SAMPLE, f"{path.name}:{place.sample}", told)
        try:
            return self._decoders[place.dataset](members.key, members.contents, rng)
        except DataError as error:
            reason = error.code.removeprefix("data.")
            if reason not in DROP_REASONS:
                raise
            return Dropped(reason, members.key, f"{error.message} ({error.hint})")


def _picture_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that preprocessing gave all pictures, if it did."""
    match options.get("resize_images_size"):
        case [int(width), int(height)]:
            return width, height
        case _:
            return None


def _cache(config: RoboticsDataConfig, facts: DatasetFacts) -> BlockCache:
    section = config.dataset_cache
    folder = local_path(section.cache_dir) if section.cache_dir else default_cache_folder()
    limit = unasked = None if section.cache_size_gb is None else int(section.cache_size_gb * 1e9)
    if section.enabled is None and limit is None:
        limit, unasked = _MOST_UNASKED, _LARGEST_UNASKED
    order = SampleOrder(facts.datasets, OrderOptions.of(config, seed=0))
    blocks = sum(len(dataset.blocks) for dataset in facts.datasets)
    files = FileCache(folder, limit)
    return BlockCache(files, order.blocks_in_use(), blocks, section.enabled, unasked)
