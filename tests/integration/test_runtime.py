"""Three ranks of which one hangs."""

import os
import socket
import subprocess
import sys

import pytest

# One process forks after the imports, so that all ranks join the group at the same time.
SCRIPT = """
import os, signal, time
import torch
from vlatool.errors import EnvironmentProblem
from vlatool.training.config import TrainConfig
from vlatool.training.config import DistributedConfig
from vlatool.training.runtime import Runtime

# Rank 0 is this process; two children are the others.
children = []
for rank in ("1", "2"):
    children.append(os.fork())
    if not children[-1]:
        break
else:
    rank = "0"
os.environ["RANK"] = os.environ["LOCAL_RANK"] = rank
runtime = Runtime(TrainConfig(distributed=DistributedConfig(timeout=2)))
try:
    with runtime.waiting():
        runtime.barrier()
        if runtime.rank == 1:
            time.sleep(60)
        runtime.sum(torch.ones(3))
except EnvironmentProblem as error:
    # One write, so that lines of two processes do not mix.
    os.write(1, f"{error.code} {error.details['ranks']}\\n".encode())
if runtime.rank == 0:
    os.waitpid(children[1], 0)
    os.kill(children[0], signal.SIGKILL)
os._exit(0)
"""


@pytest.mark.slow
def test_rank_that_hangs_ends_the_others_after_the_timeout() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **shared},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    expected = ["environment.process_failed [1]"] * 2  # of both that wait
    assert done.stdout.splitlines() == expected, done.stderr
