"""Work over many items: one after the other, or in a pool of processes."""

import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, Self, TypeVar

from vlatool.errors import BugError, DataError, VlatoolError

Item = TypeVar("Item")
Value = TypeVar("Value")

_Answer = tuple[Value | None, VlatoolError | None]

_IN_FLIGHT_PER_WORKER = 2
_LAST_WORDS_S = 5.0


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """What became of one item: a value, or an error."""

    item: Item
    value: Value | None = None
    error: VlatoolError | None = None


class Executor(Protocol):
    """Runs functions over items; a context manager, so that workers are started once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, in their order; an item's error never ends the others."""
        ...


class SerialExecutor:
    """Everything in this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item."""
        for item in items:
            yield attempt(function, item)


class ProcessExecutor:
    """A pool of processes with a bounded number of items in flight.

    A worker that dies (out of memory, killed) costs only its item, which is tried once more in a
    pool of its own before it is reported. Workers end with their driver, however it ends.
    Functions should return little: a worker killed while it sends megabytes leaves half a message
    in the pipe, and the driver would wait for the rest.

    Args:
        workers: Number of processes.
        preload: Modules that workers import while the driver still looks for work.
    """

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        self.workers = workers
        self._preload = tuple(preload)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._pool = self._new_pool()
        for _ in range(min(self.workers, default_workers())):  # the others start when needed
            self._pool.submit(_nothing)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            _stop(self._pool)
            self._pool = None

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, in order."""
        waiting = iter(items)
        in_flight: deque[tuple[Item, Future[_Answer[Value]]]] = deque()
        task = partial(_answer, function)
        borrowed = self._pool is not None
        try:
            while True:
                for item in islice(waiting, self._room(len(in_flight))):
                    in_flight.append((item, self._submit(task, item)))
                if not in_flight:
                    return
                item, future = in_flight.popleft()
                try:
                    yield Outcome(item, *future.result())
                except BrokenProcessPool:
                    self._replace_pool()
                    yield self._alone(task, item)
                    in_flight = deque(
                        (item, future if _is_done(future) else self._submit(task, item))
                        for item, future in in_flight
                    )
        finally:
            for _, future in in_flight:
                future.cancel()
            if not borrowed:
                self.__exit__()

    def _room(self, in_flight: int) -> int:
        return max(self.workers * _IN_FLIGHT_PER_WORKER - in_flight, 0)

    def _submit(
        self, task: Callable[[Item], "_Answer[Value]"], item: Item
    ) -> "Future[_Answer[Value]]":
        """Like `pool.submit`, but a broken pool is found in the future, in the item's turn."""
        if self._pool is None:
            self._pool = self._new_pool()
        try:
            return self._pool.submit(task, item)
        except BrokenProcessPool as error:
            future: Future[_Answer[Value]] = Future()
            future.set_exception(error)
            return future

    def _alone(self, task: Callable[[Item], "_Answer[Value]"], item: Item) -> Outcome[Item, Value]:
        """One item in a pool of its own, so that its end is nobody else's."""
        with self._new_pool(1) as pool:
            try:
                return Outcome(item, *pool.submit(task, item).result())
            except BrokenProcessPool:
                return Outcome(item, error=worker_died(item))

    def _replace_pool(self) -> None:
        assert self._pool is not None
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new_pool()

    def _new_pool(self, workers: int | None = None) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            workers or self.workers, context, _start_worker, (self._preload,)
        )


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(function: Callable[[Item], Value], item: Item) -> Outcome[Item, Value]:
    """Calls `function(item)`; anything it raises becomes the item's error."""
    try:
        return Outcome(item, value=function(item))
    except VlatoolError as error:
        return Outcome(item, error=error)
    except OSError as error:  # what is written tells its own errors: this was read
        problem = DataError(
            f"{_name(item)}: cannot be read: {error.filename or ''}: {error.strerror or error}",
            hint="check that it is there and may be read, then run the same command again",
            code="data.unreadable",
            details={"path": str(error.filename or "")},
        )
        return Outcome(item, error=problem)
    except Exception as error:  # noqa: BLE001 - one item's failure must not end the others
        problem = BugError(
            f"{_name(item)}: {type(error).__name__}: {error}",
            hint="a bug in vlatool or in a plugin; --json and .vlatool/run.json have the traceback",
            code=BugError.unexpected,
            details={"traceback": _calls(error)},
        )
        return Outcome(item, error=problem)


def _calls(error: BaseException) -> list[str]:
    """The traceback without a folder of this machine: `module:12 function: line`."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [
        f"{frame.f_globals.get('__name__', '?')}:{call.lineno} {call.name}: {call.line}"
        for frame, call in zip(frames, traceback.extract_tb(error.__traceback__), strict=True)
    ]


def _answer(function: Callable[[Item], Value], item: Item) -> "_Answer[Value]":
    """What `attempt` says, without the item, which the driver has."""
    outcome = attempt(function, item)
    return outcome.value, outcome.error


def _name(item: object) -> str:
    """What messages call an item."""
    return str(getattr(item, "id", None) or getattr(item, "stem", None) or item)


def worker_died(item: object) -> DataError:
    """The error of an item whose worker ended again and again."""
    return DataError(
        f"{_name(item)}: the worker process died every time on this item",
        hint="it may need more memory than there is: try --workers 1; a script that calls vlatool "
        'needs `if __name__ == "__main__":`',
        code="data.worker_died",
    )


def _is_done(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _nothing() -> None:
    """The first task of a worker; makes it start."""


def _start_worker(preload: Sequence[str]) -> None:
    """Makes a worker deaf to Ctrl-C, which the driver answers, and mortal with its driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    for module in preload:
        importlib.import_module(module)


def _end_with_driver() -> None:
    """Waits for the end of the driver; a killed one cannot tell its workers to stop."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _stop(pool: ProcessPoolExecutor) -> None:
    """Ends the pool without waiting for what is still queued."""
    processes: list[multiprocessing.Process] = list(getattr(pool, "_processes", {}).values())
    answers = getattr(pool, "_result_queue", None)
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_LAST_WORDS_S)
    # The pool's thread may be waiting for the rest of an answer whose sender is gone. While this
    # end of the pipe is open nothing tells it so, and the interpreter would wait for the thread.
    writer = getattr(answers, "_writer", None)
    if writer is not None:
        with suppress(OSError):
            writer.close()
