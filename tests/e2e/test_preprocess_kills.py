"""`kill -9` at any time: the same command resumes and ends with the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.preprocessing import contents

VLATOOL = [sys.executable, "-m", "vlatool"]
KILLS = 10


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    command = [*VLATOOL, "sample", "spartan", str(folder), "--episodes", "16", "--frames", "30"]
    subprocess.run([*command, "-q"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("quiet") / "out"
    subprocess.run(command(raw, output), check=True, capture_output=True)
    return contents(output)


def command(raw: Path, output: Path, *more: str) -> list[str]:
    shards = ["--samples-per-shard", "20"]
    return [*VLATOOL, "preprocess", "spartan", str(raw), "-o", str(output), *shards, "-q", *more]


def run_and_kill(words: list[str], after_s: float, *, group: bool) -> None:
    """Starts a run and kills it, with or without its workers, unless it ends before."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after_s)
    if process.poll() is None:
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def finish(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_repeatedly_killed_run_ends_with_the_same_bytes(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(os.environ.get("VLATOOL_KILL_SEED", "7"))
    output = tmp_path / "out"
    for number in range(KILLS):
        after_s = rng.uniform(0.3, 2.5)
        run_and_kill(command(raw, output), after_s, group=number % 2 == 0)

    done = finish(command(raw, output))

    assert done.returncode == 0, done.stderr
    assert contents(output) == undisturbed
    assert not (output / ".vlatool/journal").exists()
    assert not list(output.rglob(".*.partial"))


@pytest.mark.slow
def test_every_phase_survives_a_kill(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Kills once at each of many times, always in a new output."""
    for after_ms in range(600, 2600, 250):
        output = tmp_path / str(after_ms)
        run_and_kill(command(raw, output), after_ms / 1000, group=False)

        done = finish(command(raw, output))

        assert done.returncode == 0, done.stderr
        assert contents(output) == undisturbed, f"killed after {after_ms} ms"
        shutil.rmtree(output)


def test_finished_episodes_are_not_done_again(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = subprocess.Popen(command(raw, output), start_new_session=True)
    deadline = time.monotonic() + 60
    journal = output / ".vlatool/journal/items"
    while len(list(journal.glob("*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (output / "episodes").glob("*.tar")}
    entered = {f"episode_{path.stem}.tar" for path in journal.glob("*.npz")}

    assert finish(command(raw, output)).returncode == 0

    after = {path.name: path.stat().st_mtime_ns for path in (output / "episodes").glob("*.tar")}
    assert entered
    assert {name for name in before if before[name] == after[name]} >= entered
