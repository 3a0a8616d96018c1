"""Telling whether the process that wrote something is still there."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from vlatool.storage.remote_lock import ProcessId

SALT = "salt"
WRITER = """
import json, sys
from vlatool.storage.remote_lock import ProcessId
print(json.dumps(ProcessId.of_this_process("salt").document()), flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_process_is_there_until_it_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        mark = ProcessId.of(json.loads(process.stdout.readline()))
        assert not mark.has_ended(SALT)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert mark.has_ended(SALT), "dead, though nobody has asked for its exit code"

    assert mark.has_ended(SALT)


def test_process_that_has_the_number_of_another_is_told_apart() -> None:
    mark = ProcessId.of_this_process(SALT)

    assert not mark.has_ended(SALT)
    assert replace(mark, started="1").has_ended(SALT)


@pytest.mark.parametrize(
    "document",
    [{}, {"machine": "another", "pid": 2**22 + 1, "process_started": "5"}],
)
def test_nothing_is_claimed_of_other_machines(document: dict[str, object]) -> None:
    assert not ProcessId.of(document).has_ended(SALT)


def test_marks_of_one_machine_do_not_look_alike() -> None:
    one, other = ProcessId.of_this_process("a"), ProcessId.of_this_process("b")

    assert one.machine != other.machine
    assert os.uname().nodename not in json.dumps(one.document())
