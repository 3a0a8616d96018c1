"""Executors, which call a function for many items: sequentially or in a pool of processes."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from vlatool.errors import BugError, DataError, EnvironmentProblem, VlatoolError, name_error
from vlatool.jobs import machine
from vlatool.plugins import load_early, plugin_place
from vlatool.storage.background import in_background

Item = TypeVar("Item")
Value = TypeVar("Value")

_Result = tuple[Value | None, VlatoolError | None]

_IN_FLIGHT_PER_WORKER = 2
_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """Result of one item: a value or an error."""

    item: Item
    value: Value | None = None
    error: VlatoolError | None = None


class Executor(Protocol):
    """Calls functions for items; a context manager, so that workers are started once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, in order; the error of an item does not stop the others."""
        ...


class SerialExecutor:
    """Executor that runs everything in this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        for item in items:
            yield attempt(function, item)


class ProcessExecutor:
    """Executor with a pool of processes and a limited number of items in flight.

    If a worker dies (out of memory, killed), only its item fails, after a second attempt in a
    separate pool. Workers end when their driver ends, even if it is killed. Functions should return
    little: a worker that is killed while it sends megabytes leaves a partial message in the pipe,
    and the driver would wait for the rest.
    """

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        self.workers = workers  # number of processes
        self._preload = tuple(preload)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._pool = self._new_pool()
        for _ in range(min(self.workers, default_workers())):  # the others start on demand
            _submit(self._pool, _start)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            with signals_blocked(signal.SIGINT):  # a worker that is left would hold up the end
                _stop(self._pool)
                self._pool = None

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        remaining = iter(items)
        in_flight: deque[tuple[Item, Future[_Result[Value]]]] = deque()
        task = partial(_attempt_result, function)
        is_entered = self._pool is not None
        try:
            while True:
                free = self.workers * _IN_FLIGHT_PER_WORKER - len(in_flight)
                for item in islice(remaining, max(free, 0)):
                    in_flight.append((item, self._submit(task, item)))
                if not in_flight:
                    return
                item, future = in_flight.popleft()
                try:
                    yield Outcome(item, *future.result())
                except BrokenProcessPool:
                    assert self._pool is not None
                    self._pool.shutdown(wait=False, cancel_futures=True)
                    self._pool = self._new_pool()
                    yield self._run_separately(task, item)
                    for position, (item, future) in enumerate(in_flight):
                        if not _is_done(future):
                            in_flight[position] = (item, self._submit(task, item))
        finally:
            # The end of the pool cancels what is in flight. If it was cancelled here, the thread
            # of the pool would print a traceback when a worker ends before it has noticed.
            if not is_entered:
                self.__exit__()

    def _submit(
        self, task: Callable[[Item], "_Result[Value]"], item: Item
    ) -> "Future[_Result[Value]]":
        """Submits a task; if the pool is broken, the future raises the error, not this method."""
        if self._pool is None:
            self._pool = self._new_pool()
        try:
            return _submit(self._pool, task, item)
        except BrokenProcessPool as error:
            future: Future[_Result[Value]] = Future()
            future.set_exception(error)
            return future

    def _run_separately(
        self, task: Callable[[Item], "_Result[Value]"], item: Item
    ) -> Outcome[Item, Value]:
        """Runs one item in a separate pool, so that a dying worker affects no other item."""
        with self._new_pool(1) as pool:
            try:
                return Outcome(item, *_submit(pool, task, item).result())
            except BrokenProcessPool:
                return Outcome(item, error=worker_died(item))

    def _new_pool(self, workers: int | None = None) -> ProcessPoolExecutor:
        check_semaphores()
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            workers or self.workers,
            context,
            start_process,
            (self._preload,),
        )


