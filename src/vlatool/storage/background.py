"""Work beside the caller, on threads that never keep the process alive."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


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

    threading.Thread(target=run, daemon=True, name="vlatool-storage").start()
    return future


def in_parallel(work: Callable[[Item], T], items: Iterable[Item], at_once: int) -> Iterator[T]:
    """What `work` makes of each item, in their order; `at_once` are worked on or wait."""
    waiting = iter(items)
    running = deque(in_background(partial(work, item)) for item in islice(waiting, at_once))
    while running:
        result = running.popleft().result()
        running.extend(in_background(partial(work, item)) for item in islice(waiting, 1))
        yield result
