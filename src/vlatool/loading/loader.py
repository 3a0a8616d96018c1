"""Micro-batches of one rank, made by loader processes, from any position of the order.

Source: reference/order 5-10.

Legend of numbers: n position of the run, W processes, r rank, b samples in a micro-batch, m number
of a micro-batch of this rank, K loader processes.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlatool.episode import UInt8Array
from vlatool.errors import DataError, EnvironmentProblem, VlatoolError
from vlatool.loading.base import (
    Allocate,
    Batch,
    Batcher,
    DroppedSample,
    MicroBatch,
    Prefetching,
    ReadsIntoBuffer,
    SampleReader,
    SampleRef,
)
from vlatool.loading.order import SampleOrder
from vlatool.loading.permutations import keyed_generator
from vlatool.loading.shared_memory import BatchMessage, SharedPool

_SAMPLES_AHEAD = 64  # per loader process: what is being fetched while others are decoded


@dataclass(frozen=True)
class LoaderPlan:
    """What one rank reads.

    Attributes:
        batch_size: Samples in a micro-batch.
        rank: This process.
        world_size: All processes.
        seed: Of the randomness of each sample.
        first: Number of the first micro-batch: those that this rank has consumed.
        count: Positions over all processes, after which every rank ends with the same number of
            micro-batches; None for an endless order.
        num_workers: Loader processes; 0 to load in this one.
        prefetch_factor: Micro-batches ready per loader process.
        drop_reasons: What is counted in `MicroBatch.dropped`, in this order.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 42
    first: int = 0
    count: int | None = None
    num_workers: int = 0
    prefetch_factor: int = 2
    drop_reasons: tuple[str, ...] = ()

    @property
    def batches(self) -> int | None:
        """Micro-batches of each rank, those before `first` included; None where endless."""
        if self.count is None:
            return None
        return -(-self.count // (self.world_size * self.batch_size))

    def positions(self, number: int) -> list[int]:
        """The positions of a micro-batch; fewer than `batch_size`, or none, at the end."""
        first = number * self.batch_size
        found = (self.rank + self.world_size * i for i in range(first, first + self.batch_size))
        return [n for n in found if self.count is None or n < self.count]


def read_samples(
    order: SampleOrder,
    reader: SampleReader,
    positions: Sequence[int],
    seed: int,
    places: Sequence[SampleRef] | None = None,
    room: Allocate | None = None,
) -> list[Any]:
    """The samples at some positions, a `Dropped` in place of a broken one.

    Their randomness is keyed by (seed, position) alone. Source: reference/order 8.

    Args:
        order: Which sample stands where.
        reader: Reads them.
        positions: Of the run.
        seed: Of their randomness.
        places: Of the positions, where they are known.
        room: Memory for them; None: each has its own.

    Raises:
        StorageError: The storage failed for good.
        DataError: The data are missing or not what their manifest says.
    """
    rngs = [keyed_generator(seed, "sample", n) for n in positions]
    if places is None:
        places = order.places(positions)
    if not positions:
        return []
    if room is not None and isinstance(reader, ReadsIntoBuffer):
        return reader.read_into(places, rngs, room)
    return reader.read(places, rngs)


# What a loader process, or this one, gives at a time.
_Item = MicroBatch | BatchMessage | VlatoolError


class BatchStream(IterableDataset[_Item]):
    """Micro-batches of one rank; each loader process makes every K-th. Source: reference/order 5, 6."""

    def __init__(
        self,
        plan: LoaderPlan,
        order: SampleOrder,
        reader: SampleReader,
        batcher: Batcher,
        fake: Callable[[], Batch],
    ) -> None:
        self._plan = plan
        self._order = order
        self._reader = reader
        self._batcher = batcher
        self._fake = fake

    def __iter__(self) -> Iterator[_Item]:
        # An error that is raised in a loader process arrives as a traceback in a message; as a
        # value it arrives whole.
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        lender = None if info is None else SharedPool(self._plan.prefetch_factor)
        room = _own_room if lender is None else lender.allocate
        number, end = self._plan.first + worker, self._plan.batches
        coming: deque[tuple[list[int], list[SampleRef]]] = deque()
        try:
            while end is None or number < end:
                while len(coming) <= self._ahead:
                    coming.append(self._told(number + len(coming) * workers))
                made = self._made(*coming.popleft(), room)
                yield made if lender is None else lender.packed(made)
                number += workers
        except VlatoolError as error:
            yield error

    @property
    def _ahead(self) -> int:
        """Micro-batches that the reader knows of before they are read."""
        return -(-_SAMPLES_AHEAD // self._plan.batch_size)

    def _told(self, number: int) -> tuple[list[int], list[SampleRef]]:
        """Positions and places of a micro-batch, which the reader may begin to fetch."""
        positions = self._plan.positions(number)
        places = self._order.places(positions)
        if places and isinstance(self._reader, Prefetching):
            self._reader.prefetch(places)
        return positions, places

    def _made(
        self, positions: Sequence[int], places: Sequence[SampleRef], room: Allocate
    ) -> MicroBatch:
        seed = self._plan.seed
        found = read_samples(self._order, self._reader, positions, seed, places, room)
        kept = [
            (n, one)
            for n, one in zip(positions, found, strict=True)
            if not isinstance(one, DroppedSample)
        ]
        samples = [one for _, one in kept]
        drops = [one for one in found if isinstance(one, DroppedSample)]
        reasons = [one.reason for one in drops]
        unknown = set(reasons) - set(self._plan.drop_reasons)
        if unknown:
            raise DataError(
                f"a sample was dropped for {unknown.pop()!r}, which the kind of data does not list",
                hint="add it to `drop_reasons` of the kind",
                code="data.unknown_drop_reason",
            )
        return MicroBatch(
            batch=self._batcher(samples) if samples else self._fake(),
            samples=tuple(str(one.key) for one in samples),
            positions=tuple(n for n, _ in kept),
            dropped=tuple(reasons.count(reason) for reason in self._plan.drop_reasons),
            first_drop=drops[0].message if drops else "",
            is_dummy=not samples,
        )


class BatchLoader:
    """Iterates over micro-batches in order; errors of loader processes are raised here.

    A context manager: leaving it, or `close`, ends the loader processes. Each iteration starts
    anew with the first micro-batch.
    """

    def __init__(self, loader: "DataLoader[_Item]") -> None:
        self._loader = loader
        # The DataLoader's iterator, or nothing; `_end` has nobody else keep it.
        self._running: list[Iterator[_Item]] = []
        self._end: Finalize | None = None
        self._turn = 0

    def __iter__(self) -> Iterator[MicroBatch]:
        self.close()
        if self._loader.num_workers:
            start_server()
        turn, running = self._turn, iter(self._loader)
        workers = list(getattr(running, "_workers", ()))
        self._running.append(running)
        del running
        # At the end of the program too, before multiprocessing waits for them: they are deaf to
        # SIGTERM.
        self._end = Finalize(self, _finish, (self._running, workers), exitpriority=100)
        while self._turn == turn and self._running:
            batch = self._next()
            if batch is None:
                return
            if isinstance(batch, VlatoolError):
                self.close()
                raise batch
            yield batch.opened() if isinstance(batch, BatchMessage) else batch

    def _next(self) -> _Item | None:
        try:
            return next(self._running[0], None)
        except (EOFError, OSError) as error:
            if not self._loader.num_workers or _is_its_own(error):
                raise
            # What it was about to hand over went with it.
            raise _ended(error) from None

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the loader processes; another iteration starts others."""
        self._turn += 1
        if self._end is not None:
            self._end()


def _finish(running: list[Iterator[_Item]], processes: Sequence[BaseProcess]) -> None:
    """Ends loader processes in good order, and those that do not listen after that.

    The DataLoader's iterator ends them when nobody has it any more, and gives up on one that is in
    the middle of a read after seconds. It waits for ever where one was killed before, which may
    have held the lock of their event.
    """
    running.clear()
    for one in processes:
        if one.is_alive():
            one.kill()


def build_loader(
    plan: LoaderPlan,
    order: SampleOrder,
    reader: SampleReader,
    batcher: Batcher,
    fake: Callable[[], Batch],
) -> BatchLoader:
    """The micro-batches of one rank from number `plan.first` on.

    They are already those of this rank alone: `Accelerator.prepare` would split them again.

    Args:
        plan: Which ones.
        order: Which sample comes when.
        reader: Reads samples; picklable.
        batcher: Samples to tensors; picklable.
        fake: Made in place of a micro-batch of which no sample is left; picklable.
    """
    workers = plan.num_workers
    loader = DataLoader(
        BatchStream(plan, order, reader, batcher, fake),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=plan.prefetch_factor if workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=init_worker if workers else None,
    )
    return BatchLoader(loader)


def _own_room(size: int) -> UInt8Array:
    return np.empty(size, np.uint8)


def start_server() -> None:
    """Starts the process that loaders are forked from, deaf to SIGTERM: groups are sent it."""
    # It unblocks the signal when it starts, so it goes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def loader_exited(error: RuntimeError) -> EnvironmentProblem | None:
    """What to say where a loader process was killed; None for another error.

    Torch raises the former wherever the process happens to be when it learns of it.
    """
    is_told = "DataLoader worker" in str(error) and not _is_its_own(error)
    return _ended(error) if is_told else None


def _is_its_own(error: Exception) -> bool:
    """Whether it was raised inside a loader process, which lives."""
    return str(error).startswith("Caught ")


def _ended(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"a loader process was ended from outside: {error or type(error).__name__}",
        hint="often the memory ran out: lower data.num_workers or data.prefetch_factor; the same "
        "command goes on from the last checkpoint",
        code="environment.loader_ended",
    )


def init_worker(worker: int) -> None:
    """One thread; signals go to every process of a terminal or job, but the trainer answers them.

    A process of the forkserver does not end with the one that asked for it, so it watches it.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = _excepthook
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Says nothing of a process that was killed while it took a batch: this one ends as well.

    Python's thread that hands over the memory of batches tells all errors in this way.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