class DeviceExecutor:
    """Executor with a process per device; each runs an executor of its own on every N-th item.

    The work of a process that dies is not done by the others: the next run resumes.
    """

    def __init__(self, count: int, open_executor: Callable[[int], Any]) -> None:
        self._count = count  # number of processes
        # Opens the executor of a device by its index; picklable. The executor has `seconds`.
        self._open = open_executor
        self._processes: list[SpawnProcess] = []
        self.seconds: dict[str, float] = {}  # `seconds` of the first process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_JOIN_TIMEOUT_S)
            process.kill()

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, in order."""
        all_items = list(items)
        receivers: list[Connection] = []
        for index in range(min(self._count, len(all_items))):
            receivers.append(self._start(index, function, all_items[index :: self._count]))
        for number, item in enumerate(all_items):
            yield Outcome(item, *self._receive(receivers, number % self._count))
        if receivers:
            self.seconds = self._receive(receivers, 0)

    def _start(self, index: int, function: Callable[[Item], Any], share: list[Item]) -> Connection:
        """Starts a process; returns the connection on which it sends its results."""
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_work_on_share, args=(self._open, index, function, share, sender)
        )
        with signals_blocked(signal.SIGINT):
            process.start()
        self._processes.append(process)
        sender.close()  # the process has the only one, so that its end is noticed
        return receiver

    def _receive(self, receivers: Sequence[Connection], index: int) -> Any:
        try:
            message = receivers[index].recv()
        except (EOFError, OSError):
            process = self._processes[index]
            process.join()
            raise EnvironmentProblem(
                f"the worker process of device {index} ended with exit code {process.exitcode}",
                hint="it may have run out of memory: lower --batch-size or --num-workers; the same "
                "command resumes",
                code="environment.process_failed",
                details={"device": index, "exit_code": process.exitcode},
            ) from None
        if isinstance(message, BaseException):
            raise message
        return message


def _work_on_share(
    open_executor: Callable[[int], Any],
    index: int,
    function: Callable[[Item], Any],
    share: list[Item],
    sender: Connection,
) -> None:
    """Sends the result of each item, then `seconds`; in their place, an error that ends all."""
    start_process()
    # What the executor has started is cleaned up.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    try:
        executor = open_executor(index)
        for outcome in executor.map(function, share):
            sender.send((outcome.value, outcome.error))
        sender.send(executor.seconds)
    except Exception as error:  # noqa: BLE001 - the driver raises it
        error.add_note(traceback.format_exc())
        sender.send(error)


class ThreadExecutor:
    """Executor with threads of this process, for items that mostly wait for a network.

    Outcomes are yielded when they are completed, not in the order of the items.
    """

    def __init__(self, workers: int, cancel: Callable[[], None]) -> None:
        self._workers = workers
        self._cancel = cancel
        self._running: set[Future[Any]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cancel()
        wait(self._running, _JOIN_TIMEOUT_S)

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, as they are completed."""
        remaining = iter(items)
        while True:
            for item in islice(remaining, self._workers - len(self._running)):
                self._running.add(in_background(partial(attempt, function, item)))
            if not self._running:
                return
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                self._running.remove(future)
                yield future.result()


def _submit(
    pool: ProcessPoolExecutor, function: Callable[..., Value], *arguments: Any
) -> "Future[Value]":
    """Submits a call. A worker that starts for it has SIGINT blocked until it ignores Ctrl-C."""
    with signals_blocked(signal.SIGINT):
        return pool.submit(function, *arguments)


