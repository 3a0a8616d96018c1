"""The single file: in an empty root, and beside a Python environment with torch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from binary.build import build
from tests.builders.training import tiny_arguments, world_shards
from vlatool import __version__
from vlatool.checkpoints.layout import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# What a system without anything but the C library has.
GLIBC = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1")
USER = "1000:1000"
LINES = (
    "sample spartan /lab/raw --episodes 2 --frames 12",
    "preprocess spartan /lab/raw --preset world-windows --output /lab/data --workers 2",
    "verify /lab/data",
    "inspect /lab/data --html /lab/page.html",
    "preprocess spartan /lab/raw --sink lerobot --output /lab/set",
    "sample hdf5 /lab/hdf5 --episodes 1 --frames 12",
    "inspect /lab/hdf5",
    "resolve-config -p world-pick",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("PyInstaller needs a Python with a shared library")
    for program in (os.environ.get("CC", "cc"), "strip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is needed to build the file")
    target = tmp_path_factory.mktemp("binary") / "vlatool"
    build(target)
    return target


@pytest.fixture(scope="module")
def root(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a system with the C library and the file, whose home folders cannot be written."""
    if os.geteuid() != 0:
        pytest.skip("only root can change the root of a process")
    folder = tmp_path_factory.mktemp("root")
    folder.chmod(0o755)
    for parent in folder.parents[:3]:
        parent.chmod(0o755)
    for name in ("bin", "dev/shm", "home/robot", "lib64", "lib/x86_64-linux-gnu", "tmp", "lab"):
        (folder / name).mkdir(parents=True)
    for name in ("dev/shm", "tmp", "lab"):
        (folder / name).chmod(0o1777)
    (folder / "home/robot").chmod(0o555)
    os.mknod(folder / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    (folder / "dev/null").chmod(0o666)
    try:
        shutil.copy("/lib64/ld-linux-x86-64.so.2", folder / "lib64")
        for name in GLIBC:
            shutil.copy(f"/lib/x86_64-linux-gnu/{name}", folder / "lib/x86_64-linux-gnu")
    except FileNotFoundError as error:
        pytest.skip(f"the C library is elsewhere here: {error}")
    shutil.copy(file, folder / "bin/vlatool")
    return folder


def in_root(root: Path, line: str) -> subprocess.Popen[str]:
    """A command of the file as another user in an empty root."""
    chroot = shutil.which("chroot") or "chroot"
    environment = ["env", "-i", "HOME=/home/robot", "PATH=/bin"]
    command = [*environment, chroot, f"--userspec={USER}", str(root), "/bin/vlatool", *line.split()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_first_start_is_repeated_and_every_later_start_unpacks_nothing(root: Path) -> None:
    builds = root / "tmp" / "vlatool-1000"
    with in_root(root, "version") as first:
        while not list(builds.glob("*.*/_internal")):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    for _ in range(2):
        output, _ = in_root(root, "version --json").communicate()
        assert json.loads(output)["version"] == __version__
    assert len([path for path in builds.iterdir() if "." not in path.name]) == 1


def test_data_commands_work_in_an_empty_root(root: Path) -> None:
    for line in LINES:
        process = in_root(root, line)
        _, errors = process.communicate()
        assert process.returncode == 0, (line, errors)
    assert (root / "lab/data/frames.json").is_file()
    process = in_root(root, "train -p world-pick --data /lab/data --output /lab/run --json")
    output, _ = process.communicate()
    assert process.returncode == 6
    error = json.loads(output)["error"]
    assert error["details"]["package"] == "torch"
    assert "pip install 'vlatool[train]==" in error["hint"]
    assert "VLATOOL_PYTHON=" in error["hint"]


def test_training_runs_in_the_python_that_is_named(file: Path, tmp_path: Path) -> None:
    changes = {"total_train_steps": 2, "num_checkpoints": 1}
    words = tiny_arguments(world_shards(tmp_path / "world"), tmp_path / "run", **changes)
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "VLATOOL_PYTHON": sys.executable,
    }
    command = [file, *words, "--nproc", "2"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2]
    assert "world_size: 2" in (tmp_path / "run/config.yaml").read_text()


def test_a_file_that_is_cut_off_says_so(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "vlatool"
    cut.write_bytes(file.read_bytes()[:3_000_000])
    cut.chmod(0o755)
    done = subprocess.run(
        [cut, "version", "--json"], env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 6
    assert json.loads(done.stdout)["error"]["hint"] == "copy the file again"


def test_a_damaged_file_is_not_installed(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    damaged = tmp_path / "vlatool"
    damaged.write_bytes(content)
    damaged.chmod(0o755)
    done = subprocess.run(
        [damaged, "version"], env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 6
    assert "copy it again" in done.stderr
    assert list((tmp_path / ".cache/vlatool/binary").iterdir()) == []


def test_libraries_in_the_current_folder_are_not_loaded(file: Path, tmp_path: Path) -> None:
    (tmp_path / "libm.so.6").write_bytes(b"")
    environment = {"HOME": str(tmp_path), "LD_LIBRARY_PATH": ""}
    command = [file, "version"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
