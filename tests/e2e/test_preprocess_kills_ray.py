"""`kill -9` of a run on a private Ray: no process is left, and the same command resumes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.builders.preprocessing import contents

pytest.importorskip("ray")

VLATOOL = [sys.executable, "-m", "vlatool"]
RAY = ["--engine", "ray", "--ray-num-cpus", "2"]
LEFT_S = 20.0  # time for processes of a killed run to end; those of Ray itself took a minute
PATIENCE_S = 120.0  # the machine may be busy with other tests
SEED = os.environ.get("VLATOOL_KILL_SEED", "7")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    command = [*VLATOOL, "sample", "spartan", str(folder), "--episodes", "16", "--frames", "30"]
    subprocess.run([*command, "-q"], check=True, capture_output=True)
    return folder


def command(raw: Path, output: Path, *more: str) -> list[str]:
    shards = ["--samples-per-shard", "20"]
    return [*VLATOOL, "preprocess", "spartan", str(raw), "-o", str(output), *shards, "-q", *more]


def start(words: list[str], mark: str, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a run in its own session; its processes have `mark` in their environment."""
    return subprocess.Popen(
        words,
        env={**os.environ, **environment, "VLATOOL_TEST_RUN": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def processes(mark: str) -> dict[int, str]:
    """Running processes of a run: number to title."""
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"VLATOOL_TEST_RUN={mark}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                titles[int(folder.name)] = (folder / "cmdline").read_text().strip("\0")
    return titles


def workers(mark: str) -> list[int]:
    """Processes of a run that work on episodes, or will do so."""
    titles = processes(mark).items()
    return [pid for pid, title in titles if title.startswith("ray::") and "Agent" not in title]


def session(leader: int) -> list[int]:
    """Processes of a session, in any process group."""
    members: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == leader:
                members.append(int(folder.name))
    return members


def programs(mark: str, program: str) -> list[int]:
    """Processes of a run that execute a program or a Python script."""
    words = {pid: title.split("\0", 3)[:3] for pid, title in processes(mark).items()}
    heads = {pid: some if "python" in some[0] else some[:1] for pid, some in words.items()}
    return [pid for pid, some in heads.items() if any(word.endswith(program) for word in some)]


def first(run: subprocess.Popen[bytes], find: Callable[[], list[int]]) -> list[int]:
    """First non-empty result of `find`; empty if the run ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while run.poll() is None and time.monotonic() < deadline:
        if pids := find():
            return pids
        time.sleep(0.02)
    return []


def kill(victims: list[int]) -> None:
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def left_after(mark: str, seconds: float) -> dict[int, str]:
    """Processes of a run that still exist after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("quiet") / "out"
    subprocess.run(command(raw, output), check=True, capture_output=True)
    return contents(output)


@pytest.mark.slow
def test_repeatedly_killed_run_ends_with_the_bytes_of_a_local_run(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    output, hits = tmp_path / "out", 0
    words = command(raw, output, *RAY)
    left: dict[str, dict[int, str]] = {}

    for whom in ("session at its start", "session", "driver"):
        mark = f"{os.getpid()} {whom}"
        run = start(words, mark)
        if "start" not in whom:
            first(run, partial(workers, mark))
        time.sleep(rng.uniform(1.0, 3.0) if "start" in whom else rng.uniform(0.0, 0.7))
        hits += run.poll() is None
        kill([run.pid] if whom == "driver" else session(run.pid))
        run.wait()
        left[whom] = left_after(mark, LEFT_S)
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 0, done.stderr
    assert contents(output) == undisturbed
    assert not (output / ".vlatool/journal").exists()
    assert {whom: some for whom, some in left.items() if some} == {}
    assert hits >= 2


@pytest.mark.slow
def test_worker_that_dies_at_its_start_does_not_affect_the_run(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Ray waits for it, a minute by default, and starts another one."""
    output, mark = tmp_path / "out", f"{os.getpid()} new worker"
    timeout = {"RAY_worker_register_timeout_seconds": "10"}
    run = start(command(raw, output, *RAY), mark, **timeout)
    victims = first(run, partial(programs, mark, "default_worker.py"))
    kill(victims[:1])

    assert victims
    assert run.wait(PATIENCE_S) == 0
    assert contents(output) == undisturbed
    assert left_after(mark, LEFT_S) == {}


@pytest.mark.slow
def test_process_of_ray_that_dies_at_the_start_is_exit_6(raw: Path, tmp_path: Path) -> None:
    """Runs several at once, because Ray itself gives up after half a minute."""
    victims: dict[str, list[int]] = {}
    runs: dict[str, subprocess.Popen[bytes]] = {}
    for title in ("gcs/gcs_server", "raylet/raylet", "agent/main.py"):
        mark = f"{os.getpid()} {title}"
        words = command(raw, tmp_path / title.replace("/", "-"), *RAY, "--json")
        runs[title] = start(words, mark)
        victims[title] = first(runs[title], partial(programs, mark, title))[:1]
        kill(victims[title])
    codes = {title: run.wait(PATIENCE_S) for title, run in runs.items()}
    left = [left_after(f"{os.getpid()} {title}", LEFT_S) for title in runs]

    assert all(victims.values())
    assert codes == dict.fromkeys(runs, 6)
    assert not any(left)
