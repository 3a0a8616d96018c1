"""The single file, outside the repository and in an empty folder."""

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from binary.build import build
from tests.builders.training import tiny_arguments, world_shards
from vlatool.formats.run.layout import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# Without the packages of the environment that the tests run in.
BARE = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("binary") / "vlatool"
    build(target)
    return target


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([BARE, "-m", "venv", "--without-pip", folder], check=True)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def home(file: Path, bare: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home folder with the unpacked packages; the first start of it was killed."""
    folder = tmp_path_factory.mktemp("home")
    first = subprocess.Popen([bare, file, "version"], env=environment(folder))
    while not list(folder.glob(".cache/vlatool/binary/*.tmp/*/*")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    return folder


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": "/usr/bin:/bin"}


def run(python: str, file: Path, home: Path, folder: Path, *words: str, code: int = 0) -> str:
    """Standard output of a command."""
    command = [python, file, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment(home), check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_data_commands_work_without_torch(
    file: Path, bare: str, home: Path, tmp_path: Path
) -> None:
    for line in (
        "sample spartan raw --episodes 2 --frames 12",
        "preprocess spartan raw --preset world-windows --output data --workers 2",
        "verify data",
        "inspect data --html page.html",
        "preprocess spartan raw --sink lerobot --output set",
        "resolve-config -p world-pick",
    ):
        run(bare, file, home, tmp_path, *line.split())
    assert (tmp_path / "data/frames.json").is_file()
    words = ["train", "--preset", "world-pick", "--data", "data", "--output", "run", "--json"]
    error = json.loads(run(bare, file, home, tmp_path, *words, code=6))["error"]
    assert error["details"]["package"] == "torch"
    assert error["hint"].startswith(f"{bare} -m pip install ")


def test_help_starts_fast(file: Path, bare: str, home: Path, tmp_path: Path) -> None:
    run(bare, file, home, tmp_path, "--help")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(bare, file, home, tmp_path, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


def test_training_takes_torch_from_the_environment_and_starts_itself(
    file: Path, home: Path, tmp_path: Path
) -> None:
    changes = {"total_train_steps": 2, "num_checkpoints": 1}
    words = tiny_arguments(world_shards(tmp_path / "world"), tmp_path / "run", **changes)
    empty = tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, file, home, empty, *words, "--nproc", "2")
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2]
    assert "world_size: 2" in (tmp_path / "run/config.yaml").read_text()


def test_file_starts_with_the_python_of_path(file: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(BARE)
    shutil.copy(file, tmp_path / "vlatool")
    paths = os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"])
    done = subprocess.run(
        ["vlatool", "version", "--json"],
        cwd="/",
        capture_output=True,
        check=True,
        env={**environment(home), "PATH": paths},
    )
    assert json.loads(done.stdout)["python"] == platform.python_version()
