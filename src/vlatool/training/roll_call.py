"""Roll call of the ranks of a run: which of them do not answer when a collective times out."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar

import torch.distributed as dist

# Ranks time out within moments of each other; a slow one may be a few seconds late.
_GRACE_S = 5.0
_POLL_S = 0.05
_FAILED, _HERE, _DONE = "failed", "here", "done"


T = TypeVar("T")


class RollCall:
    """A store of all ranks, apart from the collectives that may hang.

    `rank`: index of this rank; `world_size`: number of ranks; `broadcast`: returns the value of
    rank 0 on every rank. Collective.

    Rank 0 holds it, at a port that the system chooses.
    """

    def __init__(self, rank: int, world_size: int, broadcast: Callable[[Any], Any]) -> None:
        self._rank, self._world_size = rank, world_size
        timeout = timedelta(seconds=_GRACE_S)
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        port = 0 if rank == 0 else broadcast(None)
        self._store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage] - it is public
            host, port, is_master=rank == 0, wait_for_workers=False, timeout=timeout
        )
        if rank == 0:
            broadcast(self._store.port)

    def missing(self) -> list[int]:
        """Ranks that do not answer within seconds, after a collective of this one timed out.

        Rank 0 holds the store: where it does not answer, it is the only one that is named.
        """
        return _in_time(self._missing, default=[0])

    def _missing(self) -> list[int]:
        everyone = range(self._world_size)
        self._store.set(_FAILED, "")
        self._store.set(f"{_HERE}{self._rank}", "")
        missing = self._wait(_HERE, everyone)
        self._store.set(f"{_DONE}{self._rank}", "")
        if self._rank == 0:  # the others still ask its store
            self._wait(_DONE, [rank for rank in everyone if rank not in missing])
        return missing

    def has_failed(self) -> bool:
        """True if a collective of another rank has timed out, which then closes connections."""
        return _in_time(lambda: self._store.check([_FAILED]), default=False)

    def _wait(self, key: str, ranks: Sequence[int]) -> list[int]:
        """Waits until all of the ranks have set a key; returns those that have not in time."""
        until = time.monotonic() + _GRACE_S
        while missing := [rank for rank in ranks if not self._store.check([f"{key}{rank}"])]:
            if time.monotonic() >= until:
                break
            time.sleep(_POLL_S)
        return missing


def _in_time(ask: Callable[[], T], *, default: T) -> T:
    """The answer of the store; `default` if it has failed, or does not answer in time.

    A request to a process that is stopped, or to a machine that is lost, would wait for ever.
    """
    answers: list[T] = []

    def run() -> None:
        with suppress(RuntimeError):
            answers.append(ask())

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(3 * _GRACE_S)
    return answers[0] if answers else default
