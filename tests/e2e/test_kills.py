"""Some runs of `python -m tests.kills`: a killed and repeated command gives the same output."""

import subprocess
import sys
from pathlib import Path

import pytest

# Each group imports everything and makes the inputs once.
GROUPS = {
    "first": ("preprocess", "stats compute", "encode", "train"),
    "jobs": (
        "sample spartan",
        "preprocess --overwrite",
        "preprocess images",
        "stats merge over an earlier one",
        "build-dataset --lines-per-file",
        "export of codes",
        "tokenizer fit-fast --overwrite",
        "tokenizer train",
        "resolve-config --output",
        "inspect --html",
        "download",
        "download --raw",
        "train --overwrite",
        "eval rollout",
    ),
    "others": (
        "preprocess --no-keep-episodes",
        "preprocess to S3",
        "preprocess mcap",
        "sample hdf5",
        "sample rlds",
        "preprocess zarr",
        "preprocess libero --overwrite",
        "decode",
        "tokenizer eval",
        "tokenizer export",
        "eval open-loop",
    ),
    "machines": ("train --remote-sync", "train --remote-sync on a new machine"),
}
CASES = {"first": 2, "jobs": 2, "others": 3, "machines": 3}  # of each command


@pytest.mark.slow  # the contract checks of sinks and jobs have kills, too
@pytest.mark.parametrize("group", GROUPS)
def test_killed_and_repeated_command_gives_the_same_output(group: str) -> None:
    command = [sys.executable, "-m", "tests.kills", "--sample", str(CASES[group]), *GROUPS[group]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2]
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES[group] * len(GROUPS[group])} runs ended" in done.stdout
