"""Background threads that never keep the process alive."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import cache, partial
from itertools import islice
from typing import TypeVar

_IDLE_S = 10.0

Item = TypeVar("Item")
T = TypeVar("T")


class _DaemonPool:
    """Pool of daemon threads, which end when they are idle for 10 s."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], None]) -> None:
        """Runs `work` on an idle thread, or on a new one."""
        with self._lock:
            is_waiting = self._idle > 0
            self._idle -= is_waiting
        self._work.put(work)  # not an argument of the thread, which would hold its result
        if not is_waiting:
            threading.Thread(target=self._run, daemon=True, name="vlatool-storage").start()

    def _run(self) -> None:
        work = self._work.get()
        while True:
            work()
            del work
            with self._lock:
                self._idle += 1
            try:
                work = self._work.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                work = self._work.get()  # submitted after the timeout


@cache
def _daemon_pool(_pid: int) -> _DaemonPool:
    """Pool of this process; a forked child does not have the threads of its parent."""
    return _DaemonPool()


def in_background(work: Callable[[], T]) -> "Future[T]":
    """Runs `work` on a daemon thread.

    `concurrent.futures` joins its threads when the interpreter exits: a request that is being
    retried would then delay Ctrl-C until the end of the outage.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised by `future.result()`
            future.set_exception(error)
        else:
            future.set_result(result)

    _daemon_pool(os.getpid()).submit(run)
    return future


def in_parallel(
    work: Callable[[Item], T], items: Iterable[Item], max_concurrent: int
) -> Iterator[T]:
    """Yields `work(item)` for each item, in order; up to `max_concurrent` results are in flight."""
    remaining = iter(items)
    running = deque(
        in_background(partial(work, item)) for item in islice(remaining, max_concurrent)
    )
    while running:
        result = running.popleft().result()
        running.extend(in_background(partial(work, item)) for item in islice(remaining, 1))
        yield result
