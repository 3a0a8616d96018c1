"""Construction of an executor from options."""

from collections.abc import Sequence
from typing import Literal

from vlatool.parallel.executor import (
    Executor,
    ProcessExecutor,
    SerialExecutor,
    default_workers,
)

Engine = Literal["local", "ray"]


def make_executor(
    workers: int | None,
    *,
    engine: Engine = "local",
    ray_address: str | None = None,
    preload: Sequence[str] = (),
) -> Executor:
    """Creates an executor; one local worker needs no process pool.

    Args:
        workers: Number of processes; None for one per processor (with Ray: of the cluster).
        engine: `local` or `ray`.
        ray_address: Cluster to join; None starts a private one on this machine.
        preload: Modules that local workers import when they start.
    """
    if engine == "ray":
        from vlatool.parallel.ray_executor import RayExecutor

        return RayExecutor(workers=workers, address=ray_address)
    count = workers or default_workers()
    return SerialExecutor() if count <= 1 else ProcessExecutor(count, preload)
