"""Work beside the caller, on threads that never keep the process alive."""

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
    """Daemon threads that wait for more work for a while before they end."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()

    def give(self, work: Callable[[], None]) -> None:
        """Has it done by a thread that waits, or by another one."""
        with self._lock:
            is_awaited = self._idle > 0
            self._idle -= is_awaited
        if is_awaited:
            self._work.put(work)
        else:
            threading.Thread(
                target=self._run, args=(work,), daemon=True, name="vlatool-storage"
            ).start()

    def _run(self, work: Callable[[], None]) -> None:
        work()
        while True:
            with self._lock:
                self._idle += 1
            try:
                work = self._work.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                work = self._work.get()  # given a moment ago
            work()


@cache
def _crew(_pid: int) -> _DaemonPool:
    """Of this process; the threads of a parent are not in its children."""
    return _DaemonPool()


def in_background(work: Callable[[], T]) -> "Future[T]":
    """Starts `work` on a daemon thread.

    The threads of an executor are waited for when the interpreter ends: a request that is being
    retried would hold up Ctrl-C for as long as the outage lasts.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the result
            future.set_exception(error)
        else:
            future.set_result(result)

    _crew(os.getpid()).give(run)
    return future


def in_parallel(
    work: Callable[[Item], T], items: Iterable[Item], max_concurrent: int
) -> Iterator[T]:
    """What `work` makes of each item, in their order; `at_once` are worked on or wait."""
    waiting = iter(items)
    running = deque(in_background(partial(work, item)) for item in islice(waiting, max_concurrent))
    while running:
        result = running.popleft().result()
        running.extend(in_background(partial(work, item)) for item in islice(waiting, 1))
        yield result
