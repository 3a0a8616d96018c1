"""Shards to decoded samples: endless, seeded, split over ranks and workers without loss.

Every (rank, worker) is a slot. Where shards divide evenly over the slots, or there are many of
them, a slot reads its share of the shards of an epoch; else every slot reads all of them and takes
each k-th sample. So the slots together see each sample once per epoch, and keep pace with each
other to within a shard in sixteen.
"""

import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import webdataset as wds

from vlatool.artifacts.manifest import Shard
from vlatool.errors import DataError
from vlatool.loading.config import DataConfig

RawSample = dict[str, Any]

_MANY_SHARDS = 16


@dataclass(frozen=True)
class Slot:
    """One of `count` readers."""

    index: int
    count: int


class SampleStream:
    """Raw samples (member suffix to bytes) of one data set for one slot, epoch after epoch."""

    def __init__(self, shards: Sequence[Shard], config: DataConfig, slot: Slot, seed: int) -> None:
        self._shards = list(shards)
        self._config = config
        self._slot = slot
        self._seed = seed

    def __iter__(self) -> Iterator[RawSample]:
        epoch = 0
        while True:
            found = False
            for sample in self._shuffled(self._epoch(epoch), epoch):
                found = True
                yield sample
            epoch += 1
            if not found and epoch > self._slot.count:
                raise DataError(
                    "a loader process finds no sample to read",
                    hint="use fewer data.num_workers or devices",
                    code="data.empty_stream",
                )

    def _shuffled(self, samples: Iterator[RawSample], epoch: int) -> Iterator[RawSample]:
        """Samples of one epoch through a buffer that is emptied before the next epoch starts."""
        if not self._config.shuffle:
            return samples
        rng = random.Random(f"{self._seed}/{epoch}/{self._slot.index}")  # noqa: S311 - no secret
        shuffle = wds.shuffle(  # pyright: ignore[reportAttributeAccessIssue]
            self._config.shuffle_buffer_size, initial=self._config.shuffle_initial, rng=rng
        )
        return iter(shuffle(samples))

    def _epoch(self, epoch: int) -> Iterator[RawSample]:
        order = list(range(len(self._shards)))
        if self._config.shuffle:
            np.random.default_rng(self._seed + epoch).shuffle(order)
        by_shard = self._reads_whole_shards(len(order))
        if by_shard:
            # Slots take turns at the remainder, so that none of them laps the others for ever.
            order = order[(self._slot.index + epoch) % self._slot.count :: self._slot.count]
        urls = [str(self._shards[index].path) for index in order]
        for position, sample in enumerate(read_shards(urls)):
            if by_shard or position % self._slot.count == self._slot.index:
                yield sample

    def _reads_whole_shards(self, shards: int) -> bool:
        count = self._slot.count
        return shards % count == 0 or shards >= _MANY_SHARDS * count


class MixedStream:
    """Samples drawn from several streams, each as often as its weight says."""

    def __init__(
        self, streams: Sequence[SampleStream], weights: Sequence[float], seed: int
    ) -> None:
        self._streams = streams
        self._weights = weights
        self._seed = seed

    def __iter__(self) -> Iterator[RawSample]:
        if len(self._streams) == 1:
            yield from self._streams[0]
            return
        rng = random.Random(self._seed)  # noqa: S311 - not for secrets
        iterators = [iter(stream) for stream in self._streams]
        while True:
            yield next(rng.choices(iterators, self._weights)[0])


def read_shards(urls: Sequence[str]) -> Iterator[RawSample]:
    """Samples of tar files in order; a broken tar is an error, never skipped."""
    pipeline = wds.DataPipeline(  # pyright: ignore[reportAttributeAccessIssue]
        wds.SimpleShardList(list(urls)),  # pyright: ignore[reportAttributeAccessIssue]
        wds.tarfile_to_samples(handler=wds.reraise_exception),  # pyright: ignore[reportAttributeAccessIssue]
    )
    try:
        yield from pipeline
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"a shard cannot be read: {error}",
            hint="preprocess or copy the data again",
            code="data.broken_shard",
        ) from error
