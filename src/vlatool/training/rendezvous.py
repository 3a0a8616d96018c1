"""Brings the processes of a run together: each waits here until all have arrived.

Torch alone would wait for two hours, and handle no signals meanwhile.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from threading import Thread

from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] - it is public
)

from vlatool.errors import EnvironmentProblem

_GRACE_S = 2.0  # for torch to raise its own error, which says more
_DEFAULT_PORT = "29500"  # torch's default


def meet(environ: Mapping[str, str], limit_s: float) -> object:
    """Waits until all ranks of a run have arrived; returns what rank 0 keeps until they are
    connected.

    `environ`: variables of a launcher (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Raises:
        EnvironmentProblem: A variable is missing, a port is taken, or a rank does not arrive.
    """
    try:
        rank = int(environ["RANK"])
        size = int(environ["WORLD_SIZE"])
        host, port = _address(environ)
    except (KeyError, ValueError) as error:
        what = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        raise EnvironmentProblem(
            f"WORLD_SIZE is {environ.get('WORLD_SIZE')}, but the ranks cannot meet: {what}",
            hint="set RANK, MASTER_ADDR and MASTER_PORT (host and port of rank 0) on all machines, "
            "start with torchrun or srun, or unset WORLD_SIZE to train in one process",
            code="environment.process_failed",
        ) from None
    # The agent of torchrun keeps a store itself, with the ranks of attempts before this one.
    has_store = rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    limit = timedelta(seconds=limit_s)
    outcome: list[object] = []

    def wait() -> None:
        try:
            # Torch opens it again.
            store = TCPStore(
                host, port, None, has_store, limit, wait_for_workers=False, multi_tenant=True
            )
            all_are_here = f"vlatool/all/{attempt}"
            if store.add(f"vlatool/came/{attempt}", 1) == size:
                store.set(all_are_here, "1")
            store.wait([all_are_here], limit)
            outcome.append(store)
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            outcome.append(error)

    # In a thread, because Python handles signals only in the main thread.
    thread = Thread(target=wait, daemon=True, name="vlatool-rendezvous")
    thread.start()
    thread.join(limit_s + _GRACE_S)
    result = outcome[0] if outcome else TimeoutError(f"no answer in {limit_s:g} s")
    if isinstance(result, Exception):
        reason = str(result).strip().partition("\n")[0] or type(result).__name__
        raise EnvironmentProblem(
            f"rank {rank} of {size} cannot meet the others at {host}:{port}: {reason}",
            hint="start all ranks, and set MASTER_ADDR and MASTER_PORT on all machines to the "
            "machine of rank 0 and a free port of it, which a firewall must let through; "
            "distributed.start_timeout is the number of seconds",
            code="environment.process_failed",
            details={"rank": rank, "address": host, "port": port},
        ) from result
    return result


def _address(environ: Mapping[str, str]) -> tuple[str, int]:
    return environ["MASTER_ADDR"], int(environ.get("MASTER_PORT", _DEFAULT_PORT))


def connected(limit: timedelta) -> TCPStore:
    """A connection to the store of ranks that have met."""
    host, port = _address(os.environ)
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
