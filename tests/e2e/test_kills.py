"""Some runs of `python -m tests.kills`: a killed and repeated command gives the same output."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = 3  # of each command
# Each group imports everything and makes the inputs once.
GROUPS = {
    "most": (
        "sample spartan",
        "preprocess",
        "preprocess --no-keep-episodes",
        "preprocess --overwrite",
        "preprocess to S3",
        "preprocess libero --overwrite",
        "preprocess images",
        "stats merge over an earlier one",
        "stats compute",
        "build-dataset --lines-per-file",
        "export of codes",
        "encode",
        "decode",
        "tokenizer fit-fast --overwrite",
        "tokenizer train",
        "tokenizer eval",
        "tokenizer export",
        "resolve-config --output",
        "inspect --html",
        "download",
        "download --raw",
        "train",
        "train --overwrite",
        "eval open-loop",
        "eval rollout",
    ),
    "machines": ("train --remote-sync", "train --remote-sync on a new machine"),
}
_SLOW = ("machines",)


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in GROUPS],
)
def test_killed_and_repeated_command_gives_the_same_output(group: str) -> None:
    command = [sys.executable, "-m", "tests.kills", "--sample", str(CASES), *GROUPS[group]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2]
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES * len(GROUPS[group])} runs ended" in done.stdout
