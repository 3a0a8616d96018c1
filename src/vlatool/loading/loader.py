"""Batches for training: a seeded, endless loader whose position can be restored."""

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlatool.errors import VlatoolError
from vlatool.loading.config import DataConfig
from vlatool.loading.decode import DecodedSample, SampleDecoder
from vlatool.loading.facts import DatasetFacts
from vlatool.loading.stream import MixedStream, SampleStream, Slot

Batch = dict[str, Any]
Batcher = Callable[[Sequence[DecodedSample]], Batch]


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
        self, config: DataConfig, facts: DatasetFacts, batcher: Batcher, plan: LoaderPlan
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
        samples = iter(MixedStream(streams, weights, plan.seed * 1_000_003 + slot.index))
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
    config: DataConfig, facts: DatasetFacts, batcher: Batcher, plan: LoaderPlan
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
