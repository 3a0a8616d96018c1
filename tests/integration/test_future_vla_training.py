"""Runs of FUTURE-VLA: kill and resume, adapters, the published command on two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.future_vla import write_samples
from tests.surface.invoke import run_vlatool
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.config.resolve import load_config, parse_override
from vlatool.errors import ConfigError, UsageError
from vlatool.models.adapters import merged_weights
from vlatool.models.future_vla.config import LoraConfig
from vlatool.models.trained import open_trained
from vlatool.training.config import TrainConfig
from vlatool.workflows.compose import ComposeConfig, compose
from vlatool.workflows.train import train

STEPS, HALF = 4, 2
SEGMENTS = ("text", "action", "future")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with samples and tiny weights."""
    folder = tmp_path_factory.mktemp("training")
    write_samples(folder)
    compose(ComposeConfig(tiny=True, output=str(folder / "tiny")))
    return folder


def config_of(root: Path, run: str, **changes: Any) -> TrainConfig:
    """A run below `root` of a few steps; `changes` have `__` in place of dots."""
    keys = {
        "init_from": root / "tiny",
        "data.folders": root / "samples",
        "data.num_workers": 0,
        "data.val_ratio": 0,
        "total_val_samples": "null",
        "model.compress": "8,6,2",  # the published steps
        "save_path": root,
        "name": run,
        "total_train_steps": STEPS,
        "num_checkpoints": STEPS // HALF,
        "log_every_n_steps": 1,
        "hparams.global_batch_size": 2,
        "hparams.lr": 1e-3,
        "model.segment_weights.action": 1,
        "model.future_share": 0.5,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    return load_config(TrainConfig, presets=["future-vla-tiny"], overrides=overrides).config


@pytest.fixture(scope="module")
def whole(root: Path) -> RunDir:
    """A run that nothing disturbed."""
    assert train(config_of(root, "whole")).status == "trained"
    return RunDir(root / "whole")


def test_loss_and_accuracy_are_logged_by_segment(whole: RunDir) -> None:
    rows = read_metrics(whole.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    for name in SEGMENTS:
        assert rows[-1][f"loss/{name}"] < rows[0][f"loss/{name}"]
        assert 0 <= rows[-1][f"accuracy/{name}"] <= 1


def test_killed_run_equals_the_undisturbed_one(root: Path, whole: RunDir) -> None:
    shutil.copytree(whole.root, root / "killed")
    killed = RunDir(root / "killed")
    shutil.rmtree(killed.checkpoint(STEPS))
    killed.write_latest(HALF)
    assert train(config_of(root, "killed")).status == "trained"
    for path in whole.checkpoint(STEPS).iterdir():
        assert path.read_bytes() == (killed.checkpoint(STEPS) / path.name).read_bytes(), path.name


def test_run_without_its_record_is_not_continued(root: Path, whole: RunDir) -> None:
    shutil.copytree(whole.root, root / "bare")
    shutil.rmtree(root / "bare" / ".vlatool")
    with pytest.raises(UsageError, match="has no readable record"):
        train(config_of(root, "bare"))


def test_weights_with_an_unreadable_config_are_an_error(root: Path, whole: RunDir) -> None:
    shutil.copytree(whole.root, root / "strange")
    config = root / "strange/config.yaml"
    config.write_text(
        config.read_text().replace("  future_share:", "  strange: 1\n  future_share:")
    )
    with pytest.raises(ConfigError, match=r'strange/config.yaml:\d+: unknown key "model.strange"'):
        train(config_of(root, "from-strange", init_from=root / "strange"))


@pytest.fixture(scope="module")
def adapters(root: Path, whole: RunDir) -> RunDir:
    """A run that trained adapters of rank 2."""
    frozen = {f"model.freeze_{part}": True for part in ("vision", "mergers", "dino")}
    keys = {"model.lora.rank": 2, "init_from": whole.root, "total_train_steps": 2, **frozen}
    train(config_of(root, "adapters", **keys))
    return RunDir(root / "adapters")


def test_run_with_adapters_saves_nothing_else(adapters: RunDir) -> None:
    _, checkpoint = adapters.latest() or (0, adapters.root)
    saved = load_file(checkpoint / "model.safetensors")
    assert saved
    assert all(".adapter." in name for name in saved)
    assert any(float(value.abs().max()) for name, value in saved.items() if ".up." in name)


@pytest.mark.parametrize("rank", [0, 3])
def test_adapters_are_merged_into_the_weights_of_a_run_with_others(
    root: Path, adapters: RunDir, rank: int
) -> None:
    still = {"hparams.lr": 0, "hparams.lr_cooldown_end": 0, "total_train_steps": 1}
    train(config_of(root, f"to{rank}", init_from=adapters.root, model__lora__rank=rank, **still))
    states = [
        open_trained(str(root / name)).parts["model"].state_dict()
        for name in ("adapters", f"to{rank}")
    ]
    before = merged_weights(states[0], 2, LoraConfig().alpha)
    after = merged_weights(states[1], rank, LoraConfig().alpha)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def published(root: Path, output: str) -> list[str]:
    """Options of the published program for a run of some steps, with a checkpoint at each."""
    words = ["--model", root / "tiny", "--train_type", "full", "--dataset", root / "samples"]
    words += ["--torch_dtype", "float32", "--per_device_train_batch_size", "1"]
    words += ["--num_train_epochs", "1", "--logging_steps", "1", "--warmup_steps", "1"]
    words += ["--dataloader_num_workers", "0", "--gradient_checkpointing", "true"]
    words += ["--save_steps", "1", "--output_dir", root / output]
    return [str(word) for word in words]


def on_two_processes(root: Path, output: str) -> str:
    """Status of a run of the published command under torchrun."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "vlatool"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "--json", "train", *published(root, output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["status"]


@pytest.fixture(scope="module")
def two(root: Path) -> RunDir:
    """A run of two sharded processes that nothing disturbed."""
    assert on_two_processes(root, "two") == "trained"
    return RunDir(root / "two")


@pytest.mark.slow
def test_published_command_on_two_sharded_processes_is_the_run_of_one(
    root: Path, two: RunDir
) -> None:
    code, _ = run_vlatool("train", *published(root, "one"))
    assert code == 0
    plain, sharded = (
        [row["loss"] for row in read_metrics(run.metrics)] for run in (RunDir(root / "one"), two)
    )
    assert len(plain) == 3  # 30 samples in global batches of 8
    assert sharded == pytest.approx(plain, rel=1e-4)
