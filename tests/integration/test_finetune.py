"""A run that begins with the weights of another one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.training import tiny_arguments, tiny_config, world_shards
from vlatool.artifacts.run_dir import RunDir
from vlatool.cli.app import run as run_command
from vlatool.errors import DataError, UsageError
from vlatool.workflows.finetune import finetune
from vlatool.workflows.train import train

STILL = {"total_train_steps": 1, "hparams__lr": 0, "hparams__lr_cooldown_end": 0, "hparams__wd": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_shards(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "base"
    train(tiny_config(data, run, total_train_steps=2))
    return run


def tuned(data: Path, run: Path, origin: Path | str, **changes: Any) -> dict[str, torch.Tensor]:
    keys = {"model__resume_from_checkpoint": str(origin), "model__resume_weights_only": True}
    finetune(tiny_config(data, run, **{**STILL, **keys, **changes}))
    return load_file(RunDir(run).checkpoint(1) / "model.safetensors")


def test_run_begins_with_the_averaged_weights_of_the_checkpoint(
    data: Path, base: Path, tmp_path: Path
) -> None:
    weights = tuned(data, tmp_path / "run", base)

    begun = load_file(RunDir(base).checkpoint(2) / "ema.safetensors")
    assert all(torch.equal(weights[name], begun[name]) for name in begun)


def test_networks_that_are_named_begin_anew(data: Path, base: Path, tmp_path: Path) -> None:
    weights = tuned(data, tmp_path / "run", base, model__resume_except=["output_layer"])

    begun = load_file(RunDir(base).checkpoint(2) / "ema.safetensors")
    other = {name for name in begun if not torch.equal(weights[name], begun[name])}
    assert {name.partition(".")[0] for name in other} == {"output_layer"}


def test_checkpoint_of_another_architecture_is_refused(
    data: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        tuned(data, tmp_path / "run", base, model__transformer__n_layers=3)

    assert (caught.value.code, caught.value.exit_code) == ("data.checkpoint_mismatch", 3)


def test_run_that_could_not_begin_gives_its_folder_to_the_next_one(
    data: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        tuned(data, tmp_path / "run", base, model__transformer__n_layers=3)

    assert tuned(data, tmp_path / "run", base)


def test_checkpoint_file_in_the_working_folder_is_found(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(RunDir(base).checkpoint(2) / "ema.safetensors", "mine.safetensors")

    assert tuned(data, tmp_path / "run", "mine.safetensors")


def test_checkpoint_that_is_missing_is_told_before_the_data_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        tuned(tmp_path / "no-data", tmp_path / "run", tmp_path / "nowhere")

    assert (caught.value.code, caught.value.exit_code) == ("data.no_source", 3)
    assert "nowhere" in caught.value.message


def test_finetuned_run_goes_on_without_the_one_it_began_with(
    data: Path, base: Path, tmp_path: Path
) -> None:
    origin = Path(shutil.copytree(base, tmp_path / "origin"))
    tuned(data, tmp_path / "run", origin)
    shutil.rmtree(origin)

    keys = {"model__resume_from_checkpoint": str(origin), "model__resume_weights_only": True}
    longer = tiny_config(data, tmp_path / "run", **{**STILL, **keys, "total_train_steps": 2})
    assert finetune(longer).steps == 2


def test_checkpoint_that_is_not_there_ends_it_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        tuned(data, tmp_path / "run", tmp_path / "nowhere")

    assert (caught.value.code, (tmp_path / "run").exists()) == ("data.no_source", False)


def test_network_without_a_rate_stays_and_goes_on_so(
    data: Path, base: Path, tmp_path: Path
) -> None:
    keys = {"model__lr_factors": {"transformer": 0.0}, "hparams__lr": 1e-3, "ema__enabled": False}
    weights = tuned(data, tmp_path / "run", base, **keys, total_train_steps=1)

    begun = load_file(RunDir(base).checkpoint(2) / "ema.safetensors")
    moved = {name for name in begun if not torch.equal(weights[name], begun[name])}
    assert moved
    assert not {name for name in moved if name.startswith("transformer.")}


def test_no_checkpoint_is_a_usage_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        finetune(tiny_config(data, tmp_path / "run"))

    assert caught.value.code == "usage.missing_key"


def test_from_is_the_two_published_keys(data: Path, base: Path, tmp_path: Path) -> None:
    words = tiny_arguments(data, tmp_path / "run", **STILL)[1:]

    assert run_command(["finetune", "--from", str(base), *words, "-q"]) == 0
    tree = RunDir(tmp_path / "run").config_tree()["model"]
    assert tree["resume_from_checkpoint"] == str(base)
    assert tree["resume_weights_only"] is True


def test_nothing_that_says_what_is_trained_is_told(base: Path) -> None:
    assert run_command(["finetune", "--from", str(base), "--data", "data", "-q"]) == 2
