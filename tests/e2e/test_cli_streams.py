"""The installed command: streams, exit codes, closed pipes, signals."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.forks import Forks

VLATOOL = str(Path(sys.executable).parent / "vlatool")


def vlatool(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VLATOOL, *argv], capture_output=True, text=True, check=False, cwd=cwd, timeout=120
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--json", "version"],
        ["version", "--json"],
        ["--version", "--json"],
        ["doctor", "--json"],
        ["presets", "--json"],
        ["plugins", "--json"],
        ["--help", "--json"],
        ["presets", "--help", "--json"],
    ],
)
def test_json_result_is_the_only_thing_on_stdout(light: Forks, argv: list[str]) -> None:
    done = light.run(argv)
    assert done.code == 0
    assert isinstance(done.document, dict)


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["prepocess", "spartan"], "usage.unknown_option", "preprocess"),
        (["eval", "rolout"], "usage.unknown_option", "rollout"),
        (["doctor", "--jsno"], "usage.unknown_option", "--json"),
        (["--vresion"], "usage.unknown_option", "--version"),
        (["presets", "--progress", "fancy"], "usage.bad_value", "plain"),
        (["presets", "--log-file"], "usage.missing_key", "--log-file"),
        (["--json"], "usage.missing_key", "--help"),
    ],
)
def test_usage_error_is_exit_2_and_one_document(
    light: Forks, argv: list[str], code: str, named: str
) -> None:
    done = light.run(["--json", *argv])
    assert done.code == 2
    error = done.document["error"]
    assert (error["kind"], error["code"]) == ("usage", code)
    assert named in error["hint"]


def test_error_is_two_lines_on_stderr_and_nothing_on_stdout() -> None:
    done = vlatool("doctr")
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")


@pytest.mark.parametrize("argv", [["presets", "--json"], ["--help"], ["plugins"]])
def test_closed_pipe_is_quiet_and_exit_0(argv: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [VLATOOL, *argv], stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_vlatool_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlatool", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == vlatool("version").stdout


def test_log_file_has_no_credential_of_the_command_and_no_orders_to_terminals(
    light: Forks, tmp_path: Path
) -> None:
    log, key = tmp_path / "log", "--sagemaker.environment"
    words = [f"{key}.HF_TOKEN", "open-sesame", f"{key}.DB=postgres://ada:hunter22@db"]
    assert light.run(["launch", "sagemaker", "train", *words, "--log-file", log]).code
    assert light.run(["inspect", "a\x1b[2Jb", "--log-file", log]).code
    text = log.read_text()
    assert "vlatool launch sagemaker" in text
    assert "--sagemaker.environment.HF_TOKEN ..." in text
    assert not [secret for secret in ("sesame", "hunter22", "\x1b") if secret in text]
    for bad in (tmp_path / "no" / "run.log", Path("/dev/full")):
        done = light.run(["presets", "--log-file", bad])
        assert (done.code, len(done.stderr.splitlines())) == (2, 2)


def test_only_the_main_process_of_a_distributed_run_writes_the_result() -> None:
    env = {**os.environ, "RANK": "1"}
    done = subprocess.run(
        [VLATOOL, "version"], capture_output=True, text=True, check=False, env=env
    )
    assert (done.returncode, done.stdout) == (0, "")


PROGRAM = """
import sys, time
from vlatool.workflows import catalog
def wait():
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
catalog.plugins = wait
from vlatool.cli.app import run
sys.exit(run(["plugins", "--json"]))
"""


@pytest.mark.parametrize(
    ("signum", "exit_code", "kind"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 143, "terminated"),
        (signal.SIGUSR1, 143, "terminated"),
    ],
)
def test_signal_ends_with_one_document(signum: signal.Signals, exit_code: int, kind: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().strip() == "ready"
    time.sleep(0.1)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert json.loads(out)["error"]["kind"] == kind


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
runpy.run_module("vlatool", run_name="__main__")
"""


INTERRUPTED_EXIT = """
import atexit, os, runpy, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)  # called after those of the command
runpy.run_module("vlatool", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "code"), [(INTERRUPTED_IMPORT, -signal.SIGINT), (INTERRUPTED_EXIT, 0)]
)
def test_ctrl_c_during_imports_or_the_exit_ends_without_a_traceback(
    program: str, code: int
) -> None:
    command = [sys.executable, "-c", program, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert bool(done.stdout) == (code == 0)


MODULE = f"{shlex.quote(sys.executable)} -m vlatool"


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in a shell, with `vlatool` for `{}`; the line may redirect streams."""
    return subprocess.run(
        ["bash", "-c", line.replace("{}", MODULE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize("away", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("argv", "code"), [("version", 0), ("doctr", 2), ("--progress rich presets", 0)]
)
def test_stderr_that_cannot_be_written_changes_no_exit_code(
    away: str, argv: str, code: int
) -> None:
    assert shell(f"{{}} {argv} {away}").returncode == code


@pytest.mark.parametrize("argv", ["version", "presets --jsonl", "presets --json", "--help"])
@pytest.mark.parametrize("away", ["", "2>/dev/full"])
def test_full_stdout_is_exit_5_in_two_lines(argv: str, away: str) -> None:
    done = shell(f"{{}} {argv} >/dev/full {away}")
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == (0 if away else 2)


def test_closed_stdout_does_not_become_a_file_that_is_written(tmp_path: Path) -> None:
    """Without `open_streams`, output to stdout would go to the next file that is opened."""
    program = (
        "import os, sys; from vlatool.cli.output import open_streams; open_streams();"
        f"sys.exit(os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY) < 3)"
    )
    assert shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} >&-").returncode == 0


@pytest.mark.parametrize("argv", ["preprocess spartan raw -o out", "doctor", "demo -o out"])
def test_removed_current_folder_is_exit_2_in_two_lines(tmp_path: Path, argv: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"cd {gone} && rmdir {gone} && {{}} {argv}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("argv", ["inspect", "verify", "resolve-config -c", "resolve-config -p"])
@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + ".yaml", "~nobody-is-called-so/x"])
def test_names_that_no_file_can_have_are_reported_in_two_lines(
    light: Forks, argv: str, name: str
) -> None:
    done = light.run([*argv.split(), name])
    assert done.code in (2, 5)
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("locale", "hint"), [({}, "rename"), ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "LC_ALL=C.UTF-8")]
)
def test_name_that_is_not_text_here_is_refused_before_any_work(
    locale: dict[str, str], hint: str, tmp_path: Path
) -> None:
    name = os.fsencode(tmp_path) + (b"/caf\xc3\xa9" if locale else b"/caf\xe9")
    words = [os.fsencode(sys.executable), b"-m", b"vlatool", b"sample", b"spartan", name]
    environ = {**os.environ, "PYTHONCOERCECLOCALE": "0", **locale}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0][-20:]) == (2, "is not text in UTF-8"), (
        done.stderr
    )
    assert hint in done.stderr
    assert not list(tmp_path.iterdir())


def test_windows_without_wsl_is_exit_6_in_one_line() -> None:
    program = (
        "import runpy, sys; sys.modules['fcntl'] = None;"
        "runpy.run_module('vlatool', run_name='__main__')"
    )
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
    assert "WSL" in done.stderr


def test_json_lines_are_one_document_per_row_and_debug_adds_the_traceback(light: Forks) -> None:
    done = light.run(["plugins", "--jsonl"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"spartan", "lerobot"} <= {row["name"] for row in rows}
    assert light.run(["plugins", "--jsonl", "--json"]).code == 2
    assert "Traceback" in light.run(["doctr", "--debug"]).stderr
