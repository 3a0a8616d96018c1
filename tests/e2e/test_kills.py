"""Some runs of `python -m tests.kills`: a killed and repeated command gives the same output.

One command of each way to write: the others share it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    *("preprocess", "stats compute", "encode", "train"),
    *("sample spartan", "preprocess --overwrite", "preprocess images"),
    *("stats merge over an earlier one", "build-dataset --lines-per-file", "export of codes"),
    *("tokenizer fit-fast --overwrite", "download", "download --raw", "train --overwrite"),
    *("preprocess --no-keep-episodes", "preprocess to S3", "sample hdf5", "decode"),
    *("tokenizer export", "eval open-loop", "eval rollout"),
    *("train --remote-sync", "train --remote-sync on a new machine"),
)
CASES = 2  # of each command


@pytest.mark.slow  # the contract checks of sinks and jobs have kills, too
@pytest.mark.timeout(600)
def test_killed_and_repeated_command_gives_the_same_output() -> None:
    command = [sys.executable, "-m", "tests.kills", "--sample", str(CASES), *COMMANDS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=580, cwd=Path(__file__).parents[2]
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES * len(COMMANDS)} runs ended" in done.stdout
