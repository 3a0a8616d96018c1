"""`kill -9` of a run on a private Ray: nothing is left running, and the same command ends it."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.builders.preprocessing import contents

pytest.importorskip("ray")

VLATOOL = [sys.executable, "-m", "vlatool"]
RAY = ["--engine", "ray", "--ray-num-cpus", "2"]
LEFT_S = 5.0  # how long processes of a killed run may take to end
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


def start(words: list[str], mark: str) -> subprocess.Popen[bytes]:
    """A run in a session of its own; its processes have `mark` in their environment."""
    return subprocess.Popen(
        words,
        env={**os.environ, "VLATOOL_TEST_RUN": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def processes(mark: str) -> dict[int, str]:
    """The processes of a run that are not over yet: number and title."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"VLATOOL_TEST_RUN={mark}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                found[int(folder.name)] = (folder / "cmdline").read_text().strip("\0")
    return found


def workers(mark: str) -> list[int]:
    """The processes of a run that work on episodes, or are about to."""
    titles = processes(mark).items()
    return [pid for pid, title in titles if title.startswith("ray::") and "Agent" not in title]


def session(leader: int) -> list[int]:
    """The processes of a session, in whichever process group."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return found


def wait_for_worker(run: subprocess.Popen[bytes], mark: str) -> None:
    deadline = time.monotonic() + 60
    while run.poll() is None and not workers(mark) and time.monotonic() < deadline:
        time.sleep(0.02)


def kill(victims: list[int]) -> None:
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def left_after(mark: str, seconds: float) -> dict[int, str]:
    """The processes of a run that still live after so many seconds."""
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
def test_run_killed_again_and_again_ends_with_the_bytes_of_a_local_run(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    output, hits = tmp_path / "out", 0
    words = command(raw, output, *RAY)
    left: dict[str, dict[int, str]] = {}

    for whom in ("session at its start", "session", "driver", "session again"):
        mark = f"{os.getpid()} {whom}"
        run = start(words, mark)
        if "start" not in whom:
            wait_for_worker(run, mark)
        time.sleep(rng.uniform(1.0, 3.0) if "start" in whom else rng.uniform(0.0, 0.7))
        hits += run.poll() is None
        kill([run.pid] if whom == "driver" else session(run.pid))
        run.wait()
        left[whom] = left_after(mark, LEFT_S)
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert contents(output) == undisturbed
    assert not (output / ".vlatool/journal").exists()
    assert {whom: some for whom, some in left.items() if some} == {}
    assert hits >= 3


@pytest.mark.slow
def test_killed_worker_costs_the_run_nothing(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output, mark, rng = tmp_path / "out", f"{os.getpid()} worker", random.Random(SEED)
    run = start(command(raw, output, *RAY), mark)
    wait_for_worker(run, mark)
    time.sleep(rng.uniform(0.0, 0.7))
    kill([rng.choice(workers(mark))])

    assert run.wait(120) == 0
    assert contents(output) == undisturbed
    assert left_after(mark, LEFT_S) == {}


@pytest.mark.slow
@pytest.mark.parametrize("title", ["gcs/gcs_server", "raylet/raylet", "agent.py", "agent/main.py"])
def test_process_of_ray_that_dies_at_the_start_is_exit_6(
    title: str, raw: Path, tmp_path: Path
) -> None:
    """Ray itself gives up after half a minute."""
    mark = f"{os.getpid()} {title}"
    run = start(command(raw, tmp_path / "out", *RAY, "--json"), mark)
    deadline, victims = time.monotonic() + 60, list[int]()
    while run.poll() is None and not victims and time.monotonic() < deadline:
        programs = {pid: words.split("\0", 3) for pid, words in processes(mark).items()}
        victims = [
            pid
            for pid, words in programs.items()
            if any(word.endswith(title) for word in words[: 3 if "python" in words[0] else 1])
        ]
        time.sleep(0.02)
    kill(victims[:1])

    assert victims
    assert run.wait(timeout=120) == 6
    assert left_after(mark, LEFT_S) == {}
