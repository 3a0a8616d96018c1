"""Runs that continue the training of another run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.training import tiny_config
from vlatool.checkpoints.layout import RunDir
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import finetune, train

FILES = ("model.safetensors", "ema.safetensors", "trainer.pt")


@pytest.fixture
def whole(trained_policy: Path) -> RunDir:
    """Undisturbed run of six steps, with a checkpoint after three."""
    return RunDir(trained_policy)


def config(data: Path, run: Path, checkpoint: Path | str, **changes: Any) -> TrainConfig:
    keys = {"model__resume_from_checkpoint": str(checkpoint), "save_every_n_steps": 3}
    return tiny_config(data, run, **{**keys, **changes})


def test_run_that_continues_another_equals_an_undisturbed_run(
    data: Path, whole: RunDir, tmp_path: Path
) -> None:
    reporter = Recorder()
    result = train(config(data, tmp_path / "run", whole.checkpoint(3)), reporter=reporter)

    assert "continued_with_other_options" not in dict(reporter.warnings)
    assert (result.steps, result.checkpoint_steps) == (6, (3, 6))
    assert [step for step, _ in RunDir(tmp_path / "run").checkpoints()] == [6]
    for name in FILES:
        expected = (whole.checkpoint(6) / name).read_bytes()
        assert (RunDir(tmp_path / "run").checkpoint(6) / name).read_bytes() == expected


def test_continued_run_is_resumed_without_the_other_run(
    data: Path, whole: RunDir, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(whole.root, tmp_path / "copy"))
    shutil.rmtree(RunDir(copy).checkpoint(6))
    keys = {"save_every_n_steps": 1}
    train(config(data, tmp_path / "run", copy, **keys, total_train_steps=5))
    shutil.rmtree(copy)

    train(config(data, tmp_path / "run", copy, **keys))

    weights = load_file(RunDir(tmp_path / "run").checkpoint(6) / FILES[0])
    assert RunDir(tmp_path / "run").config_tree()["init_from"] == str(copy)
    assert len(weights) == len(load_file(whole.checkpoint(6) / FILES[0]))


def test_of_a_published_checkpoint_the_weights_are_used_and_the_optimizer_is_not(
    data: Path, whole: RunDir, tmp_path: Path
) -> None:
    published = tmp_path / "checkpoint_dir/checkpoints/checkpoint_3.pt"
    published.parent.mkdir(parents=True)
    torch.save({"state_dict": load_file(whole.checkpoint(3) / FILES[0])}, published)
    reporter = Recorder()

    result = train(config(data, tmp_path / "run", published), reporter=reporter)

    assert result.steps == 6
    assert any("the state of its optimizer is not" in note for note in reporter.notes)


@pytest.mark.parametrize(
    ("run_function", "keys", "code"),
    [
        (train, {"total_train_steps": 3}, "usage.bad_value"),
        (train, {"hparams__global_batch_size": 16}, "usage.bad_value"),
        (train, {"init_except": ["output_layer"]}, "config.contradiction"),
        (finetune, {}, "usage.conflict"),
    ],
)
def test_run_that_cannot_continue_is_an_error(
    run_function: Callable[..., object],
    keys: dict[str, Any],
    code: str,
    data: Path,
    whole: RunDir,
    tmp_path: Path,
) -> None:
    with fails(code):
        run_function(config(data, tmp_path / "run", whole.checkpoint(3), **keys))


def test_other_options_than_those_of_the_continued_run_are_reported(
    data: Path, whole: RunDir, tmp_path: Path
) -> None:
    reporter = Recorder()
    keys = {"hparams__wd": 0.5, "total_train_steps": 4}
    train(config(data, tmp_path / "run", whole.checkpoint(3), **keys), reporter=reporter)

    text = dict(reporter.warnings)["continued_with_other_options"]
    assert "hparams.wd" in text
    assert "total_train_steps" not in text
    assert "init_" not in text
