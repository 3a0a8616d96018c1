"""One thread per process: tiny tensors are slower on several, and bits depend on their number."""

import os
import signal


def pytest_configure() -> None:
    """Before torch is imported, and for every process that a test starts."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A shell that runs things in the background may have it ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
