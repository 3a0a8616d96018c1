"""`vlatool preprocess` from S3 to S3 while the storage fails or the run is killed."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.s3_runs import command, digests, finished, preprocess, upload
from tests.builders.s3_server import Faults, Proxy
from tests.builders.spartan import spartan_task
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE

EPISODES, FRAMES = 3, 12
KILLS = 6
OUTAGE_S = 65
SPEED = 20  # factor of the clock in the run with the outage


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw") / "raw", EPISODES, FRAMES)


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output of a run without S3."""
    output = tmp_path_factory.mktemp("local") / "out"
    assert preprocess(raw, output) == 0
    return digests(output)


@pytest.fixture
def bucket(s3_bucket: str) -> RemotePath:
    return RemotePath(f"s3://{s3_bucket}")


@pytest.fixture
def source(raw: Path, bucket: RemotePath) -> RemotePath:
    """Raw episodes in S3."""
    return upload(raw, bucket / "raw")


def fails_slowly(faults: Faults) -> None:
    faults.fail_every, faults.delay_s = 7, 0.02
    faults.cut_after, faults.cuts = 30_000, 6


def loses_answers_when_it_is_not_busy(faults: Faults) -> None:
    faults.status, faults.retry_after_s, faults.fail_next = 503, 1, 4
    faults.lose_answers, faults.only = 4, ("PUT", "POST", "DELETE")


@pytest.mark.parametrize("misbehave", [fails_slowly, loses_answers_when_it_is_not_busy])
def test_temporary_failures_change_nothing(
    source: RemotePath,
    bucket: RemotePath,
    s3_proxy: Proxy,
    expected: dict[str, str],
    misbehave: Callable[[Faults], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, str(SPEED))
    misbehave(s3_proxy.faults)

    assert preprocess(source, bucket / "out") == 0

    assert s3_proxy.faults.fail_next == 0
    s3_proxy.faults.clear()
    assert digests(bucket / "out") == expected


@pytest.mark.parametrize("answered", [35, pytest.param(75, marks=pytest.mark.slow)])
def test_outage_longer_than_the_timeout_ends_the_run_and_the_next_resumes(
    source: RemotePath, bucket: RemotePath, s3_proxy: Proxy, expected: dict[str, str], answered: int
) -> None:
    s3_proxy.faults.clear()
    s3_proxy.faults.down_after = answered
    run = command(source, bucket / "out")

    ended = finished(run, {"VLATOOL_STORAGE_PATIENCE_S": "1"})

    assert ended.returncode == 5, ended.stderr
    messages = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.partition(":")[0] for line in messages] == ["error", "hint"]
    assert "Traceback" not in ended.stderr
    s3_proxy.faults.clear()
    left = digests(bucket / "out")
    whole = {name: digest for name, digest in left.items() if name.endswith(".tar")}
    assert whole.items() <= expected.items()
    assert "shards/manifest.jsonl" not in left

    assert finished(run, {SPEED_VARIABLE: str(SPEED)}).returncode == 0  # the lock gets stale
    assert digests(bucket / "out") == expected


def test_killed_run_is_detected_and_its_results_are_reused(
    source: RemotePath, bucket: RemotePath, s3_proxy: Proxy, expected: dict[str, str]
) -> None:
    s3_proxy.faults.delay_s = 0.02
    run = command(source, bucket / "out")
    process = subprocess.Popen(run, start_new_session=True)
    journal = bucket / "out/.vlatool/journal/items"
    deadline = time.monotonic() + 60
    while not any(journal.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    s3_proxy.faults.clear()
    assert (bucket / "out/.vlatool/lock").is_file()

    done = finished([*run, "--json"], {SPEED_VARIABLE: str(SPEED)})  # the lock gets stale sooner

    assert done.returncode == 0, done.stderr
    assert '"resumed": 0' not in done.stdout
    assert digests(bucket / "out") == expected


@pytest.mark.slow
def test_repeatedly_killed_run_ends_with_the_same_bytes(
    source: RemotePath, bucket: RemotePath, s3_proxy: Proxy, expected: dict[str, str]
) -> None:
    rng = random.Random(os.environ.get("VLATOOL_KILL_SEED", "3"))
    s3_proxy.faults.delay_s = 0.02
    run, soon = command(source, bucket / "out"), {SPEED_VARIABLE: "100"}  # of stale locks
    for number in range(KILLS):
        process = subprocess.Popen(
            run, stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **soon}
        )
        time.sleep(rng.uniform(0.8, 5.0))
        if process.poll() is None:
            (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    s3_proxy.faults.clear()

    done = finished(run, soon)

    assert done.returncode == 0, done.stderr
    assert digests(bucket / "out") == expected
    assert not (bucket / "out/.vlatool/journal").exists()


def test_outage_of_a_minute_is_survived(
    source: RemotePath, bucket: RemotePath, s3_proxy: Proxy, expected: dict[str, str]
) -> None:
    faults = s3_proxy.faults
    faults.clear()
    began: list[float] = []

    def go_down() -> None:
        while len(faults.requests) < 40:
            time.sleep(0.01)
        began.append(time.monotonic())
        faults.down_for(OUTAGE_S / SPEED)

    threading.Thread(target=go_down, daemon=True).start()

    ended = finished(command(source, bucket / "out"), {SPEED_VARIABLE: str(SPEED)})

    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - began[0] > OUTAGE_S / SPEED
    assert digests(bucket / "out") == expected
