"""Runs that continue the training of another run, ours or a published one."""

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
from vlatool.formats.run.layout import RunDir
from vlatool.models.base import decays_by_name
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import finetune, train

FILES = ("model.safetensors", "ema.safetensors", "trainer.pt")
# Tables that nothing trains, in the order of the published network.
DEAD = ("transformer.embeddings.weight", "transformer.norm.weight", "transformer.output.weight")


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


@pytest.fixture
def published(whole: RunDir, tmp_path: Path) -> Path:
    """Files of the checkpoint after three steps, as the published program writes them."""
    folder = whole.checkpoint(3)
    state: dict[str, Any] = {}
    for name, value in load_file(folder / FILES[0]).items():
        if name.startswith("transformer.") and DEAD[0] not in state:
            state |= {dead: torch.ones(2) for dead in DEAD}
        state[name] = value
    averages = load_file(folder / FILES[1])
    trainer = torch.load(folder / FILES[2], weights_only=True)
    moments = trainer["optimizers"]["main"]["state"]
    names = [name for name in state if f"model.{name}" in moments or name in DEAD]
    groups = [[n for n in names if decays_by_name(n) is decays] for decays in (False, True)]
    parameters = {name: torch.nn.Parameter(state[name].clone()) for name in names}
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[name] for name in group]} for group in groups]
    )
    for name, parameter in parameters.items():
        if name not in DEAD:
            optimizer.state[parameter] = moments[f"model.{name}"]
    progress = {"checkpoint_num": 3, "global_step": 3, "samples_seen": 20}
    folder = tmp_path / "checkpoint_dir/checkpoints"
    folder.mkdir(parents=True)
    torch.save({**progress, "state_dict": state}, folder / "checkpoint_3.pt")
    torch.save(
        {"checkpoint_num": 3, "optimizer": optimizer.state_dict()}, folder / "optimizer_3.pt"
    )
    content = {"ema_state_dict": averages, "ema_optimization_step": trainer["averages"]["model"]}
    torch.save(content, folder / "ema_3.pt")
    return folder


def test_run_that_continues_a_published_checkpoint_equals_an_undisturbed_run(
    data: Path, whole: RunDir, published: Path, tmp_path: Path
) -> None:
    train(config(data, tmp_path / "run", published / "checkpoint_3.pt"))

    for name in FILES:
        expected = (whole.checkpoint(6) / name).read_bytes()
        assert (RunDir(tmp_path / "run").checkpoint(6) / name).read_bytes() == expected


def test_published_optimizer_of_several_processes_is_read(
    data: Path, whole: RunDir, published: Path, tmp_path: Path
) -> None:
    """It has names of parameters in place of numbers."""
    moments = torch.load(whole.checkpoint(3) / FILES[2], weights_only=True)["optimizers"]["main"]
    state = {f"module.{name.removeprefix('model.')}": row for name, row in moments["state"].items()}
    content = {"checkpoint_num": 3, "optimizer": {"state": state, "param_groups": []}}
    torch.save(content, published / "optimizer_3.pt")

    train(config(data, tmp_path / "run", published / "checkpoint_3.pt"))

    expected = (whole.checkpoint(6) / FILES[2]).read_bytes()
    assert (RunDir(tmp_path / "run").checkpoint(6) / FILES[2]).read_bytes() == expected


@pytest.mark.parametrize("name", ["optimizer_3.pt", "ema_3.pt"])
def test_missing_published_file_is_named_before_anything_is_written(
    data: Path, published: Path, tmp_path: Path, name: str
) -> None:
    (published / name).unlink()

    with fails("data.missing") as caught:
        train(config(data, tmp_path / "run", published / "checkpoint_3.pt"))
    assert str(published / name) in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda saved: saved["param_groups"][0]["params"].pop(), "data.broken"),
        (lambda saved: saved["state"].update({0: torch.ones(3)}), "data.checkpoint_mismatch"),
        (lambda saved: saved["state"][0].update(step=torch.ones(3)), "data.checkpoint_mismatch"),
        (lambda saved: saved["state"][0].update(exp_avg=1.0), "data.checkpoint_mismatch"),
    ],
    ids=["another network", "no mapping", "three steps", "no tensor"],
)
def test_optimizer_that_does_not_fit_is_an_error(
    data: Path, published: Path, tmp_path: Path, change: Callable[[Any], object], code: str
) -> None:
    content = torch.load(published / "optimizer_3.pt", weights_only=True)
    change(content["optimizer"])
    torch.save(content, published / "optimizer_3.pt")

    with fails(code):
        train(config(data, tmp_path / "run", published / "checkpoint_3.pt"))


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
