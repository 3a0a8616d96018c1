"""Shell completion, requested as a shell does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.forks import Forks
from vlatool.config.presets import builtin_root, list_presets

VLATOOL = str(Path(sys.executable).parent / "vlatool")


def presets_of(*kinds: str) -> set[str]:
    return {preset.name for preset in list_presets([builtin_root()]) if preset.kind in kinds}


def complete(light: Forks, line: str) -> list[str]:
    """Completions in bash, which makes a word of each `=`."""
    words = [part for word in line.split(" ") for part in re.split("(=)", word) if part or not word]
    variables = {
        "_VLATOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = light.run([], environment=variables)
    assert done.code == 0
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vlatool pre", {"preprocess", "presets"}),
        ("vlatool eval ", {"open-loop", "rollout"}),
        ("vlatool --json doc", {"doctor"}),
        ("vlatool plugins --jso", {"--json", "--jsonl"}),
        ("vlatool preprocess ", {"spartan", "lerobot"}),
        ("vlatool preprocess --output=out --overwrite le", {"lerobot"}),
        ("vlatool preprocess lerobot --obs", {"--observation-keys"}),
        ("vlatool preprocess spartan x --sink jsonl --qa", {"--qa-mode"}),
    ],
)
def test_completion(light: Forks, line: str, expected: set[str]) -> None:
    assert expected <= set(complete(light, line))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vlatool preprocess lerobot x --engine ", {"local", "ray"}),
        ("vlatool preprocess lerobot x --image_resizing_filter lan", {"lanczos", "lanczos_vips"}),
        (
            "vlatool preprocess lerobot x --sink ",
            {"lbm", "jsonl", "frames", "curation", "image-shards", "lerobot"},
        ),
        ("vlatool preprocess lerobot x --overwrite ", set()),
        ("vlatool preprocess lerobot ", set()),
        (
            "vlatool sample ",
            {"spartan", "lerobot", "libero", "hdf5", "folder"},
        ),
        ("vlatool download --task PutKiwiOnS", {"PutKiwiOnSaucer"}),
        ("vlatool eval rollout run -p rollout-w", {"rollout-world", "rollout-world-libero"}),
        (
            "vlatool eval rollout run --env vlatool/",
            {"vlatool/PickPlace-v0", "vlatool/PickPlaceLibero-v0"},
        ),
        ("vlatool presets sh", {"show"}),
        ("vlatool presets show world-p", {"world-pick"}),
        ("vlatool preprocess spartan x --sink=js", {"jsonl"}),
        ("vlatool train --data hp", set()),
        ("vlatool preprocess lerobot x --preset ", presets_of("preprocess")),
        (
            "vlatool train -p ",
            presets_of("runs", "models", "models/denoisers", "data", "hparams", "rollouts"),
        ),
        ("vlatool sample spartan out -p ", set()),
    ],
)
def test_choices_are_completed(light: Forks, line: str, expected: set[str]) -> None:
    assert set(complete(light, line)) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_can_be_shown_for_a_named_shell(shell: str) -> None:
    done = subprocess.run(
        [VLATOOL, "--show-completion", shell], capture_output=True, text=True, check=True
    )
    assert "_VLATOOL_COMPLETE" in done.stdout
