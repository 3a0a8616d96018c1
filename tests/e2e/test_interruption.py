"""Interrupted commands: no partial files, and the same command completes the output."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.builders.forks import Forks, Outcome

VLATOOL = [sys.executable, "-m", "vlatool"]


@pytest.fixture(scope="module")
def raw(light: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    words = ["sample", "spartan", folder, "--episodes", "8", "--frames", "30", "-q"]
    done = light.run(words, seconds=120)
    assert done.code == 0, done.stderr
    return folder


def preprocess(raw: Path, output: Path) -> list[str]:
    words = ["preprocess", "spartan", str(raw), "--sink", "lbm"]
    return [*words, "--output", str(output), "--json"]


def stop_when_half_way(light: Forks, words: list[str], output: Path, number: int) -> Outcome:
    """Sends a signal to the driver once some episodes are written."""
    started = light.start(words)
    deadline = time.monotonic() + 60
    while len(list((output / "episodes").glob("*.tar"))) < 2 and time.monotonic() < deadline:
        assert started.is_running(), started.finish()
        time.sleep(0.01)
    os.kill(started.pid, number)
    return started.finish()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_preprocess_leaves_only_complete_files(
    light: Forks, raw: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    output = tmp_path / "out"
    done = stop_when_half_way(light, preprocess(raw, output), output, number)
    assert done.code == exit_code
    error = done.document["error"]
    assert "same command" in error["message"] + error["hint"]
    assert not (output / "shards" / "manifest.jsonl").exists()


SLOW_WORKERS = """
import sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    time.sleep(0.5)
"""


def test_ctrl_c_while_workers_start_prints_no_traceback(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_WORKERS)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [*VLATOOL, *preprocess(raw, tmp_path / "out"), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    driver, deadline = psutil.Process(process.pid), time.monotonic() + 60
    while time.monotonic() < deadline and len(driver.children()) < 3:  # the tracker and two workers
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    document, errors = process.communicate(timeout=60)
    assert json.loads(document)["error"]["kind"] == "interrupted"
    assert "Traceback" not in errors
