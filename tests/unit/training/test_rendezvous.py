"""Start of several ranks: where each waits, until when, and what ends it."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from threading import Thread
from types import FrameType

import pytest
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] - it is public
)

from tests.builders.errors import fails
from vlatool.errors import VlatoolError
from vlatool.training.rendezvous import meet


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def listener() -> Iterator[int]:
    """Port of a program that is no rank."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        yield taken.getsockname()[1]


@contextmanager
def refused(message: str) -> Iterator[pytest.ExceptionInfo[VlatoolError]]:
    with fails("environment.process_failed", 6) as caught:
        yield caught
    assert message in caught.value.message


def variables(rank: int, port: int, world_size: int = 2, host: str = "127.0.0.1") -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


@pytest.mark.parametrize(
    ("rank", "host"),
    [(1, "127.0.0.1"), (1, "no.such.host.invalid"), (0, "127.0.0.1")],
    ids=["rank 0 is not up", "wrong address", "a rank never comes"],
)
def test_rank_that_waits_too_long_says_where(rank: int, host: str, port: int) -> None:
    began = time.monotonic()
    with refused(f"rank {rank} of 2 cannot meet the others at {host}:{port}") as caught:
        meet(variables(rank, port, host=host), 0.5)
    assert time.monotonic() - began < 5
    assert "distributed.start_timeout" in caught.value.hint


@pytest.mark.parametrize("rank", [0, 1])
def test_port_of_another_program_is_named(rank: int, listener: int) -> None:
    with refused(f"127.0.0.1:{listener}"):
        meet(variables(rank, listener), 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": None}, "'MASTER_ADDR' is not set"),
        ({"RANK": None}, "'RANK' is not set"),
        ({"MASTER_PORT": "first"}, "'first'"),
    ],
)
def test_missing_or_wrong_variable_is_named(
    changes: dict[str, str | None], message: str, port: int
) -> None:
    environ = {**variables(0, port), **changes}
    with refused(message):
        meet({name: text for name, text in environ.items() if text is not None}, 60.0)


def test_ranks_meet(port: int) -> None:
    met: Queue[object] = Queue()
    for rank in (1, 0, 2):
        waiting = variables(rank, port, world_size=3)
        Thread(target=lambda environ=waiting: met.put(meet(environ, 20.0)), daemon=True).start()
    assert all(met.get(timeout=15.0) for _ in range(3))


def test_ranks_that_torchrun_starts_again_meet_again(port: int) -> None:
    """The agent keeps its store, in which the ranks of the first attempt have come."""
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for attempt in ("0", "1"):
        environ = {
            **variables(0, port, world_size=1),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": attempt,
        }
        assert meet(environ, 10.0)
    del agent


class SignaledError(Exception):
    pass


@pytest.mark.parametrize("rank", [0, 1])
def test_signal_ends_the_wait_at_once(rank: int, port: int) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        raise SignaledError

    before = signal.signal(signal.SIGUSR1, handle)
    Thread(target=lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGUSR1))).start()
    began = time.monotonic()
    try:
        with pytest.raises(SignaledError):
            meet(variables(rank, port), 60.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 2.0
