"""Command lines: help, published spellings, errors."""

from pathlib import Path

import pytest

from tests.builders.forks import Forks

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
        ("preprocess sprtan raw", 2, "usage.unknown_name", "spartan"),
        ("preprocess spartan raw --workrs 1", 2, "usage.unknown_option", "--workers"),
        ("preprocess spartan nowhere -o out", 3, "data.no_source", ""),
        ("sample spartan a --output b", 2, "usage.conflict", ""),
        ("sample spartan a --episodes", 2, "usage.missing_key", "--episodes"),
        ("sample spartan a --preset nothing-like-it", 2, "usage.unknown_name", ""),
        ("sample --episodes two", 2, "config.invalid_value", ""),
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
    if code == "config.invalid_value":  # reported together with missing keys
        keys = {problem["key"] for problem in error["details"]["problems"]}
        assert {"layout", "output", "episodes"} <= keys
