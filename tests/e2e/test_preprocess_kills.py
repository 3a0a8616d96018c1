"""`kill -9` at any time: the same command resumes and ends with the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.preprocessing import contents

VLATOOL = [sys.executable, "-m", "vlatool"]
KILLS = 10


@pytest.mark.slow
def test_repeatedly_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    sample = [*VLATOOL, "sample", "spartan", raw, "--episodes", "16", "--frames", "30", "-q"]
    subprocess.run(sample, check=True, capture_output=True)

    def command(output: Path) -> list[str | Path]:
        return [*VLATOOL, "preprocess", "spartan", raw, "-o", output, "--samples-per-shard", "20"]

    subprocess.run(command(tmp_path / "undisturbed"), check=True, capture_output=True)
    rng = random.Random(os.environ.get("VLATOOL_KILL_SEED", "7"))
    for number in range(KILLS):  # with or without its workers
        with subprocess.Popen(
            command(output), stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            time.sleep(rng.uniform(0.3, 2.5))
            if process.poll() is None:
                (os.killpg if number % 2 == 0 else os.kill)(process.pid, signal.SIGKILL)

    done = subprocess.run(command(output), capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(tmp_path / "undisturbed")
    assert not (output / ".vlatool/journal").exists()
    assert not list(output.rglob(".*.partial"))
