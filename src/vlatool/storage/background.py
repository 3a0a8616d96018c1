"""Work beside the caller, on threads that never keep the process alive."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

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
