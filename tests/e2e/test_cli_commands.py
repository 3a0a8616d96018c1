"""Command lines: help, published spellings, errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.forks import Forks, Outcome
from vlatool.jobs.files import digests_below

COMMANDS = [
    ["demo"],
    ["sample"],
    ["preprocess"],
    ["preprocess", "lerobot"],
    ["train"],
    ["resolve-config"],
    ["eval", "open-loop"],
    ["eval", "rollout"],
    ["stats", "merge"],
    ["inspect"],
    ["verify"],
    ["presets"],
    ["plugins"],
    ["doctor"],
    ["version"],
]


@pytest.fixture(scope="module")
def raw(light: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "raw"
    done = light.run(["sample", "spartan", folder, "--episodes", "2", "--frames", "12"])
    assert done.code == 0, done.stderr
    return folder


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_help_has_two_examples(light: Forks, argv: list[str]) -> None:
    done = light.run([*argv, "--help"])
    assert (done.code, done.stderr) == (0, "")
    examples = done.stdout.partition("Examples:\n")[2].split("\n  vlatool")
    assert len([example for example in examples if example.strip()]) >= 2


def test_help_and_keys_list_the_keys_of_a_command_and_its_format(light: Forks) -> None:
    assert "--observation-keys" not in light.run(["preprocess", "--help-all"]).stdout
    assert "--observation-keys" in light.run(["preprocess", "lerobot", "--help-all"]).stdout
    document = light.run(["sample", "--keys", "--json"]).document
    assert {"layout", "output", "episodes"} <= {row["key"] for row in document["keys"]}


@pytest.mark.parametrize(
    ("line", "exit_code", "code", "hint"),
    [
        ("preprocess sprtan raw", 2, "usage.unknown_format", "spartan"),
        ("preprocess spartan raw --workrs 1", 2, "usage.unknown_option", "--workers"),
        ("preprocess spartan nowhere -o out", 3, "data.no_source", ""),
        ("sample spartan a --output b", 2, "usage.given_twice", ""),
        ("sample spartan a --episodes", 2, "usage.missing_value", "--episodes"),
        ("sample spartan a --preset nothing-like-it", 2, "usage.unknown_preset", ""),
        ("sample --episodes two", 2, "config.invalid", ""),
    ],
)
def test_errors(
    light: Forks, line: str, exit_code: int, code: str, hint: str, tmp_path: Path
) -> None:
    done = light.run(["--json", *line.split()], folder=tmp_path)
    error = done.document["error"]
    assert (done.code, error["code"]) == (exit_code, code)
    assert hint in error["hint"]
    assert list(tmp_path.iterdir()) == []
    if code == "config.invalid":  # reported together with missing keys
        keys = {problem["key"] for problem in error["details"]["problems"]}
        assert {"layout", "output", "episodes"} <= keys


def test_published_spelling_of_preprocess_does_the_same(
    light: Forks, raw: Path, tmp_path: Path
) -> None:
    ours = preprocessed(light, raw, tmp_path, "-q")
    words = [
        "preprocess", "--type", "spartan", "--source_episodes", f"['{raw}/', \n]",
        "--output_dir", "theirs", "--num-workers", "1", "--max-episodes-to-process", "-1",
    ]  # fmt: skip
    published = light.run(words, folder=tmp_path)
    assert (ours.code, published.code) == (0, 0), ours.stderr + published.stderr
    assert digests_below(tmp_path / "out/shards").keys() == (
        digests_below(tmp_path / "theirs/shards").keys()
    )
    assert all(line.startswith("warning: ") for line in ours.stderr.splitlines())
    # Progress is plain lines when stderr is no terminal.
    assert not {"\x1b", "\r"} & {*published.stderr}


def test_json_progress_is_one_object_per_line(light: Forks, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("language_dict: {}")
    options = ["--source.language-annotations-path", "other.yaml", "--log-file", "a.log"]
    done = preprocessed(light, raw, tmp_path, "--progress", "json", *options)
    assert "progress" in [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert "WARNING vlatool.report" in (tmp_path / "a.log").read_text()
    preprocessed(light, Path("nowhere"), tmp_path, "--log-file", "b.log")
    assert "Traceback" in (tmp_path / "b.log").read_text()


def test_missing_extra_is_exit_6_with_the_install_line(tmp_path: Path) -> None:
    blocked = tmp_path / "torch"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError(name='torch')\n")
    program = (
        "import sys\nfrom vlatool.workflows import catalog\n"
        "def needs_torch():\n    import torch\n"
        "catalog.presets = needs_torch\n"
        "from vlatool.cli.app import run\nsys.exit(run(['presets', '--json']))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 6
    assert "vlatool[train]" in json.loads(done.stdout)["error"]["hint"]


def preprocessed(light: Forks, source: Path, folder: Path, *options: str) -> Outcome:
    """Outcome of `preprocess` of a source into `out`."""
    return light.run(["preprocess", "spartan", source, "-o", "out", *options], folder=folder)
