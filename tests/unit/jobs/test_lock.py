import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlatool.errors import DataError, StorageError, UsageError
from vlatool.jobs.record import output_lock

HOLDER = """
import pathlib, sys
from vlatool.jobs.record import output_lock
with output_lock(pathlib.Path(sys.argv[1]), "vlatool first"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Process that locks `tmp_path` until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


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
