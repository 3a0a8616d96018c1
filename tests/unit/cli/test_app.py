"""Errors and exit codes of `main`, and modules that the help may import."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from vlatool.cli import app as program
from vlatool.cli.failures import Terminated, as_vlatool_error
from vlatool.errors import DataError, PartialFailure, StorageError

HEAVY = set(
    "numpy pydantic yaml torch rich boto3 pyarrow av PIL pyvips transformers ray".split()  # noqa: SIM905
)
LOADED = """
import sys
from vlatool.cli.app import run
code = run(sys.argv[1:])
print("\\n".join(sys.modules), file=sys.stderr)
sys.exit(code)
"""


def modules_after(*argv: str, env: dict[str, str] | None = None) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *argv], capture_output=True, text=True, check=True, env=env
    )
    return set(done.stderr.splitlines())


@pytest.mark.parametrize("argv", [[], ["--help"], ["--help", "--json"]])
def test_help_loads_no_command_and_nothing_heavy(argv: list[str]) -> None:
    loaded = modules_after(*argv)
    assert not loaded & {*HEAVY, "vlatool.cli.forms"}
    assert not {name for name in loaded if name.startswith("vlatool.workflows")}


@pytest.mark.parametrize("argv", [["--version"], ["version"], ["plugins", "--help"]])
def test_other_fast_commands_load_nothing_heavy_except_imports_of_typer(
    argv: list[str],
) -> None:
    assert not modules_after(*argv) & (HEAVY - {"pydantic"})


def test_completion_of_commands_loads_nothing_heavy() -> None:
    variables = {
        "_VLATOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": "vlatool pre",
        "COMP_CWORD": "1",
    }
    program_text = LOADED.replace("code = run", "try:\n    code = run", 1).replace(
        "print(", "except SystemExit:\n    code = 0\nprint(", 1
    )
    done = subprocess.run(
        [sys.executable, "-c", program_text],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    assert set(done.stdout.split()) == {"predict", "preprocess", "presets"}
    assert not set(done.stderr.splitlines()) & HEAVY


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (DataError("x", code="data.empty"), "data.empty", 3),
        (PartialFailure("x"), "partial", 4),
        (StorageError("x"), "storage", 5),
        (KeyboardInterrupt(), "interrupted", 130),
        (Terminated(), "terminated", 143),
        (SystemExit(143), "terminated", 143),
        (ValueError("x"), "bug", 1),
        (OSError(errno.ENOSPC, "full", "out"), "storage.unreadable", 5),
        (OSError(errno.EFBIG, "too large", "out"), "storage.unreadable", 5),
        (FileNotFoundError(errno.ENOENT, "none", "s3://lab/x"), "data.no_source", 3),
        (FileNotFoundError(errno.ENOENT, "none", "/x"), "bug", 1),
        (ModuleNotFoundError("x", name="torch.nn"), "environment.missing_dependency", 6),
        (ModuleNotFoundError("x", name="ray"), "environment.missing_dependency", 6),
        (ModuleNotFoundError("x", name="vlatool.nothing"), "bug", 1),
    ],
)
def test_exception_becomes_an_error_with_code_and_exit_code(
    error: BaseException, code: str, exit_code: int
) -> None:
    shown = as_vlatool_error(error)
    assert (shown.code, shown.exit_code) == (code, exit_code)


def test_a_temporary_folder_with_a_long_path_is_no_bug() -> None:
    with (
        socket.socket(socket.AF_UNIX) as sockets,
        pytest.raises(OSError, match="AF_UNIX") as caught,
    ):
        sockets.bind("x" * 200)  # as Python's own worker processes do
    assert as_vlatool_error(caught.value).code == "environment.hardware"


def test_missing_extra_names_the_install_line() -> None:
    assert "vlatool[ray]" in as_vlatool_error(ModuleNotFoundError("x", name="ray")).hint


def test_usage_error_of_typer_has_the_form_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["version", "surplus", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["kind"] == "usage"
