"""Runs that start with the weights of another run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.training import (
    HAND_COMMAND,
    XYZ_COMMAND,
    tiny_arguments,
    tiny_config,
)
from vlatool.checkpoints.layout import RunDir
from vlatool.cli.app import run as run_command
from vlatool.workflows.train import finetune, train

STILL = {"total_train_steps": 1, "hparams__lr": 0, "hparams__lr_cooldown_end": 0, "hparams__wd": 0}


@pytest.fixture(scope="module")
def base(trained_policy: Path) -> Path:
    return trained_policy


def finetuned(
    data: Path, run: Path, checkpoint: Path | str, **changes: Any
) -> dict[str, torch.Tensor]:
    keys = {"init_from": str(checkpoint)}
    finetune(tiny_config(data, run, **{**STILL, **keys, **changes}))
    return load_file(RunDir(run).checkpoint(1) / "model.safetensors")


def test_published_keys_and_from_stand_for_the_initial_weights(
    data: Path, base: Path, tmp_path: Path
) -> None:
    keys = {
        "model__resume_from_checkpoint": str(base),
        "model__resume_weights_only": True,
        "model__resume_except": ["output_layer"],
    }
    config = tiny_config(data, tmp_path / "run", **{**STILL, **keys})
    assert (config.init_from, config.init_except) == (str(base), ["output_layer"])

    arguments = tiny_arguments(data, tmp_path / "run", **STILL)[1:]
    assert run_command(["finetune", "--from", str(base), *arguments, "-q"]) == 0
    assert RunDir(tmp_path / "run").config_tree()["init_from"] == str(base)
    assert run_command(["finetune", "--from", str(base), "--data", "data", "-q"]) == 2


def test_checkpoint_of_another_architecture_is_an_error_and_the_folder_can_be_used_again(
    data: Path, base: Path, tmp_path: Path
) -> None:
    with fails("data.checkpoint_mismatch", 3):
        finetuned(data, tmp_path / "run", base, model__transformer__n_layers=3)
    with fails("config.invalid_value"):
        finetuned(data, tmp_path / "run", base, init_except=["output_layr"])

    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    assert finetuned(data, tmp_path / "run", copy)
    shutil.rmtree(copy)
    keys = {**STILL, "init_from": str(copy), "total_train_steps": 2}  # resumes without it
    assert finetune(tiny_config(data, tmp_path / "run", **keys)).steps == 2


def test_missing_checkpoint_is_an_error_before_anything_is_read_or_written(
    data: Path, tmp_path: Path
) -> None:
    with fails("data.no_source", 3) as caught:
        finetuned(tmp_path / "no-data", tmp_path / "run", tmp_path / "nowhere")
    assert "nowhere" in caught.value.message
    with fails("usage.missing_key"):
        finetune(tiny_config(data, tmp_path / "run"))
    with fails("usage.missing_key"):
        train(tiny_config(data, tmp_path / "run", data__statistics_from="init"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ["data", "init"])
def test_finetune_says_which_statistics_it_uses_and_where_ranges_differ(
    data: Path, wider: Path, base: Path, tmp_path: Path, source: str
) -> None:
    keys = {"init_from": str(base), "data__statistics_from": source, "dry_run": True}
    for folder in (data, wider):
        messages = Recorder()
        finetune(tiny_config(folder, tmp_path / "run", **STILL, **keys), reporter=messages)
        shown = {code: text for code, text in messages.warnings if code.startswith("data.")}
        differing = shown.pop("data.ranges_differ", "")
        assert (HAND_COMMAND in differing) == (folder == wider)
        assert XYZ_COMMAND not in differing
        assert [*shown] == []
        assert not [text for text in shown.values() if re.search(r"None|True|False|'|\(", text)]
        assert any(f"data.statistics_from={source}" in n for n in messages.notes) or folder == data


def test_checkpoint_file_in_the_working_folder_is_found(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(RunDir(base).checkpoint(6) / "ema.safetensors", "mine.safetensors")

    assert finetuned(data, tmp_path / "run", "mine.safetensors")


# statistics of the initial weights


@pytest.fixture(scope="module")
def wider(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data with statistics of hand commands that move three times as far."""
    folder = tmp_path_factory.mktemp("wider") / "data"
    shutil.copytree(data, folder)
    path = folder / "shards" / "stats.json"
    statistics = json.loads(path.read_text())
    entry = statistics[HAND_COMMAND]
    entry["std"] = [3 * value for value in entry["std"]]
    path.write_text(json.dumps(statistics))
    return folder


