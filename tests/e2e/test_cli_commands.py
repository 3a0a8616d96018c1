"""Command lines: help, published spellings, errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders.forks import Forks, Outcome

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


def error_of(light: Forks, *argv: str, folder: Path) -> tuple[int | None, dict[str, Any]]:
    done = light.run(["--json", *argv], folder=folder)
    return done.code, done.document["error"]


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


def test_all_options_of_preprocess_are_those_of_the_format(light: Forks) -> None:
    assert "--observation-keys" not in light.run(["preprocess", "--help-all"]).stdout
    assert "--observation-keys" in light.run(["preprocess", "lerobot", "--help-all"]).stdout


def test_keys_lists_the_keys_of_a_command(light: Forks) -> None:
    document = light.run(["sample", "--keys", "--json"]).document
    assert {"layout", "output", "episodes"} <= {row["key"] for row in document["keys"]}


@pytest.mark.parametrize(
    ("argv", "exit_code", "code", "hint"),
    [
        (["preprocess", "sprtan", "raw"], 2, "usage.unknown_format", "spartan"),
        (["preprocess", "spartan", "raw", "--workrs", "1"], 2, "usage.unknown_option", "--workers"),
        (["sample", "spartan", "a", "--output", "b"], 2, "usage.given_twice", ""),
        (["sample", "spartan", "a", "--episodes"], 2, "usage.missing_value", "--episodes"),
        (["sample", "spartan", "a", "--preset", "nothing-like-it"], 2, "usage.unknown_preset", ""),
    ],
)
def test_errors(
    light: Forks, argv: list[str], exit_code: int, code: str, hint: str, tmp_path: Path
) -> None:
    status, error = error_of(light, *argv, folder=tmp_path)
    assert (status, error["code"]) == (exit_code, code)
    assert hint in error["hint"]
    assert list(tmp_path.iterdir()) == []


def test_bad_value_and_missing_keys_are_reported_together(light: Forks, tmp_path: Path) -> None:
    status, error = error_of(light, "sample", "--episodes", "two", folder=tmp_path)
    assert status == 2
    assert error["kind"] == "config"
    assert {"layout", "output", "episodes"} <= {p["key"] for p in error["details"]["problems"]}


def test_missing_source_is_exit_3(light: Forks, tmp_path: Path) -> None:
    status, error = error_of(
        light, "preprocess", "spartan", "nowhere", "-o", "out", folder=tmp_path
    )
    assert (status, error["kind"]) == (3, "data")


def test_published_spelling_of_preprocess_does_the_same(
    light: Forks, raw: Path, tmp_path: Path
) -> None:
    ours = preprocessed(light, raw, tmp_path, "--workers", "1")
    words = [
        "preprocess", "--type", "spartan", "--source_episodes", f"['{raw}/', \n]",
        "--output_dir", "theirs", "--num-workers", "1", "--max-episodes-to-process", "-1",
    ]  # fmt: skip
    published = light.run(words, folder=tmp_path)
    assert (ours.code, published.code) == (0, 0), ours.stderr + published.stderr
    assert names(tmp_path / "out") == names(tmp_path / "theirs")


def test_progress_is_plain_lines_without_color_when_stderr_is_no_terminal(
    light: Forks, raw: Path, tmp_path: Path
) -> None:
    done = preprocessed(light, raw, tmp_path, "--workers", "1")
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_json_progress_is_one_object_per_line(light: Forks, raw: Path, tmp_path: Path) -> None:
    done = preprocessed(light, raw, tmp_path, "--progress", "json")
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert "progress" in events


def test_quiet_leaves_only_warnings_on_stderr(light: Forks, raw: Path, tmp_path: Path) -> None:
    done = preprocessed(light, raw, tmp_path, "-q")
    assert done.code == 0
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())


def test_log_file_has_warnings_and_the_traceback_of_a_failure(
    light: Forks, raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text("language_dict: {}")
    options = ["--source.language-annotations-path", "other.yaml", "--log-file", "a.log"]
    preprocessed(light, raw, tmp_path, *options)
    preprocessed(light, Path("nowhere"), tmp_path, "--log-file", "b.log")
    assert "WARNING vlatool.report" in (tmp_path / "a.log").read_text()
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


def names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith(".vlatool"))


def preprocessed(light: Forks, source: Path, folder: Path, *options: str) -> Outcome:
    """Outcome of `preprocess` of a source into `out`."""
    return light.run(["preprocess", "spartan", source, "-o", "out", *options], folder=folder)
