"""Work over many items: one after the other, or in a pool of processes."""

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from vlatool.errors import DataError, VlatoolError

Item = TypeVar("Item")
Value = TypeVar("Value")

_IN_FLIGHT_PER_WORKER = 2


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """What became of one item: a value, or an error."""

    item: Item
    value: Value | None = None
    error: VlatoolError | None = None


class Executor(Protocol):
    """Runs a function over items; outcomes come in the order of the items."""

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item; an item's error never ends the others."""
        ...


class SerialExecutor:
    """Everything in this process."""

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item."""
        for item in items:
            yield attempt(function, item)


class ProcessExecutor:
    """A pool of processes with a bounded number of items in flight.

    A worker that dies (out of memory, killed) costs only its item, which is tried once more in a
    fresh pool before it is reported.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, in order."""
        waiting = iter(items)
        in_flight: deque[tuple[Item, Future[Outcome[Item, Value]]]] = deque()
        task = partial(attempt, function)
        pool = self._pool()
        try:
            while True:
                while len(in_flight) < self.workers * _IN_FLIGHT_PER_WORKER:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        break
                    in_flight.append((item, _submit(pool, task, item)))
                if not in_flight:
                    return
                item, future = in_flight.popleft()
                try:
                    yield future.result()
                except BrokenProcessPool:
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = self._pool()
                    yield self._alone(task, item)
                    in_flight = deque(
                        (item, future if _is_done(future) else _submit(pool, task, item))
                        for item, future in in_flight
                    )
        finally:
            _stop(pool)

    def _alone(
        self, task: Callable[[Item], Outcome[Item, Value]], item: Item
    ) -> Outcome[Item, Value]:
        """One item in a pool of its own, so that its end is nobody else's."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _ignore_ctrl_c) as pool:
            try:
                return pool.submit(task, item).result()
            except BrokenProcessPool:
                return Outcome(
                    item,
                    error=DataError(
                        f"{_name(item)}: the worker process died twice on this item",
                        hint="it may need more memory than there is; try --workers 1",
                        code="data.worker_died",
                    ),
                )

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, _ignore_ctrl_c)


def make_executor(workers: int) -> Executor:
    """A pool of `workers` processes; with one worker, no pool at all."""
    return SerialExecutor() if workers <= 1 else ProcessExecutor(workers)


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(function: Callable[[Item], Value], item: Item) -> Outcome[Item, Value]:
    """Calls `function(item)`; anything it raises becomes the item's error."""
    try:
        return Outcome(item, value=function(item))
    except VlatoolError as error:
        return Outcome(item, error=error)
    except Exception as error:  # noqa: BLE001 - one item's failure must not end the others
        problem = DataError(
            f"{_name(item)}: {type(error).__name__}: {error}",
            hint="a bug in vlatool or in the format's plugin; --json has the traceback",
            code="data.unexpected",
            details={"traceback": traceback.format_exc()},
        )
        return Outcome(item, error=problem)


def _name(item: object) -> str:
    """What messages call an item."""
    return str(getattr(item, "id", None) or getattr(item, "stem", None) or item)


def _submit(
    pool: ProcessPoolExecutor, task: Callable[[Item], Outcome[Item, Value]], item: Item
) -> Future[Outcome[Item, Value]]:
    """Like `pool.submit`, but the end of the pool is found in the future, in the item's turn."""
    try:
        return pool.submit(task, item)
    except BrokenProcessPool as error:
        future: Future[Outcome[Item, Value]] = Future()
        future.set_exception(error)
        return future


def _is_done(future: Future[Outcome[Item, Value]]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _ignore_ctrl_c() -> None:
    """Ctrl-C goes to every process of the terminal; only the driver answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(pool: ProcessPoolExecutor) -> None:
    """Ends the pool without waiting for what is still queued."""
    processes: list[multiprocessing.Process] = list(getattr(pool, "_processes", {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