def test_run_keeps_the_statistics_of_the_initial_weights_and_resumes_without_them(
    wider: Path, base: Path, tmp_path: Path
) -> None:
    weights, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, weights)
    keys = {"init_from": str(weights), "data__statistics_from": "init"}
    finetune(tiny_config(wider, run, **{**STILL, **keys, "hparams__lr_scheduler": "const"}))
    assert (run / "stats.json").read_bytes() == (base / "stats.json").read_bytes()
    shutil.rmtree(weights)

    longer = {**STILL, **keys, "hparams__lr_scheduler": "const", "total_train_steps": 2}
    assert finetune(tiny_config(wider, run, **longer)).steps == 2
    assert (run / "stats.json").read_bytes() == (base / "stats.json").read_bytes()


def test_statistics_that_would_hold_what_moves_in_the_data_are_refused(
    data: Path, base: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(RunDir(base).checkpoint(6) / "model.safetensors", weights)
    shutil.copy(base / "preprocessing_config.yaml", tmp_path)
    statistics = json.loads((base / "stats.json").read_text())
    entry = statistics[f"{XYZ_COMMAND}_relative"]
    for key in [key for key in entry if key.startswith(("min", "max"))]:
        entry[key] = entry[key.replace("max", "mean").replace("min", "mean")]
    (tmp_path / "stats.json").write_text(json.dumps(statistics))
    with fails("data.missing") as caught:
        finetuned(data, tmp_path / "run", weights, data__statistics_from="init")
    assert f"{XYZ_COMMAND}_relative" in caught.value.message
    assert "never moved in the data of the initial weights" in caught.value.message


def test_statistics_of_a_published_file_lie_above_its_folder(
    wider: Path, base: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "experiment" / "checkpoints" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    shutil.copy(RunDir(base).checkpoint(6) / "model.safetensors", weights)
    for name in ("stats.json", "preprocessing_config.yaml"):
        shutil.copy(base / name, tmp_path / "experiment")

    finetuned(wider, tmp_path / "run", weights, data__statistics_from="init")

    run = tmp_path / "run"
    assert (run / "stats.json").read_bytes() == (base / "stats.json").read_bytes()


def test_field_that_the_initial_weights_lack_cannot_use_their_statistics(
    data: Path, base: Path, tmp_path: Path
) -> None:
    fields = f"{XYZ_COMMAND},{HAND_COMMAND}"
    keys = {"init_from": str(base), "data__statistics_from": "init", "data__action_fields": fields}
    with fails("data.missing") as caught:
        finetune(tiny_config(data, tmp_path / "run", **{**STILL, **keys}))
    assert XYZ_COMMAND in caught.value.message


def test_run_starts_with_the_averaged_weights_of_the_checkpoint_except_excluded_networks(
    data: Path, base: Path, tmp_path: Path
) -> None:
    base_weights = load_file(RunDir(base).checkpoint(6) / "ema.safetensors")

    def changed(run: str, **keys: Any) -> set[str]:
        weights = finetuned(data, tmp_path / run, base, **keys)
        other = (n for n in base_weights if not torch.equal(weights[n], base_weights[n]))
        return {name.partition(".")[0] for name in other}

    assert changed("whole") == set()
    assert changed("without", init_except=["output_layer"]) == {"output_layer"}
    keys = {"model__lr_factors": {"transformer": 0.0}, "hparams__lr": 1e-3, "ema__enabled": False}
    trained = changed("slow", **keys)
    assert trained
    assert "transformer" not in trained
