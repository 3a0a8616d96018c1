"""Some runs of `python -m tests.kills`: a killed and repeated command gives the same output."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    *("preprocess", "stats compute", "encode", "train"),
    *("sample spartan", "preprocess --overwrite", "preprocess images"),
    *("stats merge over an earlier one", "build-dataset --lines-per-file", "export of codes"),
    *("tokenizer fit-fast --overwrite", "tokenizer train", "resolve-config --output"),
    *("inspect --html", "download", "download --raw", "train --overwrite", "eval rollout"),
    *("preprocess --no-keep-episodes", "preprocess to S3", "sample hdf5", "sample rlds"),
    *("preprocess libero --overwrite", "decode", "tokenizer eval", "tokenizer export"),
    *("eval open-loop", "train --remote-sync", "train --remote-sync on a new machine"),
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
