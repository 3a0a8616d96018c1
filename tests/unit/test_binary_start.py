"""Entry point of the single file, around which the test packs a program of one line."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from binary import start

BOOTSTRAP = "import os, sys\ndef bootstrap(): sys.exit(print(os.environ['SHIV_ROOT']))"
# Other versions, where this one is installed beside them.
PYTHONS = sorted(Path(sys.base_prefix).parent.glob("*/bin/python"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    suffix, machine = start.interpreter()
    return packed(tmp_path / "vlatool", suffix, machine)


def packed(path: Path, suffix: str, machine: str, bootstrap: str = BOOTSTRAP) -> Path:
    built = {"suffix": suffix, "machine": machine, "id": "1", "megabytes": 5}
    built |= {"name": "CPython 3.99 on paper", "command": "python3.99"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", "import _start\n_start.main()\n")
        archive.write(start.__file__, "_start.py")
        archive.writestr("_built.py", f"BUILT = {built!r}\n")
        archive.writestr("_bootstrap.py", bootstrap)
    return path


def run(python: str | Path, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(file.parent)}
    command = [python, file, "version", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_packages_of_the_file_are_unpacked_into_the_cache(file: Path) -> None:
    assert run(sys.executable, file).stdout == f"{file.parent}/vlatool/binary\n"


@pytest.mark.parametrize("changed", [{"suffix": ".cpython-399.so"}, {"machine": "abacus"}])
def test_wrong_interpreter_is_exit_6_and_names_the_right_one(
    changed: dict[str, str], tmp_path: Path
) -> None:
    suffix, machine = start.interpreter()
    file = packed(tmp_path / "vlatool", **{"suffix": suffix, "machine": machine, **changed})
    done = run(sys.executable, file, "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (6, "environment.missing_dependency")
    assert f"{file} is for CPython 3.99 on paper" in error["message"]
    assert f"`python3.99 {file}`" in error["hint"]
    assert done.stderr == f"error: {error['message']}\nhint: {error['hint']}\n"


@pytest.mark.parametrize("python", PYTHONS, ids=[path.parts[-3] for path in PYTHONS])
def test_every_installed_python_can_say_that_it_is_the_wrong_one(
    python: Path, tmp_path: Path
) -> None:
    done = run(python, packed(tmp_path / "vlatool", ".cpython-399.so", "abacus"))
    assert (done.returncode, done.stdout) == (6, "")
    assert "is for CPython 3.99 on paper" in done.stderr
    assert "Traceback" not in done.stderr


def test_folder_that_cannot_be_written_is_exit_6(tmp_path: Path) -> None:
    bootstrap = "def bootstrap(): raise OSError(28, 'No space left on device')"
    done = run(sys.executable, packed(tmp_path / "vlatool", *start.interpreter(), bootstrap))
    assert done.returncode == 6
    assert "No space left on device" in done.stderr
    assert "XDG_CACHE_HOME to a folder that is writable and has 5 MB free" in done.stderr
