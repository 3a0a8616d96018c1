"""Shell completion, requested as a shell does."""

import os
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


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty cache folder."""
    return tmp_path_factory.mktemp("cache")


def complete(light: Forks, line: str, cache: Path) -> list[str]:
    """Completions in bash, which makes a word of each `=`."""
    words = [part for word in line.split(" ") for part in re.split("(=)", word) if part or not word]
    variables = {
        "XDG_CACHE_HOME": str(cache),
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
def test_completion(light: Forks, line: str, expected: set[str], cache: Path) -> None:
    assert expected <= set(complete(light, line, cache))


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
def test_choices_are_completed(light: Forks, line: str, expected: set[str], cache: Path) -> None:
    assert set(complete(light, line, cache)) == expected


def test_second_completion_imports_no_configuration(light: Forks, cache: Path) -> None:
    """Importing configuration classes takes too long for a key press."""
    line = "vlatool preprocess lerobot x --"
    assert complete(light, line, cache)
    assert not {"numpy", "pydantic", "yaml", "av", "pyarrow"} & modules_of_completion(line, cache)


def modules_of_completion(line: str, cache: Path) -> set[str]:
    """Modules that a completion imports."""
    program = (
        "import atexit, sys; from vlatool.cli.app import main;"
        "atexit.register(lambda: print(*sys.modules, sep=chr(10), file=sys.stderr)); main()"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "_VLATOOL_COMPLETE": "complete_bash"}
    env |= {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": 1}', '{"state": null, "words": 3}'])
def test_damaged_cache_is_replaced(light: Forks, content: str, tmp_path: Path) -> None:
    line = "vlatool version --js"
    assert complete(light, line, tmp_path) == ["--json"]
    [file] = (tmp_path / "vlatool/completion").iterdir()
    file.write_text(content)
    assert complete(light, line, tmp_path) == ["--json"]
    assert complete(light, line, file) == ["--json"]  # no cache can be written there


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_can_be_shown_for_a_named_shell(shell: str) -> None:
    done = subprocess.run(
        [VLATOOL, "--show-completion", shell], capture_output=True, text=True, check=True
    )
    assert "_VLATOOL_COMPLETE" in done.stdout
