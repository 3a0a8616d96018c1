"""Micro-batches of one rank, read by loader workers from any position of the order.

`build_loader` starts a DataLoader over a `BatchStream`: each loader worker reads every K-th
micro-batch of the `LoaderPlan` and sends it in shared memory (`shared_memory.py`). `BatchLoader`
unpacks them in the trainer, and stops the workers. Source: reference/order 5-10.

Legend of numbers: n position in the run, W world size, r rank, b samples in a micro-batch, m number
of a micro-batch of this rank, K loader workers.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlatool.errors import DataError, EnvironmentProblem, VlatoolError
from vlatool.events import STOP_SIGNALS
from vlatool.jobs.executor import check_semaphores, signals_blocked
from vlatool.loading import base
from vlatool.loading.order import SampleOrder, keyed_generator
from vlatool.loading.shared_memory import BatchMessage, SharedPool

# Samples per loader worker that are downloaded while others are decoded.
_PREFETCHED_SAMPLES = 64
_OF_DRIVER = (signal.SIGINT, *STOP_SIGNALS)


@dataclass(frozen=True)
class LoaderPlan:
    """The micro-batches that one rank reads."""

    batch_size: int  # number of samples in a micro-batch
    rank: int = 0  # rank of this process
    world_size: int = 1  # number of ranks
    seed: int = 42  # seed of the random choices per sample
    # number of the first micro-batch, equal to the number that this rank has consumed
    first: int = 0
    # number of positions of all ranks together; then every rank ends, each after the same number of
    # micro-batches. None: no end
    count: int | None = None
    num_workers: int = 0  # number of loader workers; 0: load in this process
    prefetch_factor: int = 2  # number of micro-batches that each loader worker loads in advance
    drop_reasons: tuple[str, ...] = ()  # reasons that `MicroBatch.dropped` counts, in this order

    @property
    def batches(self) -> int | None:
        """Number of micro-batches of each rank, including those before `first`; None: no end."""
        if self.count is None:
            return None
        return -(-self.count // (self.world_size * self.batch_size))

    def positions(self, number: int) -> list[int]:
        """Positions of a micro-batch; fewer than `batch_size`, or none, at the end."""
        step = self.world_size
        first = self.rank + step * number * self.batch_size
        stop = first + step * self.batch_size
        if self.count is not None:
            stop = min(stop, self.count)
        return list(range(first, stop, step))


def read_samples(
    order: SampleOrder,
    reader: base.SampleReader,  # reader of the data
    positions: Sequence[int],  # positions in the run
    seed: int,  # seed of the random choices
    # references of the samples at these positions; None: computed from `order`
    refs: Sequence[base.SampleRef] | None = None,
    # allocator of one buffer for the arrays; None: each sample allocates its own
    allocate: base.Allocate | None = None,
) -> list[Any]:
    """Reads the samples at some positions; unusable ones are returned as `DroppedSample`.

    Their random choices depend on seed and position only. Source: reference/order 8.
    """
    if not positions:
        return []
    rngs = [keyed_generator(seed, "sample", n) for n in positions]
    if refs is None:
        refs = order.refs(positions)
    if allocate is not None:
        return reader.read_into(refs, rngs, allocate)
    return reader.read(refs, rngs)


# Items of `BatchStream`. A VlatoolError is passed on as an item: one that is raised in a loader
# worker arrives as the text of a traceback.
_Item = base.MicroBatch | BatchMessage | VlatoolError


class _Prefetched(NamedTuple):
    """A micro-batch whose samples may be downloading."""

    positions: list[int]
    refs: list[base.SampleRef]


class BatchStream(IterableDataset[_Item]):
    """Micro-batches of one rank; each loader worker makes every K-th. Source: reference/order
    5, 6.
    """

    def __init__(
        self,
        plan: LoaderPlan,
        order: SampleOrder,
        reader: base.SampleReader,
        batcher: base.Batcher,
        dummy: Callable[[], base.Batch],
    ) -> None:
        self._plan = plan
        self._order = order
        self._reader = reader
        self._batcher = batcher
        self._dummy = dummy

    def __iter__(self) -> Iterator[_Item]:
        info = get_worker_info()
        if info is None:
            number = self._plan.first
            workers = 1
            pool = None
            allocate = partial(np.empty, dtype=np.uint8)
        else:
            number = self._plan.first + info.id
            workers = info.num_workers
            pool = SharedPool(self._plan.prefetch_factor)
            allocate = pool.allocate
        end = self._plan.batches
        ahead = math.ceil(_PREFETCHED_SAMPLES / self._plan.batch_size)
        prefetched: deque[_Prefetched] = deque()
        try:
            while end is None or number < end:
                while len(prefetched) <= ahead:
                    prefetched.append(self._prefetch(number + len(prefetched) * workers))
                micro_batch = self._read(prefetched.popleft(), allocate)
                yield micro_batch if pool is None else pool.pack(micro_batch)
                number += workers
        except VlatoolError as error:
            yield error

    def _prefetch(self, number: int) -> _Prefetched:
        """Positions and references of a micro-batch; the reader may start its download."""
        positions = self._plan.positions(number)
        refs = self._order.refs(positions)
        if refs:
            self._reader.prefetch(refs)
        return _Prefetched(positions, refs)

    def _read(self, prefetched: _Prefetched, allocate: base.Allocate) -> base.MicroBatch:
        positions, refs = prefetched
        results = read_samples(
            self._order, self._reader, positions, self._plan.seed, refs, allocate
        )
        samples: list[Any] = []
        used: list[int] = []
        drops: list[base.DroppedSample] = []
        for position, result in zip(positions, results, strict=True):
            if isinstance(result, base.DroppedSample):
                drops.append(result)
            else:
                samples.append(result)
                used.append(position)
        reasons = [drop.reason for drop in drops]
        for reason in reasons:
            if reason not in self._plan.drop_reasons:
                raise DataError(
                    f"a sample was dropped with the reason {reason!r}, which is not in "
                    "`drop_reasons` of its data kind",
                    hint="add the reason to `drop_reasons`",
                    code="data.unknown_field",
                )
        return base.MicroBatch(
            batch=self._batcher(samples) if samples else self._dummy(),
            samples=tuple(str(sample.key) for sample in samples),
            positions=tuple(used),
            dropped=tuple(reasons.count(reason) for reason in self._plan.drop_reasons),
            drops=tuple(drops),
            is_dummy=not samples,
        )


class BatchLoader:
    """Iterator over micro-batches in order; raises the errors of loader workers.

    Use it as a context manager, or call `close`, to stop the loader workers. Each iteration starts
    again with the first micro-batch.
    """

    def __init__(self, loader: "DataLoader[_Item]") -> None:
        self._loader = loader
        # At most one iterator of the DataLoader. No other reference to it may exist: clearing this
        # list stops its loader workers.
        self._iterators: list[Iterator[_Item]] = []
        self._stop: Finalize | None = None
        self._iteration = 0

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[base.MicroBatch]:
        self.close()
        if self._loader.num_workers:
            start_forkserver()
        iteration = self._iteration
        with signals_blocked(signal.SIGINT):  # from the first worker on until it can be stopped
            iterator = iter(self._loader)
            workers = list(getattr(iterator, "_workers", ()))
            self._iterators.append(iterator)
            del iterator
            # Runs at the exit of the program too, before multiprocessing joins the workers, which
            # ignore SIGTERM.
            self._stop = Finalize(self, _stop_workers, (self._iterators, workers), exitpriority=100)
        while self._iteration == iteration and self._iterators:
            item = self._next()
            if item is None:
                return
            if isinstance(item, VlatoolError):
                self.close()
                raise item
            if isinstance(item, BatchMessage):
                item = item.unpack()
            yield item

    def _next(self) -> _Item | None:
        try:
            return next(self._iterators[0], None)
        except (EOFError, OSError) as error:
            if not self._loader.num_workers or _is_raised_in_worker(error):
                raise
            # A worker was killed while this process received a batch from it.
            raise _worker_exited(error) from None

    def close(self) -> None:
        """Stops the loader workers; another iteration starts new ones."""
        self._iteration += 1
        if self._stop is not None:
            self._stop()


def _stop_workers(iterators: list[Iterator[_Item]], processes: Sequence[BaseProcess]) -> None:
    """Stops the loader workers, and kills those that are still alive afterwards.

    The iterator of the DataLoader stops its workers when it is deleted. It gives up after seconds
    on a worker that is in the middle of a read. It waits forever if a worker was killed while it
    held the lock of their shared event.
    """
    iterators.clear()
    for process in processes:
        if process.is_alive():
            process.kill()


def build_loader(
    plan: LoaderPlan,  # the micro-batches to read
    order: SampleOrder,
    reader: base.SampleReader,  # reader of the data; picklable
    batcher: base.Batcher,  # converts samples to tensors; picklable
    dummy: Callable[[], base.Batch],
) -> BatchLoader:
    """Returns a loader of the micro-batches of one rank, from number `plan.first` on. Do not pass
    it to `Accelerator.prepare`, which would split the micro-batches over ranks again.
    """
    workers = plan.num_workers
    loader = DataLoader(
        BatchStream(plan, order, reader, batcher, dummy),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=plan.prefetch_factor if workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=start_worker if workers else None,
    )
    return BatchLoader(loader)


def start_forkserver() -> None:
    """Starts the server process that forks the loader workers, with the signals to stop blocked.

    They are often sent to all processes of a job; the trainer alone handles them. The server and
    the workers inherit the mask, which holds before they can ignore a signal.

    Returns when the server has imported its modules. Ctrl-C may end this wait, but not the start of
    a worker, which takes milliseconds from then on: a worker without its driver prints an error.
    """
    check_semaphores()
    with signals_blocked(*_OF_DRIVER):
        forkserver.ensure_running()
    multiprocessing.get_context("forkserver").Process(target=int, daemon=True).start()


def loader_exited(error: RuntimeError) -> EnvironmentProblem | None:
    """Returns the error to raise if a loader worker was killed; None for any other error. Torch
    raises its RuntimeError in a signal handler, so at any point of the program.
    """
    if "DataLoader worker" in str(error) and not _is_raised_in_worker(error):
        return _worker_exited(error)
    return None


def _is_raised_in_worker(error: Exception) -> bool:
    """True if the error was raised inside a loader worker, which is still alive."""
    return str(error).startswith("Caught ")


def _worker_exited(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"a loader worker was killed: {error or type(error).__name__}",
        hint="the machine may be out of memory: lower data.num_workers or data.prefetch_factor; "
        "run the same command to resume from the last checkpoint",
        code="environment.process_failed",
    )


def start_worker(worker: int) -> None:
    """Initializes a loader worker: one thread, signals to stop ignored.

    The trainer handles the signals. The worker exits with its parent: processes of a forkserver
    otherwise outlive the process that requested them.
    """
    for number in _OF_DRIVER:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = _excepthook
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Hides the connection error of a trainer that was killed while it received a batch.

    This worker exits as well. The error is raised in the thread of Python that sends the memory of
    batches.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
