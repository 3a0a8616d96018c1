"""Background threads."""

import gc
import time
import weakref

from vlatool.storage.background import in_background


class Large:
    """A result that takes memory."""


def test_idle_thread_does_not_hold_the_last_result() -> None:
    reference = weakref.ref(in_background(Large).result())

    deadline = time.monotonic() + 2
    while reference() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert reference() is None
