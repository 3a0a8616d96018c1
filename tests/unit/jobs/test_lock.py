import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders.disks import limited_disk
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.jobs.record import is_being_written, output_lock

HOLDER = """
import pathlib, sys
from vlatool.jobs.record import output_lock
with output_lock(pathlib.Path(sys.argv[1]), "vlatool first"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(
    folder: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Process that locks a folder until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with held(tmp_path) as process:
        yield process


def test_error_of_further_processes_names_the_first_until_it_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    for _ in range(2):
        with pytest.raises(UsageError) as caught, output_lock(tmp_path, "vlatool second"):
            pytest.fail("both hold the folder")
        assert (caught.value.code, caught.value.exit_code) == ("usage.output_in_use", 2)
        assert "vlatool first" in caught.value.message
        assert str(holder.pid) in caught.value.message

    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".vlatool/lock").read_text(), "the killed run left its name"
    with output_lock(tmp_path, "vlatool second"):
        pass


def test_lock_is_free_after_an_error_and_an_output_that_is_a_file_a_storage_error(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError), output_lock(tmp_path, "first"):
        raise DataError("broken")
    with output_lock(tmp_path, "second"):
        (tmp_path / "out").touch()

    with pytest.raises(StorageError) as caught, output_lock(tmp_path / "out", "first"):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("storage.write", 5)


# Disks without locks, or with some that everyone gets


@pytest.mark.parametrize("mode", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "NOOP"])
def test_disk_without_locks_keeps_a_second_process_of_this_machine_away_until_the_first_ends(
    mode: str, tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    disk = limited_disk(folder, tmp_path, DISK_FLOCK=mode)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    environ = {**os.environ, **disk}
    with held(folder, disk) as first:
        second = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert "another run is writing here: `vlatool first`" in second.stderr
        assert f"process {first.pid}" in second.stderr
        assert is_being_written(folder)
        first.kill()
        first.wait()
        assert not is_being_written(folder)
    assert (folder / ".vlatool/lock").read_text(), "the killed run left its name"
    began = time.monotonic()
    third = subprocess.run(
        command, env=environ, input="", capture_output=True, text=True, check=False
    )
    assert (third.returncode, third.stdout) == (0, "held\n"), third.stderr
    assert "this disk has no locks that work" in third.stderr
    assert time.monotonic() - began < 20.0
    assert (folder / ".vlatool/lock").read_bytes() == b""


@pytest.mark.parametrize(("age_s", "code"), [(0, 1), (91, 0)])
def test_lock_of_version_0_3_on_another_machine_counts_for_90_s_without_a_renewal(
    age_s: int, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    disk = limited_disk(folder, tmp_path, DISK_FLOCK="ENOLCK")
    lock = folder / ".vlatool/lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"owner": "a", "command": "vlatool far", "machine": "b"}))
    os.utime(lock, (time.time() - age_s, time.time() - age_s))
    process = subprocess.run(
        [sys.executable, "-c", HOLDER, str(folder)],
        env={**os.environ, **disk},
        input="",
        capture_output=True,
        text=True,
    )
    assert process.returncode == code, process.stderr
    assert ("another run is writing here: `vlatool far`" in process.stderr) == bool(code)


def test_run_whose_lock_another_machine_took_ends(tmp_path: Path) -> None:
    """A lock of the kernel may hold on one machine only."""

    def disturbed() -> None:
        with output_lock(tmp_path, "vlatool first") as first:
            (tmp_path / ".vlatool/lock").write_text(json.dumps({"owner": "another"}))
            first.check()

    with pytest.raises(StorageError) as caught:
        disturbed()
    assert caught.value.code == "storage.lock_lost"


def test_lock_names_neither_host_nor_user(tmp_path: Path) -> None:
    with output_lock(tmp_path, "vlatool first"):
        content = json.loads((tmp_path / ".vlatool/lock").read_text())
    assert {*content} == {"owner", "command", "started", "pid"}
    assert os.uname().nodename not in content.values()
