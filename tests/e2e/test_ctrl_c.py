"""Ctrl-C at eight moments of eight commands: exit 130 with a report, no traceback, no hang.

Moments are events of the command's own process and of those that it starts, spread over all that
an uninterrupted run has, so they include imports, the start of workers and the last files.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.builders.forks import Forks, Outcome
from tests.builders.interrupt import sitecustomize as interrupt
from tests.builders.training import tiny_arguments
from tests.kills.commands import make_inputs
from vlatool.world.registration import ENVIRONMENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Words = Sequence[str | Path]
COLD, WORKERS, MOMENTS = 2, 2, 8  # a cold start imports everything, the others have done so
COLD_COMMANDS = ("preprocess", "train")  # without torch and with it
SECONDS = 90.0  # of a command, on a busy machine


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def preprocess(inputs: Path, output: Path) -> Words:
    window = ("--past-lowdim-steps", "1", "--future-lowdim-steps", "2")
    return ["preprocess", "spartan", inputs / "raw", "-o", output, "--workers", "2", *window]


def stats_compute(inputs: Path, output: Path) -> Words:
    shutil.copytree(inputs / "data" / "shards", output)
    for name in ("stats.json", "stats_digests.npz"):
        (output / name).unlink()
    return ["stats", "compute", output, "--workers", "2"]


def build_dataset(inputs: Path, output: Path) -> Words:
    words = ["build-dataset", inputs / "windows", "--fast", inputs / "fast"]
    return [*words, "-o", output, "--workers", "2"]


def encode(inputs: Path, output: Path) -> Words:
    words = ["encode", inputs / "frames", "--tokenizer", inputs / "tokenizer"]
    return [*words, "-o", output, "--num-workers", "1"]


def decode(inputs: Path, output: Path) -> Words:
    return ["decode", inputs / "codes", "--tokenizer", inputs / "tokenizer", "-o", output]


def train(inputs: Path, output: Path) -> Words:
    keys = {"total_train_steps": 3, "num_checkpoints": 1, "data__num_workers": 1}
    return tiny_arguments(inputs / "data", output, **keys)


def open_loop(inputs: Path, output: Path) -> Words:
    words = ["eval", "open-loop", inputs / "policy", inputs / "data"]
    return [*words, "-o", output, "--max-samples", "2"]


def roll_out(inputs: Path, output: Path) -> Words:
    """Rollouts of environments in two other processes."""
    words = ["eval", "rollout", inputs / "policy", "--env", ENVIRONMENT, "-o", output]
    sizes = {"episodes": 2, "max-steps": 2, "env-processes": 2, "inference-steps": 1}
    return [*words, *(word for key, size in sizes.items() for word in (f"--{key}", str(size)))]


@pytest.mark.parametrize(
    "command",
    [
        *(preprocess, stats_compute, build_dataset, encode, decode),
        *(train, open_loop, roll_out),
    ],
    ids=lambda command: command.__name__,
)
def test_ctrl_c_at_any_moment_is_reported(
    command: Callable[[Path, Path], Words], warm: Forks, inputs: Path, tmp_path: Path
) -> None:
    def run(setting: str, folder: Path, *, is_cold: bool = False) -> Outcome:
        folder.mkdir()
        words = [*map(str, command(inputs, folder / "out")), "--json"]
        paths = [str(Path(interrupt.__file__).parent), os.environ.get("PYTHONPATH", "")]
        variables = {
            interrupt.VARIABLE: f"{setting}:{folder}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        if is_cold:
            return cold_run(words, variables)
        return warm.run(words, seconds=SECONDS, environment=variables)

    for is_cold in (True, False) if command.__name__ in COLD_COMMANDS else (False,):
        done = run("record", tmp_path / f"record-{is_cold}", is_cold=is_cold)
        assert done.code == 0, done.stderr
    cold_moments = moments(tmp_path / "record-True" / "driver", COLD)
    workers = moments(tmp_path / "record-False" / "worker", WORKERS)
    driver = moments(
        tmp_path / "record-False" / "driver", MOMENTS - len(cold_moments) - len(workers) - 1
    )
    middle = driver[len(driver) // 2]
    settings = [
        *((f"driver:{number}", True) for number in cold_moments),
        *((f"worker:{number}", False) for number in workers),
        *((f"driver:{number}", False) for number in driver),
        (f"driver:{middle},{middle + 1}", False),
    ]
    problems: list[str] = []
    interrupted = 0
    for number, (setting, is_cold) in enumerate(settings):
        folder = tmp_path / str(number)
        outcome = run(setting, folder, is_cold=is_cold)
        handlers = [path.read_text() for path in folder.glob("sent-*")]
        interrupted += bool(handlers)
        message = problem(outcome, handlers)
        if message:
            problems.append(f"{setting} {'cold' if is_cold else 'warm'}: {message}")
    assert problems == []
    assert len(settings) == MOMENTS
    assert interrupted > MOMENTS * 0.7, "most moments are reached"


def moments(record: Path, count: int) -> list[int]:
    """Numbers of events, spread evenly over those of the process with the most of them."""
    if not record.exists():
        return []
    lines = record.read_text(errors="replace").splitlines()
    events = max(Counter(line.partition(" ")[0] for line in lines).values())
    return [round((index + 0.5) * events / count) for index in range(count)]


def cold_run(words: Sequence[str], variables: dict[str, str]) -> Outcome:
    """Runs the command in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vlatool", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=SECONDS,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, left=0)


def problem(outcome: Outcome, handlers: Sequence[str]) -> str:
    """Description of wrong behavior; empty if there is none."""
    if "Traceback" in outcome.stderr:
        return outcome.stderr[-2000:]
    if outcome.left:
        return f"{outcome.left} processes left"
    if outcome.code == 0:  # finished before the signal came
        return ""
    if outcome.code == -2 and not outcome.stdout:
        # The interpreter's own end, before the command handles signals.
        return "" if "SIG_DFL" in "".join(handlers) else "ended by the signal"
    if outcome.code != 130:
        return f"exit {outcome.code}: {outcome.stderr[-2000:]}"
    # Ctrl-C before the options are read: no --json yet.
    is_reported = "interrupted" in (outcome.stdout or outcome.stderr)
    return "" if is_reported else f"no report: {outcome.stderr[-500:]}"
