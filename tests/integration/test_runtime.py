"""Ranks of which one hangs, or is asked to stop."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

# One process forks after the imports, so that all ranks join the group at the same time.
RANKS = """
import os, signal, time
import torch
from vlatool.errors import EnvironmentProblem
from vlatool.training.config import TrainConfig
from vlatool.training.config import DistributedConfig
from vlatool.training.runtime import Runtime
from vlatool.training.trainer import StopPoll, StopRequest

# Rank 0 is this process; its children are the others.
children = []
for number in range(1, int(os.environ["WORLD_SIZE"])):
    rank = str(number)
    children.append(os.fork())
    if not children[-1]:
        break
else:
    rank = "0"
os.environ["RANK"] = os.environ["LOCAL_RANK"] = rank
"""

HANGS = """
runtime = Runtime(TrainConfig(distributed=DistributedConfig(timeout=2)))
try:
    with runtime.waiting():
        runtime.barrier()
        if runtime.rank == 1:
            time.sleep(60)
        runtime.sum(torch.ones(3))
except EnvironmentProblem as error:
    # One write, so that lines of two processes do not mix.
    os.write(1, f"{error.code}\\n".encode())
if runtime.rank == 0:
    os.waitpid(children[1], 0)
    os.kill(children[0], signal.SIGKILL)
os._exit(0)
"""


# Both are asked to stop while rank 0 works, then rank 1 alone while both validate.
STOPS = """
runtime = Runtime(TrainConfig())
said = []
with runtime.waiting():
    for _ in range(2):
        with StopRequest() as stop, runtime.main_works():
            signal.raise_signal(signal.SIGHUP)
            if runtime.is_main:
                try:
                    with stop.interrupting():
                        time.sleep(60)
                except KeyboardInterrupt:
                    said.append("interrupted")
    with StopRequest() as stop:
        poll = StopPoll(runtime, stop)
        for call in range(10_000):
            if call == 20 and not runtime.is_main:
                signal.raise_signal(signal.SIGUSR1)
            if (number := poll()) is not None:
                said.append(f"stop {number} {call}")
                break
            time.sleep(0.01)
os.write(1, f"{' '.join(said)}\\n".encode())
if runtime.rank == 0:
    os.waitpid(children[0], 0)
os._exit(0)
"""


def ranks(script: str, world_size: int) -> tuple[list[str], str]:
    """Sorted lines that the ranks print, and their stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    done = subprocess.run(
        [sys.executable, "-c", f"{RANKS}{script}"],
        env={**os.environ, **shared},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return sorted(done.stdout.splitlines()), done.stderr


@pytest.mark.slow
def test_rank_that_hangs_ends_the_others_after_the_timeout() -> None:
    expected = ["environment.lost_rank"] * 2  # of both that wait
    assert ranks(HANGS, 3)[0] == expected


def test_request_to_one_rank_stops_what_all_ranks_do_at_the_same_place() -> None:
    (first, second), stderr = ranks(STOPS, 2)
    assert (first.split()[:2], second.split()[:2]) == (["interrupted"] * 2, ["stop", "15"]), stderr
    assert first.split()[2:] == second.split()
    assert int(second.split()[-1]) >= 20


# A rank that waits in C++ for a key that no other rank sets, or that runs Python.
WAITS = """
import os, signal, sys, time
from datetime import timedelta
from torch.distributed import TCPStore
from vlatool.training import ranks
ranks._STUCK_S = 0.5
ranks.end_when_stuck(lambda: os.write(1, b"reported "))
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"handled "))
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print("waits", flush=True)
if sys.argv[1] == "in C++":
    store.wait(["never"], timedelta(seconds=20))
else:
    for _ in range(20):
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("where", "said", "code"), [("in C++", "reported ", 143), ("in Python", "handled ", 0)]
)
def test_a_stop_signal_ends_a_rank_that_waits_where_python_handles_none(
    where: str, said: str, code: int
) -> None:
    command = [sys.executable, "-c", WAITS, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "waits\n"
        time.sleep(0.7)  # until it is in C++, which Python cannot tell
        rank.send_signal(signal.SIGTERM)
        assert rank.communicate(timeout=20)[0] == said
    assert rank.returncode == code
