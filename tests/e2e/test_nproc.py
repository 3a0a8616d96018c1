"""Two ranks of one command with `--nproc 2`, and all ways in which they end.

`test_guide_policy` has a run that they complete.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.builders.training import tiny_arguments
from vlatool.checkpoints.layout import RunDir
from vlatool.jobs.executor import default_workers

VLATOOL = [sys.executable, "-m", "vlatool"]


def command(data: Path, run: Path, *options: str, **changes: Any) -> list[str]:
    return [*VLATOOL, "--json", *tiny_arguments(data, run, **changes), "--nproc", "2", *options]


@contextmanager
def started(
    data: Path, run: Path, **changes: Any
) -> Iterator[tuple[subprocess.Popen[str], dict[int, int]]]:
    """Starts a run of two ranks and waits for its first step; yields it and the pids by rank.

    At the end, checks that no rank and no process started by one is left.
    """
    arguments = command(data, run, total_train_steps=20000, num_checkpoints=1, **changes)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (launcher,) = psutil.Process(process.pid).children()
    ranks = {int(child.environ()["RANK"]): child.pid for child in launcher.children()}
    assert sorted(ranks) == [0, 1]
    sessions = [launcher.pid, *ranks.values()]
    try:
        yield process, ranks
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 20
    while left := [pid for pid in psutil.pids() if belongs_to(pid, sessions)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def belongs_to(pid: int, sessions: Collection[int]) -> bool:
    """True if a process is the launcher, a rank or was started by one: each leads a session."""
    try:
        is_zombie = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return (
            os.getsid(pid) in sessions and not is_zombie
        )  # a zombie may have no parent to reap it
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Folder for sockets, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_tasks_of_slurm_on_two_nodes_use_the_processors_of_their_own(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keys = {"total_train_steps": 2, "num_checkpoints": 1, "data__num_workers": "null"}
    arguments = [*VLATOOL, "--json", *tiny_arguments(data, run, **keys)]
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "localhost,other",
        "SLURM_LOCALID": "0",
    }
    tasks = [
        subprocess.Popen(
            arguments,
            env={**os.environ, **step, "SLURM_PROCID": rank, "SLURM_NODEID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    config = (run / "config.yaml").read_text()
    assert "world_size: 2" in config
    assert f"num_workers: {default_workers()}\n" in config


def test_configuration_is_refused_before_any_rank_starts(data: Path, tmp_path: Path) -> None:
    arguments = command(data, tmp_path / "run", "--hparams.lr", "fast")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "config"
    assert len(errors(done.stderr)) == 1
    assert "torchrun" not in done.stderr


@pytest.mark.slow  # test_trainer has stops, and the next test processes that end
def test_ctrl_c_reaches_the_ranks_and_a_checkpoint_is_written(data: Path, tmp_path: Path) -> None:
    # With a loader process, whose death could prevent the checkpoint of the rank.
    with started(data, tmp_path / "run", data__num_workers=1) as (process, _):
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
    assert json.loads(stdout)["error"]["kind"] == "interrupted"
    assert json.loads(stdout)["error"]["hint"].endswith("--nproc 2")
    assert len(errors(stderr)) == 1
    ((step, _),) = RunDir(tmp_path / "run").checkpoints()
    assert 0 < step < 20000


@pytest.mark.slow  # test_ranks has the end that caused the others
def test_killed_command_leaves_no_rank_and_a_killed_rank_ends_the_next_run_with_one_message(
    data: Path, tmp_path: Path
) -> None:
    with started(data, tmp_path / "run") as (process, _):
        process.kill()  # `started` checks that no process is left
    with started(data, tmp_path / "next", data__num_workers=1) as (process, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL, stderr
    error = json.loads(stdout)["error"]
    assert (error["code"], error["details"]["rank"]) == ("environment.process_failed", 1)
    assert len(errors(stderr)) == 1
    assert "Traceback" not in stderr


def test_signal_ends_the_wait_for_other_machines_at_once(
    data: Path, tmp_path: Path, short_folder: Path
) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps({"hosts": ["127.0.0.1", "b"], "current_host": "127.0.0.1"}))
    environ = {**os.environ, "VLATOOL_HOSTS": str(hosts), "TMPDIR": str(short_folder)}
    arguments = [*VLATOOL, *tiny_arguments(data, tmp_path / "run"), "--nproc", "1"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environ)
    while not list(short_folder.glob("vlatool-ranks-*/torchrun")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 143, stderr
