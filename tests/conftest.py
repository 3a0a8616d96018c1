"""One thread per process: tiny tensors are slower on several, and bits depend on their number."""

import os


def pytest_configure() -> None:
    """Before torch is imported, and for every process that a test starts."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
