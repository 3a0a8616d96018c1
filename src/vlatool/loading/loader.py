"""Micro-batches of one rank, read by loader workers from any position of the order.

The trainer returns a buffer of shared memory to the pool of its worker when no tensor of the
micro-batch is left, and the worker fills it again. The first access to new shared memory takes as
long as decoding the images that are written there: 0.8 ms per MiB on a virtual machine (measured),
0.1 ms when reused. With torch's own messages, which share each tensor anew, a loader process read
78 % of the samples per second (8 images of 384 x 384, medians of 5 runs in turn). Source:
reference/order 5-10.

Legend of numbers: n position in the run, W world size, r rank, b samples in a micro-batch, m number
of a micro-batch of this rank, K loader workers.
"""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError, EnvironmentProblem, VlatoolError
from vlatool.events import STOP_SIGNALS
from vlatool.jobs.executor import check_semaphores, signals_blocked
from vlatool.loading import base
from vlatool.loading.order import SampleOrder, keyed_generator
from vlatool.storage.retry import warn_through, warnings_of_workers

# The first byte of a buffer is 1 while the buffer is in use. The size of the header aligns the
# content for any dtype.
_HEADER = 64
# Smallest size in bytes of a contiguous tensor in shared memory; smaller ones are in the message.
_MIN_SHARED_BYTES = 1 << 16
# Micro-batches in use besides the prefetched ones: one that the worker reads, two of the trainer.
# If the trainer keeps more, as with gradient accumulation on a CPU, new buffers are allocated.
_IN_USE = 3


class SharedPool:
    """The shared memory of one loader worker."""

    def __init__(self, prefetch_factor: int) -> None:
        self._max_batches = prefetch_factor + _IN_USE
        self._buffers: list[Tensor] = []
        # Buffers of the micro-batch that is being read.
        self._current: list[Tensor] = []

    def allocate(self, size: int) -> UInt8Array:
        """Returns uninitialized memory uint8 [size] for the micro-batch that is being read."""
        free = (b for b in self._buffers if b.numel() >= _HEADER + size and not b[0])
        buffer = next(free, None)
        if buffer is None:
            buffer = _shared(_HEADER + size)
            self._buffers.append(buffer)
        buffer[0] = 1
        self._current.append(buffer)
        return buffer.numpy()[_HEADER : _HEADER + size]

    def pack(self, micro_batch: base.MicroBatch) -> "BatchMessage":
        """Returns the message to send; tensors that are in a buffer of the pool are not copied."""
        items = micro_batch.batch.items()
        tensors = {name: value for name, value in items if _is_numpy_compatible(value)}
        shared = {name: self._share(value) for name, value in tensors.items() if _is_large(value)}
        small = {name: value.numpy() for name, value in tensors.items() if name not in shared}
        # Drops buffers that were not sent, which the trainer never returns, and surplus ones
        sent = [tensor.buffer for tensor in shared.values()]
        unsent = {id(buffer) for buffer in self._current} - {id(buffer) for buffer in sent}
        count = self._max_batches * max(1, len(sent))
        self._buffers = [buffer for buffer in self._buffers if id(buffer) not in unsent][-count:]
        self._current = []
        batch = {name: None if name in tensors else value for name, value in items}
        return BatchMessage(replace(micro_batch, batch=batch), shared, small)

    def _share(self, value: Tensor) -> "SharedTensor":
        address = value.data_ptr()
        for buffer in self._current:
            offset = address - buffer.data_ptr() - _HEADER
            if 0 <= offset < buffer.numel() - _HEADER and offset % value.itemsize == 0:
                return SharedTensor(buffer, offset, value.dtype, value.shape, value.stride())
        self.allocate(value.nbytes)
        strides = torch.empty_like(value, device="meta").stride()
        tensor = SharedTensor(self._current[-1], 0, value.dtype, value.shape, strides)
        tensor.view(tensor.buffer[_HEADER:]).copy_(value)
        return tensor


@dataclass(frozen=True)
class SharedTensor:
    """A tensor in a buffer of shared memory."""

    buffer: Tensor  # header and content, uint8 [K]
    offset: int  # offset in bytes from the start of the content
    dtype: torch.dtype  # data type of the tensor
    shape: Sequence[int]
    strides: Sequence[int]  # strides of the tensor, in elements

    def view(self, content: Tensor) -> Tensor:
        """Returns the tensor as a view of the content uint8 [K - 64] of its buffer."""
        steps = zip(self.shape, self.strides, strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps)
        end = self.offset + count * self.dtype.itemsize
        return content[self.offset : end].view(self.dtype).as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class BatchMessage:
    """A micro-batch as a loader worker sends it."""

    # the micro-batch; values of its batch that are in `shared` or `small` are None
    micro_batch: base.MicroBatch
    shared: Mapping[str, SharedTensor]  # map from name to large tensor
    # map from name to array of any other tensor that numpy can represent
    small: Mapping[str, Array]

    def unpack(self) -> base.MicroBatch:
        """Returns the micro-batch; its memory is returned to the pool with its last tensor."""
        buffers = {id(tensor.buffer): tensor.buffer for tensor in self.shared.values()}
        contents = {key: _content(buffer) for key, buffer in buffers.items()}
        tensors: dict[str, Any] = {
            name: tensor.view(contents[id(tensor.buffer)]) for name, tensor in self.shared.items()
        }
        tensors |= {name: torch.from_numpy(array) for name, array in self.small.items()}
        return replace(self.micro_batch, batch={**self.micro_batch.batch, **tensors})

    def pin_memory(self) -> base.MicroBatch:
        """Returns the micro-batch in page-locked memory; see `MicroBatch.pin_memory`."""
        return self.unpack().pin_memory()


