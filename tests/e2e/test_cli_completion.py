"""Shell completion, asked as a shell asks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VLATOOL = str(Path(sys.executable).parent / "vlatool")


def complete(line: str) -> list[str]:
    words = line.split(" ")
    env = {
        **os.environ,
        "_VLATOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run([VLATOOL], capture_output=True, text=True, check=True, env=env)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vlatool pre", {"preprocess", "presets"}),
        ("vlatool eval ", {"open-loop", "rollout"}),
        ("vlatool --json doc", {"doctor"}),
        ("vlatool plugins --jso", {"--json", "--jsonl"}),
        ("vlatool preprocess ", {"spartan", "lerobot"}),
        ("vlatool preprocess le", {"lerobot"}),
        ("vlatool preprocess --output out --overwrite=yes le", {"lerobot"}),
        ("vlatool preprocess lerobot --obs", {"--observation-keys"}),
        ("vlatool train --model.type diff", {"diffusion_policy"}),
    ],
)
def test_completion(line: str, expected: set[str]) -> None:
    assert expected <= set(complete(line))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_can_be_shown_for_a_named_shell(shell: str) -> None:
    done = subprocess.run(
        [VLATOOL, "--show-completion", shell], capture_output=True, text=True, check=True
    )
    assert "_VLATOOL_COMPLETE" in done.stdout
