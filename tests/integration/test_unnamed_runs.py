"""Runs without a name: which unfinished one they continue."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.builders import training
from tests.builders.recording import Recorder
from vlatool.events import Progress
from vlatool.jobs.record import output_lock
from vlatool.workflows.train import train


@pytest.fixture
def stopped(data: Path, tmp_path: Path) -> Path:
    """Folder of the runs, with one that was stopped after its first step."""
    with pytest.raises(KeyboardInterrupt):
        start(data, tmp_path, Stopping())
    return tmp_path


class Stopping(Recorder):
    """Reporter with a Ctrl-C at the first step."""

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Bar that sends the signal once."""
        if name == "training":
            os.kill(os.getpid(), signal.SIGINT)
        return super().progress(name, total, unit)


def start(data: Path, runs: Path, reporter: Recorder, **changes: Any) -> Path:
    config = training.tiny_config(data, runs / "run", name="null", **changes)
    return Path(train(config, typed=frozenset(), reporter=reporter).output)


def test_the_same_command_continues_a_stopped_run(data: Path, stopped: Path) -> None:
    reporter = Recorder()
    (folder,) = stopped.iterdir()
    assert start(data, stopped, reporter) == folder
    assert reporter.notes[0].startswith(f"{folder}: continues this unfinished run")
    assert start(data, stopped, Recorder()) != folder  # it is complete now


def test_another_option_makes_a_new_run_and_says_so(data: Path, stopped: Path) -> None:
    reporter = Recorder()
    changes = {"hparams.seed": 5}
    output = start(data, stopped, reporter, **changes)
    assert len(list(stopped.iterdir())) == 2
    assert output.is_dir()
    assert reporter.notes[0].startswith("a new run, because")
    assert "hparams.seed" in reporter.notes[0]


def test_a_run_that_another_process_trains_is_left_alone(data: Path, stopped: Path) -> None:
    reporter = Recorder()
    (folder,) = stopped.iterdir()
    with output_lock(folder, "test"):
        output = start(data, stopped, reporter)
    assert output != folder
    assert reporter.notes[0].endswith(f"{folder}: another process is training it")
