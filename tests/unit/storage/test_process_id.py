"""Identities of processes, with which others see that a process has ended."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from vlatool.storage.lock import ProcessId

SALT = "salt"
WRITER = """
import json, sys
from vlatool.storage.lock import ProcessId
print(json.dumps(ProcessId.of_this_process("salt").document()), flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_process_has_not_ended_until_it_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process_id = ProcessId.of(json.loads(process.stdout.readline()))
        assert not process_id.has_ended(SALT)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_id.has_ended(SALT), "a zombie process has ended"

    assert process_id.has_ended(SALT)


def test_processes_with_the_same_number_are_distinguished() -> None:
    process_id = ProcessId.of_this_process(SALT)

    assert not process_id.has_ended(SALT)
    assert replace(process_id, started="1").has_ended(SALT)


@pytest.mark.parametrize(
    "document",
    [{}, {"machine": "another", "pid": 2**22 + 1, "process_started": "5"}],
)
def test_processes_of_other_machines_never_count_as_ended(document: dict[str, object]) -> None:
    assert not ProcessId.of(document).has_ended(SALT)


def test_ids_of_one_machine_differ_by_salt() -> None:
    first, second = ProcessId.of_this_process("a"), ProcessId.of_this_process("b")

    assert first.machine != second.machine
    assert os.uname().nodename not in json.dumps(first.document())
