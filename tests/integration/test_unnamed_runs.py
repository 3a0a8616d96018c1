"""Runs without a name: their folder says what is trained and on which data."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.builders import training
from tests.builders.errors import fails
from tests.builders.recording import Recorder
from vlatool.events import Progress
from vlatool.training.resume import default_name
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


def test_the_same_command_continues_a_stopped_run_and_then_says_that_it_is_complete(
    data: Path, stopped: Path
) -> None:
    (folder,) = stopped.iterdir()
    assert start(data, stopped, Recorder()) == folder
    config = training.tiny_config(data, stopped / "run", name="null")
    assert train(config, typed=frozenset()).status == "already complete"
    assert [*stopped.iterdir()] == [folder]


def test_another_option_is_refused(data: Path, stopped: Path) -> None:
    with fails("usage.output_differs") as caught:
        start(data, stopped, Recorder(), **{"hparams.seed": 5})
    assert "--output" in caught.value.hint


def test_an_unfinished_run_with_a_name_of_earlier_versions_is_named(
    data: Path, stopped: Path
) -> None:
    (folder,) = stopped.iterdir()
    lr = training.tiny_config(data, stopped / "run").hparams.lr
    old = stopped / f"2026_01_01-00_00_00-model_diffusion_policy-lr_{lr}"
    shutil.move(folder, old)
    reporter = Recorder()
    assert start(data, stopped, reporter) == folder
    assert reporter.notes[0] == f"{old} is unfinished; --output {old} continues it"


@pytest.mark.parametrize(
    ("stem", "location", "name"),
    [
        ("policy-tiny", "data", "policy-tiny-data"),
        ("policy-tiny", "lab/pick/shards", "policy-tiny-pick"),
        ("", "s3://lab/pick two/manifest.jsonl", "diffusion_policy-pick-two"),
        ("p" * 90, "data", "p" * 80),
    ],
)
def test_the_name_says_what_is_trained_on_which_data(
    stem: str, location: str, name: str, tmp_path: Path
) -> None:
    config = training.tiny_config(Path("data"), tmp_path / "run", name="null")
    section = config.data.model_copy(update={"dataset_manifest": [location]})
    assert default_name(config.model_copy(update={"data": section}), stem) == name
