"""Public names of `import vlatool`: a function per command, and the entry points for scripts."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import vlatool
from vlatool.cli.commands import COMMANDS
from vlatool.recordings.base import merge_surveys

NAMES = [name for name in dir(vlatool) if name != "__version__"]
# Commands whose function has another name than the command's last words.
RENAMED = {
    "plugins": "list_plugins",  # `vlatool.plugins` is the registries
    "version": "__version__",
    "launch sagemaker finetune": "launch_sagemaker_finetune",
    "launch sagemaker train": "launch_sagemaker_train",
    "launch slurm train": "launch_slurm_train",
    "launch status": "launch_status",
    "launch stop": "launch_stop",
    "presets show": "presets_show",
    "stats compute": "stats_compute",
    "stats merge": "stats_merge",
    "tokenizer eval": "tokenizer_eval",
    "tokenizer export": "tokenizer_export",
    "tokenizer train": "train",
}


def test_commands_are_importable_under_their_names_which_are_callable_and_documented() -> None:
    for command in COMMANDS:
        name = RENAMED.get(command, command.split()[-1].replace("-", "_"))
        assert name in dir(vlatool)
    for name in NAMES:
        value: Any = getattr(vlatool, name)
        assert callable(value), name
        assert value.__doc__, name


def test_type_checkers_know_the_same_names() -> None:
    tree = ast.parse(Path(vlatool.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    statements = [statement for block in blocks for statement in block.body]
    declared = {
        str(alias.asname): (statement.module, alias.name)
        for statement in statements
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    values = {name: getattr(vlatool, name) for name in NAMES}
    assert declared.keys() == values.keys()
    for name, (module, attribute) in declared.items():
        assert (values[name].__module__, values[name].__name__) == (module, attribute)


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(vlatool, "lode_policy")


def test_name_that_needs_a_missing_package_reports_the_extra() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from vlatool.errors import EnvironmentProblem\n"
        "try:\n"
        "    from vlatool import load_policy\n"
        "except EnvironmentProblem as error:\n"
        "    print(error.code, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split()[0] == "environment.missing_dependency", done.stderr
    assert "vlatool[train]" in done.stdout


def test_the_old_name_of_the_protocol_of_readers_warns() -> None:
    with pytest.warns(DeprecationWarning, match="vlatool.recordings.base"):
        old = import_module("vlatool.sources.base")
    assert old.merge_surveys is merge_surveys
