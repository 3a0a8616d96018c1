"""Start of several ranks: who waits for whom, until when, and what ends it."""

import logging
import signal
import socket
import subprocess
import sys
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
from vlatool.errors import EnvironmentProblem, VlatoolError
from vlatool.training import rendezvous
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
    ("rank", "host", "message"),
    [
        (1, "127.0.0.1", "rank 1 of 2 waited 0.5 s for rank 0 at 127.0.0.1:{port} (Connection"),
        (1, "no.such.host.invalid", "for rank 0 at no.such.host.invalid:{port} ("),
        (0, "127.0.0.1", "rank 0 of 2 waited 0.5 s for rank 1 (at 127.0.0.1:{port})"),
    ],
    ids=["rank 0 is not up", "wrong address", "a rank never comes"],
)
def test_rank_that_waits_too_long_says_for_whom_and_where(
    rank: int, host: str, message: str, port: int
) -> None:
    with refused(message.format(port=port)) as caught:
        meet(variables(rank, port, host=host), 0.5)
    assert "distributed.start_timeout" in caught.value.hint


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "another process here uses port {port}"),
        (1, "127.0.0.1:{port} accepts connections, but does not answer as it"),
    ],
)
def test_port_of_another_program_is_named(rank: int, message: str, listener: int) -> None:
    with refused(message.format(port=listener)):
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


def test_ranks_meet_and_one_that_comes_twice_is_refused(port: int) -> None:
    """Which of the two is refused does not matter: the other one stays."""
    outcomes: Queue[tuple[int, Exception | None]] = Queue()

    def come(rank: int) -> None:
        try:
            meet(variables(rank, port, world_size=3), 20.0)
            outcomes.put((rank, None))
        except EnvironmentProblem as error:
            outcomes.put((rank, error))

    for rank in (0, 1, 1):
        Thread(target=come, args=(rank,), daemon=True).start()
    rank, error = outcomes.get(timeout=15.0)
    assert rank == 1
    assert isinstance(error, EnvironmentProblem)
    assert "rank 1 of 3 is at 127.0.0.1" in error.message
    come(2)
    assert sorted(outcomes.get(timeout=10.0)[0] for _ in range(3)) == [0, 1, 2]


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


def test_agent_of_torchrun_has_the_store(port: int) -> None:
    environ = {**variables(0, port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with refused("rank 0 of 2 waited 0.5 s for rank 0 at"):
        meet(environ, 0.5)


def test_end_of_rank_0_ends_the_wait_of_the_others(port: int) -> None:
    script = f"from vlatool.training.rendezvous import meet; meet({variables(0, port, 3)!r}, 60.0)"
    first = subprocess.Popen([sys.executable, "-c", script])
    caught: list[EnvironmentProblem] = []

    def wait() -> None:
        try:
            meet(variables(1, port, 3), 60.0)
        except EnvironmentProblem as error:
            caught.append(error)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    while True:  # until rank 0 listens
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    time.sleep(1.5)
    first.kill()
    first.wait()
    thread.join(10.0)
    assert "rank 1 of 3 was waiting for rank 2" in caught[0].message
    assert "rank 0 ended" in caught[0].message


class SignaledError(Exception):
    pass


@pytest.mark.parametrize("rank", [0, 1])
def test_signal_ends_the_wait_at_once_after_lines_that_say_for_whom(
    rank: int,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        raise SignaledError

    monkeypatch.setattr(rendezvous, "_LINE_EVERY_S", 0.3)
    before = signal.signal(signal.SIGUSR1, handle)
    Thread(target=lambda: (time.sleep(0.8), signal.raise_signal(signal.SIGUSR1))).start()
    began = time.monotonic()
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(SignaledError):
            meet(variables(rank, port), 60.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 2.0
    lines = [f"rank {rank} of 2 waits for rank {1 - rank}" in text for text in caplog.messages]
    assert lines == [True, True]
