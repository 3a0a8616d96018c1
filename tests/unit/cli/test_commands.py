"""Table of commands: its rows are complete, and a toy command is one row and one workflow."""

import inspect
import json
from pathlib import Path

import pytest

from vlatool.cli.commands import COMMANDS, GROUPS, Command
from vlatool.cli.config_command import load
from vlatool.cli.forms import typer_command
from vlatool.cli.options import OutputOptions

TOY = Command(
    "Write words.",
    "tests.builders.jobs:toy(ToyConfig)",
    {"words": "WORDS"},
    ("'a b' -o words", "a -o words --json"),
)


@pytest.mark.parametrize("words", COMMANDS)
def test_row_names_a_workflow_and_keys_of_its_configuration(words: str) -> None:
    row = COMMANDS[words]
    assert inspect.isfunction(load(row.workflow))
    assert not row.arguments or row.arguments.keys() <= load(row.schema).model_fields.keys()
    assert len(row.examples) >= 2
    assert all(example.startswith(f"vlatool {words}") for example in row.examples)
    assert " " not in words or words.split()[0] in {*GROUPS, *COMMANDS}


def test_toy_command_is_one_row_and_one_workflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_toy(["one three", "-o", str(tmp_path / "out"), "--max-failures", "1"])
    document = json.loads(capsys.readouterr().out)
    assert (document["letters"], document["episodes"], document["status"]) == (8, 2, "written")
    run_toy(["one three", "-o", str(tmp_path / "out")])
    assert json.loads(capsys.readouterr().out)["status"] == "already complete"


def run_toy(argv: list[str]) -> None:
    command = typer_command("toy", TOY)
    with command.make_context("toy", argv, obj=OutputOptions(json=True)) as ctx:
        command.invoke(ctx)
