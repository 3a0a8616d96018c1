"""Brings the processes of a run together: each waits here until all have arrived.

Torch alone would wait for two hours, and handle no signals meanwhile.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread

from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] - it is public
)

from vlatool.errors import EnvironmentProblem

_POLL_S = 0.1
_GRACE_S = 2.0  # for torch to raise its own error, which says more
_DEFAULT_PORT = "29500"  # torch's default


@dataclass(frozen=True)
class _Rank:
    """This process as its launcher describes it."""

    number: int
    world_size: int
    host: str  # of rank 0
    port: int
    has_store: bool  # this process keeps the store; with torchrun, its agent does
    attempt: str  # of torchrun, which starts ranks again and keeps its store

    def problem(self, reason: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"rank {self.number} of {self.world_size} cannot meet the others at "
            f"{self.host}:{self.port}: {reason}",
            hint="start all ranks, and set MASTER_ADDR and MASTER_PORT on all machines to the "
            "machine of rank 0 and a free port of it, which a firewall must let through; "
            "distributed.start_timeout is the number of seconds",
            code="environment.process_failed",
            details={"rank": self.number, "address": self.host, "port": self.port},
        )


def meet(environ: Mapping[str, str], limit_s: float) -> object:
    """Waits until all ranks of a run have arrived; returns what rank 0 keeps until they are
    connected.

    `environ`: variables of a launcher (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Raises:
        EnvironmentProblem: A variable is missing, a port is taken, or a rank does not arrive.
    """
    rank = _rank(environ)
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(_met(rank, timedelta(seconds=limit_s)))
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            outcome.append(error)

    # In a thread, because Python handles signals only in the main thread.
    thread = Thread(target=wait, daemon=True, name="vlatool-rendezvous")
    thread.start()
    end = time.monotonic() + limit_s + _GRACE_S
    while thread.is_alive() and time.monotonic() < end:
        thread.join(_POLL_S)
    if not outcome:
        raise rank.problem(f"no answer in {limit_s:g} s")
    if isinstance(outcome[0], Exception):
        reason = str(outcome[0]).strip().partition("\n")[0]
        raise rank.problem(reason or type(outcome[0]).__name__) from outcome[0]
    return outcome[0]


def _rank(environ: Mapping[str, str]) -> _Rank:
    try:
        number = int(environ["RANK"])
        return _Rank(
            number,
            int(environ["WORLD_SIZE"]),
            environ["MASTER_ADDR"],
            int(environ.get("MASTER_PORT", _DEFAULT_PORT)),
            has_store=number == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )
    except (KeyError, ValueError) as error:
        what = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        raise EnvironmentProblem(
            f"WORLD_SIZE is {environ.get('WORLD_SIZE')}, but the ranks cannot meet: {what}",
            hint="set RANK, MASTER_ADDR and MASTER_PORT (host and port of rank 0) on all machines, "
            "start with torchrun or srun, or unset WORLD_SIZE to train in one process",
            code="environment.process_failed",
        ) from None


def _met(rank: _Rank, limit: timedelta) -> TCPStore:
    store = TCPStore(
        rank.host,
        rank.port,
        is_master=rank.has_store,
        wait_for_workers=False,
        timeout=limit,
        multi_tenant=True,  # torch opens it again
    )
    # The store of torchrun keeps the ranks of earlier attempts.
    all_are_here = f"vlatool/all/{rank.attempt}"
    if store.add(f"vlatool/came/{rank.attempt}", 1) == rank.world_size:
        store.set(all_are_here, "1")
    store.wait([all_are_here], limit)
    return store