@contextmanager
def signals_blocked(*numbers: signal.Signals) -> Generator[None]:
    """Blocks signals; processes that the block starts inherit the mask.

    In the main thread, a signal that another thread receives is handled after the block, too.
    """
    # The resource tracker unblocks its signals when it starts, so it is started first.
    resource_tracker.ensure_running()
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in numbers}
    is_main = threading.current_thread() is threading.main_thread()
    # Python runs a handler in the main thread, whatever its mask, when another thread has got the
    # signal. A worker that is being started then would get half a message, and print a traceback.
    deferred = {n: handler for n, handler in handlers.items() if is_main and callable(handler)}
    for number in deferred:
        signal.signal(number, lambda number, _: received.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in deferred.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the mount of Linux, not a temporary file


@cache
def check_semaphores() -> None:
    """Raises EnvironmentProblem if worker processes cannot share locks with this one."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise EnvironmentProblem(
            f"{SHARED_MEMORY}: cannot be used by worker processes: {error.strerror}",
            hint="mount it writable (`docker run --shm-size 8g`), or work in one process: "
            "--workers 1, for training --data.num-workers 0",
            code="environment.hardware",
        ) from None


def default_workers() -> int:
    """Number of processors that this process may use."""
    return machine.processors()


def attempt(function: Callable[[Item], Value], item: Item) -> Outcome[Item, Value]:
    """Calls `function(item)`; an exception becomes the error of the outcome."""
    try:
        return Outcome(item, value=function(item))
    except VlatoolError as error:
        return Outcome(item, error=error)
    except OSError as error:  # from reading: writing raises StorageError
        problem = DataError(
            f"{_name(item)}: cannot be read: {error.filename or ''}: {error.strerror or error}",
            hint="check that it exists and is readable, then run the same command again",
            code="data.broken",
            details={"path": str(error.filename or "")},
        )
        return Outcome(item, error=problem)
    except UnicodeEncodeError as error:
        return Outcome(item, error=name_error(error))
    except Exception as error:  # noqa: BLE001 - the error of an item must not stop the others
        place = plugin_place(error)
        hint = "this is a bug in vlatool; --json and .vlatool/run.json show the traceback"
        if place:
            hint = (
                f"this is a bug of the plugin, at {place}; check_reader of vlatool.testing finds it"
            )
        problem = BugError(
            f"{_name(item)}: {type(error).__name__}: {error}",
            hint=hint,
            code=BugError.unexpected,
            details={"traceback": _calls(error)},
        )
        return Outcome(item, error=problem)


def _calls(error: BaseException) -> list[str]:
    """Lines of the traceback without paths of this machine: `module:12 function: line`."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [
        f"{frame.f_globals.get('__name__', '?')}:{call.lineno} {call.name}: {call.line}"
        for frame, call in zip(frames, traceback.extract_tb(error.__traceback__), strict=True)
    ]


def _attempt_result(function: Callable[[Item], Value], item: Item) -> "_Result[Value]":
    """Result of `attempt` without the item, which the driver already has."""
    outcome = attempt(function, item)
    return outcome.value, outcome.error


def _name(item: object) -> str:
    """Name of an item in messages; never the representation of an object."""
    names = (getattr(item, key, None) for key in ("id", "stem", "name"))
    plain = item if isinstance(item, str | int) else "an item"
    return str(next(filter(None, names), plain))


def worker_died(item: object) -> DataError:
    """Error of an item whose workers died in each attempt."""
    return DataError(
        f"{_name(item)}: the worker process died in each attempt on this item",
        hint="it may need more memory than available: try --workers 1; a script that calls vlatool"
        ' needs `if __name__ == "__main__":`',
        code="data.incomplete",
    )


def _is_done(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _start() -> None:
    """Does nothing; its submission makes a worker start."""


def start_process(preload: Sequence[str] = ()) -> None:
    """Initializes a worker: ignores what the driver handles, and ends with the driver."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    end_with_driver()
    for module in preload:
        load_early(module)


def end_with_driver() -> None:
    """Makes this process exit when its driver ends; a killed driver cannot stop its workers."""
    driver = multiprocessing.parent_process()

    def exit_after_driver() -> None:
        if driver is not None:
            driver.join()
            os._exit(1)

    threading.Thread(target=exit_after_driver, daemon=True).start()


def _stop(pool: ProcessPoolExecutor) -> None:
    """Ends the pool without waiting for queued items."""
    # None once the pool has ended, which Ctrl-C may have interrupted before.
    started: dict[int, multiprocessing.Process] = getattr(pool, "_processes", None) or {}
    processes = list(started.values())
    results = getattr(pool, "_result_queue", None)
    thread: threading.Thread | None = getattr(pool, "_executor_manager_thread", None)
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_JOIN_TIMEOUT_S)
    # The thread of the pool may wait for the rest of a message whose sender has ended. It only gets
    # an end of file when this end of the pipe is closed, and the interpreter joins the thread.
    writer = getattr(results, "_writer", None)
    if writer is not None:
        with suppress(OSError):
            writer.close()
    # The interpreter wakes the thread when it ends, and prints a traceback if the thread has just
    # closed its pipe.
    if thread is not None:
        thread.join(_JOIN_TIMEOUT_S)