def stack_rows(rows: Sequence[Array]) -> Array:
    """Stacks arrays of one shape to [B, ...]; does not copy if they are adjacent in one buffer."""
    first = rows[0]
    step = first.nbytes
    start = first.ctypes.data
    is_adjacent = first.flags.writeable and all(
        row.base is first.base
        and row.ctypes.data == start + number * step
        and row.flags.c_contiguous
        for number, row in enumerate(rows)
    )
    if first.base is None or not is_adjacent:
        return np.stack(rows)
    return np.lib.stride_tricks.as_strided(first, (len(rows), *first.shape), (step, *first.strides))


def _content(buffer: Tensor) -> Tensor:
    """Content of a buffer, which is marked free when the tensor and all its views are deleted."""
    # An array: unlike a tensor, it can be written in any mode of torch.
    array = buffer.numpy()
    content = array[_HEADER:]
    finalizer = weakref.finalize(content, _mark_free, array)
    finalizer.atexit = False
    return torch.from_numpy(content)


def _mark_free(array: Array) -> None:
    array[0] = 0


def _shared(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"cannot allocate {size / 1e6:.1f} MB of shared memory for a batch: {error}",
            hint="raise the limit of the container (`docker run --shm-size 8g`), or lower "
            "data.num_workers, data.prefetch_factor or hparams.per_gpu_batch_size",
            code="environment.hardware",
        ) from None


def _is_numpy_compatible(value: Any) -> bool:
    """True if numpy can represent the tensor without a conversion."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_conj() or value.is_neg())
        and value.dtype is not torch.bfloat16
        and not (value.is_floating_point() and value.itemsize == 1)
    )


def _is_large(value: Tensor) -> bool:
    """True if the tensor is large, or if it is not contiguous: a message would lose its strides."""
    return value.nbytes >= _MIN_SHARED_BYTES or not value.is_contiguous()


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
        first = number * self.batch_size
        positions = (self.rank + self.world_size * i for i in range(first, first + self.batch_size))
        return [n for n in positions if self.count is None or n < self.count]


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
    """Reads the samples at some positions; unusable ones are returned as `DroppedSample`. Their
    random choices depend on seed and position only. Source: reference/order 8.
    """
    rngs = [keyed_generator(seed, "sample", n) for n in positions]
    if refs is None:
        refs = order.refs(positions)
    if not positions:
        return []
    if allocate is not None:
        return reader.read_into(refs, rngs, allocate)
    return reader.read(refs, rngs)


# Items of `BatchStream`.
_Item = base.MicroBatch | BatchMessage | VlatoolError


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
        # VlatoolErrors are passed on as items: an error raised in a loader worker would arrive as
        # the text of a traceback.
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        pool = None if info is None else SharedPool(self._plan.prefetch_factor)
        allocate = partial(np.empty, dtype=np.uint8) if pool is None else pool.allocate
        number = self._plan.first + worker
        end = self._plan.batches
        prefetched: deque[tuple[list[int], list[base.SampleRef]]] = deque()
        try:
            while end is None or number < end:
                while len(prefetched) <= (-(-_PREFETCHED_SAMPLES // self._plan.batch_size)):
                    prefetched.append(self._prefetch(number + len(prefetched) * workers))
                micro_batch = self._read(*prefetched.popleft(), allocate)
                yield micro_batch if pool is None else pool.pack(micro_batch)
                number += workers
        except VlatoolError as error:
            yield error

    def _prefetch(self, number: int) -> tuple[list[int], list[base.SampleRef]]:
        """Returns positions and references of a micro-batch; the reader may start its download."""
        positions = self._plan.positions(number)
        refs = self._order.refs(positions)
        if refs:
            self._reader.prefetch(refs)
        return positions, refs

    def _read(
        self, positions: Sequence[int], refs: Sequence[base.SampleRef], allocate: base.Allocate
    ) -> base.MicroBatch:
        seed = self._plan.seed
        results = read_samples(self._order, self._reader, positions, seed, refs, allocate)
        usable = [
            (n, result)
            for n, result in zip(positions, results, strict=True)
            if not isinstance(result, base.DroppedSample)
        ]
        samples = [sample for _, sample in usable]
        drops = [result for result in results if isinstance(result, base.DroppedSample)]
        reasons = [drop.reason for drop in drops]
        unknown = set(reasons) - set(self._plan.drop_reasons)
        if unknown:
            raise DataError(
                f"a sample was dropped with the reason {unknown.pop()!r}, which is not in "
                "`drop_reasons` of its data kind",
                hint="add the reason to `drop_reasons`",
                code="data.unknown_field",
            )
        return base.MicroBatch(
            batch=self._batcher(samples) if samples else self._dummy(),
            samples=tuple(str(sample.key) for sample in samples),
            positions=tuple(n for n, _ in usable),
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
            yield item.unpack() if isinstance(item, BatchMessage) else item

    def _next(self) -> _Item | None:
        try:
            return next(self._iterators[0], None)
        except (EOFError, OSError) as error:
            if not self._loader.num_workers or _is_raised_in_worker(error):
                raise
            # A worker was killed while this process received a batch from it.
            raise _worker_exited(error) from None

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

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
        worker_init_fn=worker_start() if workers else None,
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
    is_exit = "DataLoader worker" in str(error) and not _is_raised_in_worker(error)
    return _worker_exited(error) if is_exit else None


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


def worker_start() -> Callable[[int], None]:
    """Function that a DataLoader calls in each loader worker; this process logs its retries."""
    return partial(_start_worker, warnings_of_workers())


def _start_worker(warnings: Connection, worker: int) -> None:
    """Initializes a loader worker: one thread, signals to stop ignored.

    The trainer handles the signals. The worker exits with its parent: processes of a forkserver
    otherwise outlive the process that requested them.
    """
    warn_through(warnings)
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
