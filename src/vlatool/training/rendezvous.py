"""Brings the processes of a run together: each waits here until all have arrived.

Torch alone waits for two hours, without a line and without reacting to signals.
"""

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread

from torch.distributed import (
    DistNetworkError,
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] - it is public
)

from vlatool.errors import EnvironmentProblem

_LINE_EVERY_S = 60.0
_POLL_S = 0.1
_RETRY_S = 1.0
_CONNECT_S = 5.0
_ANSWER_S = 10.0  # of a store that accepts connections
_CAME = (
    "vlatool/came/{attempt}"  # key of the store, which torchrun keeps when it starts ranks again
)
_SHOWN = 8
_DEFAULT_PORT = "29500"  # torch's default

_LOGGER = logging.getLogger(__name__)


def meet(environ: Mapping[str, str], limit_s: float) -> object:
    """Waits until all ranks of a run have arrived; returns what rank 0 keeps until they are
    connected.

    `environ`: variables of a launcher (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Raises:
        EnvironmentProblem: A variable is missing, a port is taken, or a rank does not arrive.
    """
    meeting = _Meeting(_rank(environ), limit_s)
    meeting.start()
    began = time.monotonic()
    lines = 0
    while meeting.is_alive():
        meeting.join(_POLL_S)
        waited_s = time.monotonic() - began
        if waited_s > limit_s and meeting.is_alive():
            raise meeting.problem(f"waited {limit_s:g} s for {meeting.waits_for}")
        if waited_s > _LINE_EVERY_S * (lines + 1):
            lines += 1
            seconds = _LINE_EVERY_S * lines
            message = "rank %d of %d waits for %s, since %.0f s"
            rank = meeting.rank
            _LOGGER.warning(message, rank.number, rank.world_size, meeting.waits_for, seconds)
    if meeting.error is not None:
        raise meeting.error
    return meeting.store


@dataclass(frozen=True)
class _Rank:
    """This process as its launcher describes it."""

    number: int
    world_size: int
    host: str  # of rank 0
    port: int
    has_store: bool  # this process keeps the store; with torchrun, its agent does
    attempt: str  # of torchrun, which starts ranks again and keeps its store


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


class _Meeting(Thread):
    """Thread for everything that blocks, because Python handles signals only in the main thread."""

    def __init__(self, rank: _Rank, limit_s: float) -> None:
        super().__init__(daemon=True, name="vlatool-rendezvous")
        self.rank = rank
        self.waits_for = "itself"
        self.hint = ""
        self.error: Exception | None = None
        self.store: object = None
        self._limit = timedelta(seconds=limit_s)
        self._came = _CAME.format(attempt=rank.attempt)

    def problem(self, what: str, hint: str = "") -> EnvironmentProblem:
        return EnvironmentProblem(
            f"rank {self.rank.number} of {self.rank.world_size} {what}",
            hint=hint or f"{self.hint}; distributed.start_timeout is the number of seconds",
            code="environment.process_failed",
            details={
                "rank": self.rank.number,
                "address": self.rank.host,
                "port": self.rank.port,
            },
        )

    def run(self) -> None:
        try:
            self.store = store = self._hosted() if self.rank.has_store else self._joined()
            self._wait_for_all(store)
        except DistNetworkError:
            self.error = self.problem(
                f"was waiting for {self.waits_for} when rank 0 ended",
                "read the error of rank 0, then start all ranks again",
            )
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            self.error = error

    def _hosted(self) -> TCPStore:
        self.waits_for = f"its own address {self.rank.host}:{self.rank.port}, which does not answer"
        self.hint = "set MASTER_ADDR on all machines to the address of the machine of rank 0"
        try:
            return self._connected(is_master=True, timeout=self._limit)
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error):
                raise
            raise self.problem(
                f"cannot wait for the others: another process here uses port {self.rank.port}",
                "set MASTER_PORT on all machines to a free port, or end that process",
            ) from None

    def _joined(self) -> TCPStore:
        """Connects to the store of rank 0 as soon as it exists."""
        address = f"{self.rank.host}:{self.rank.port}"
        self.hint = (
            "start rank 0, and set MASTER_ADDR and MASTER_PORT to its machine and port on all "
            "machines; a firewall must let them through"
        )
        while True:
            try:
                with socket.create_connection((self.rank.host, self.rank.port), timeout=_CONNECT_S):
                    self.waits_for = (
                        f"rank 0: {address} accepts connections, but does not answer as it"
                    )
                return self._connected(is_master=False, timeout=timedelta(seconds=_ANSWER_S))
            except OSError as error:
                self.waits_for = f"rank 0 at {address} ({error.strerror or error})"
            except RuntimeError:  # another program has the port
                pass
            time.sleep(_RETRY_S)

    def _connected(self, *, is_master: bool, timeout: timedelta) -> TCPStore:
        return TCPStore(
            self.rank.host,
            self.rank.port,
            is_master=is_master,
            wait_for_workers=False,
            timeout=timeout,
            multi_tenant=True,  # torch opens it again
        )

    def _wait_for_all(self, store: TCPStore) -> None:
        self.hint = "start those ranks, or end this run"
        # One step of the store: of two that come at once, one is the second.
        if store.add(f"{self._came}/{self.rank.number}", 1) > 1:
            raise self.problem(
                f"is at {self.rank.host}:{self.rank.port} already",
                "give each process its own RANK, and each run its own MASTER_PORT",
            )
        store.append(self._came, f"{self.rank.number} ")  # pyright: ignore[reportAttributeAccessIssue] - no stub
        while missing := sorted({*range(self.rank.world_size)} - self._ranks_that_came(store)):
            word = "rank" if len(missing) == 1 else "ranks"
            shown = ", ".join(map(str, missing[:_SHOWN]))
            more = "" if len(missing) <= _SHOWN else f" and {len(missing) - _SHOWN} others"
            self.waits_for = f"{word} {shown}{more} (at {self.rank.host}:{self.rank.port})"
            time.sleep(_POLL_S * max(1.0, self.rank.world_size / 32))

    def _ranks_that_came(self, store: TCPStore) -> set[int]:
        return set(map(int, store.get(self._came).split()))
