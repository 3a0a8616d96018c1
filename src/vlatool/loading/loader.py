"""Batches for training: endless, seeded, split over ranks and workers without loss, restorable.

Every (rank, worker) is a slot. Where shards divide evenly over the slots, or there are many of
them, a slot reads its share of the shards of an epoch; else every slot reads all of them and takes
each k-th sample. So the slots together see each sample once per epoch, and keep pace with each
other to within a shard in sixteen.
"""

import random
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlatool.artifacts.manifest import Shard
from vlatool.errors import DataError, VlatoolError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import DecodedSample, SampleDecoder
from vlatool.loading.robotics.facts import DatasetFacts

Batch = dict[str, Any]
Batcher = Callable[[Sequence[DecodedSample]], Batch]
RawSample = dict[str, Any]

_MANY_SHARDS = 16


@dataclass(frozen=True)
class LoaderPlan:
    """What one rank reads.

    Attributes:
        batch_size: Samples in a micro-batch.
        rank: This process.
        world_size: All processes.
        seed: Of shuffling, mixing and the choice of sentences.
        skip_batches: Micro-batches that an earlier run of this rank has consumed.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 42
    skip_batches: int = 0


class BatchStream(IterableDataset[Batch | VlatoolError]):
    """Endless micro-batches of one rank; one stream per loader process."""

    def __init__(
        self, config: RoboticsDataConfig, facts: DatasetFacts, batcher: Batcher, plan: LoaderPlan
    ) -> None:
        self._config = config
        self._facts = facts
        self._batcher = batcher
        self._plan = plan

    def __iter__(self) -> Iterator[Batch | VlatoolError]:
        # An error that is raised in a loader process arrives as a traceback in a message; as a
        # value it arrives whole.
        try:
            yield from self._batches()
        except VlatoolError as error:
            yield error

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        plan = self._plan
        # The next batch of an interrupted run comes from worker `skip_batches % workers`; the
        # DataLoader asks process 0 first, so process 0 takes that worker's part.
        worker = (worker + plan.skip_batches) % workers
        slot = Slot(plan.rank * workers + worker, plan.world_size * workers)
        weights = self._config.dataset_weighting or [float(size) for size in self._facts.sizes]
        streams = [
            SampleStream(shards, self._config, slot, plan.seed) for shards in self._facts.shards
        ]
        samples = mixed(streams, weights, plan.seed * 1_000_003 + slot.index)
        # Batches are handed out in turn, so the first `skip_batches` were spread over workers.
        skipped = len(range(worker, plan.skip_batches, workers)) * plan.batch_size
        for _ in range(skipped):
            next(samples)
        decoder = SampleDecoder(self._config)
        position = skipped
        while True:
            batch: list[DecodedSample] = []
            for _ in range(plan.batch_size):
                rng = random.Random(f"{plan.seed}/{slot.index}/{position}")  # noqa: S311
                batch.append(decoder(next(samples), rng))
                position += 1
            yield self._batcher(batch)


class BatchLoader:
    """Iterates over collated micro-batches; errors of loader processes are raised here."""

    def __init__(self, loader: DataLoader[Batch | VlatoolError]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, VlatoolError):
                raise batch
            yield batch


def build_loader(
    config: RoboticsDataConfig, facts: DatasetFacts, batcher: Batcher, plan: LoaderPlan
) -> BatchLoader:
    """A loader of collated micro-batches, in a fixed order for a given number of workers.

    It is already split by rank and worker: `Accelerator.prepare` would split it again.
    """
    workers = config.num_workers or 0
    loader = DataLoader(
        BatchStream(config, facts, batcher, plan),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config.prefetch_factor if workers else None,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_settle if workers else None,
    )
    return BatchLoader(loader)


def _settle(worker: int) -> None:
    """One thread; Ctrl-C goes to every process of a terminal, but the trainer answers it."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Slot:
    """One of `count` readers."""

    index: int
    count: int


class SampleStream:
    """Raw samples (member suffix to bytes) of one data set for one slot, epoch after epoch."""

    def __init__(
        self, shards: Sequence[Shard], config: RoboticsDataConfig, slot: Slot, seed: int
    ) -> None:
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


def mixed(
    streams: Sequence[SampleStream], weights: Sequence[float], seed: int
) -> Iterator[RawSample]:
    """Samples drawn from several streams, each as often as its weight says."""
    if len(streams) == 1:
        yield from streams[0]
        return
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    iterators = [iter(stream) for stream in streams]
    while True:
        yield next(rng.choices(iterators, weights)[0])


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
