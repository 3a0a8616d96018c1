"""Trackers of a run, read back by the readers of TensorBoard and W&B."""

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.toy_runs import DATA, SITE, STEPS, toy_config, toys
from tests.builders.wandb_files import rows as wandb_rows
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.cli.app import run as run_command
from vlatool.training.trackers import TrackedReporter
from vlatool.workflows.train import train

BOTH = "[tensorboard, wandb]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Toys, with a run that lost its last checkpoint and was resumed."""
    folder = toys(tmp_path_factory.mktemp("toys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / SITE))
        patch.setenv("WANDB_MODE", "offline")
        config = toy_config(folder, "toy_gan", "tracked", tracker=BOTH)
        train(config)
        shutil.rmtree(RunDir(folder / "tracked").checkpoint(STEPS))
        train(config)
        yield folder


def events(run: Path, kind: str) -> dict[str, list[Any]]:
    """Events by tag, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={kind: 0}).Reload()
    return {tag: getattr(reader, kind.capitalize())(tag) for tag in reader.Tags()[kind]}


def numbers(run: Path) -> dict[str, dict[int, float]]:
    """Metrics by name and step."""
    by_name: dict[str, dict[int, float]] = {}
    for row in read_metrics(RunDir(run).metrics):
        for name in row.keys() - {"step"}:
            by_name.setdefault(name, {})[row["step"]] = row[name]
    return by_name


def test_trackers_have_each_metric_and_image_of_each_step_once(root: Path) -> None:
    shown = {
        tag: [(event.step, event.value) for event in scalars]
        for tag, scalars in events(root / "tracked", "scalars").items()
    }
    assert shown == {
        tag: [(step, float(np.float32(value))) for step, value in values.items()]
        for tag, values in numbers(root / "tracked").items()
    }

    rows = wandb_rows(root / "tracked" / "wandb")
    expected = read_metrics(RunDir(root / "tracked").metrics)
    # On disk, a run that resumes begins a file of its own.
    for row, values in zip(rows, [*expected, *expected[STEPS // 2 :]], strict=True):
        assert row.keys() >= values.keys()
        assert (row["step"], row["loss"]) == (values["step"], values["loss"])
    assert [event.step for event in events(root / "tracked", "images")["made"]] == [4, 8]
    assert [row["step"] for row in rows if any("made" in name for name in row)] == [4, 8, 8]


@pytest.mark.parametrize("responds", [False, True], ids=["refuses", "hangs"])
def test_wandb_server_that_is_away_is_a_warning(
    responds: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if responds:  # connections open, and nobody answers
            server.listen()
        wandb.teardown()  # it reads its variables once
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
        recorder, name = Recorder(), f"away_{responds}"
        train(toy_config(root, "toy_gan", name, tracker="wandb"), reporter=recorder)
        wandb.teardown()
    assert [code for code, _ in recorder.warnings] == ["tracker_offline"]
    assert len(wandb_rows(root / name / "wandb")) == STEPS


def test_tracker_that_is_not_installed_ends_the_run_before_it_starts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = toy_config(root, "toy_gan", "none", tracker="tensorboard")
    with fails("environment.missing_dependency"):
        train(config)
    assert not (root / "none").exists()


def test_tracker_that_fails_is_left_out_with_one_warning() -> None:
    class Full:
        name = "full"

        def metrics(self, *_: object) -> None:
            raise OSError("no space left")

        images = close = metrics

    recorder = Recorder()
    reporter = TrackedReporter(recorder, [Full()])
    reporter.metrics(1, {"loss": 1.0})
    reporter.metrics(2, {"loss": 1.0})
    reporter.close(0)
    assert [code for code, _ in recorder.warnings] == ["tracker_failed"]


def test_overwriting_a_run_removes_what_its_trackers_wrote(root: Path) -> None:
    other = toy_config(root, "toy_gan", "tracked", hparams__lr=0.5, overwrite=True)
    train(other)
    assert not [name for name in ("tensorboard", "wandb") if (root / "tracked" / name).exists()]


def test_run_of_a_command_line_has_trackers_and_origins_of_its_keys(
    root: Path, tmp_path: Path
) -> None:
    keys = {"data.lanes": 4, "data.num_workers": 0, "ema.enabled": True, "num_checkpoints": 1}
    file = tmp_path / "toy.yaml"
    file.write_text("total_train_steps: 2\ntracker: tensorboard\nmodel:\n  type: toy_lm\n")
    words = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    batches = ["--hparams.global_batch_size", "8", "--hparams.per_gpu_batch_size", "4"]
    data = ["--data", str(root / DATA), "--data.allow_multiple_epochs", "true"]
    run = tmp_path / "run"
    words += [*batches, *data, "-o", str(run), "-q"]
    assert run_command(["train", "--config", str(file), *words]) == 0
    assert (run / "tensorboard").is_dir()
    origins = RunDir(run).read_origins()
    assert origins["total_train_steps"] == f"{file}:1"
    assert origins["hparams.global_batch_size"].startswith("command line")
