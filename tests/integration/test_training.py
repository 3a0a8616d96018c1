"""From shards to checkpoints: what a run writes, how it goes on, how it is refused."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import run as preprocessed
from tests.builders.recording import Recorder
from tests.builders.training import (
    CAMERAS,
    HAND,
    XYZ,
    damage_image,
    tiny_arguments,
    tiny_config,
    world_shards,
)
from vlatool.artifacts.provenance import read_preprocessing_config
from vlatool.artifacts.run_dir import RunDir, read_metrics
from vlatool.cli.app import run as run_command
from vlatool.errors import ConfigError, DataError, UsageError
from vlatool.training.resume import identity_keys
from vlatool.workflows.train import TrainResult, train

ROOT = Path(__file__).parents[2]
VLATOOL = [sys.executable, "-m", "vlatool"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_shards(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of six steps with a checkpoint at three."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_config(data, run))
    return run


def go(data: Path, run: Path, **changes: Any) -> TrainResult:
    return train(tiny_config(data, run, **changes))


def same_weights(first: Path, second: Path, step: int = 6) -> bool:
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = (load_file(RunDir(run).checkpoint(step) / name) for run in (first, second))
        if any(not torch.equal(one[key], two[key]) for key in one):
            return False
    return True


# a whole run


def test_files_of_a_run(finished: Path, data: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.yaml", "stats.json", "metrics.jsonl", "latest.json", "checkpoints"}
    assert not list(finished.rglob("*.partial"))
    run = RunDir(finished)
    assert [step for step, _ in run.checkpoints()] == [3, 6]
    rows = read_metrics(run.metrics)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert rows[-1]["samples"] == 48
    assert {"loss", "lr", "grad_norm", "samples_per_second"} <= rows[0].keys()
    options = read_preprocessing_config(data / "shards")
    assert read_preprocessing_config(finished) == {**options, "image_size": [64, 64]}


def test_config_of_a_run_is_derived_and_can_be_trained_again(
    finished: Path, tmp_path: Path
) -> None:
    from vlatool.config.resolve import load_config
    from vlatool.training.config import TrainConfig

    config = load_config(TrainConfig, files=[str(finished / "config.yaml")]).config
    assert config.data.camera_names == CAMERAS
    assert (config.data.action_dim, config.data.proprioception_dim) == (4, 4)
    assert config.model.vision_language_backbone.num_cameras == 2
    train(config.model_copy(update={"save_path": str(tmp_path), "name": "again"}))
    assert same_weights(finished, tmp_path / "again")


def test_statistics_of_a_run_are_those_of_the_fields_it_uses(finished: Path, data: Path) -> None:
    kept = json.loads((finished / "stats.json").read_text())
    assert len(kept) == 4
    whole = json.loads((data / "shards" / "stats.json").read_text())
    assert kept[XYZ]["mean"] == whole[XYZ]["mean"]


def test_same_command_on_a_complete_run_does_nothing(finished: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    result = go(data, finished)
    assert (result.status, result.steps) == ("already complete", 6)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    result = go(data, tmp_path / "run", dry_run=True)
    assert (result.status, result.checkpoint_steps) == ("planned", (3, 6))
    assert result.parameters > 1000
    assert list(tmp_path.iterdir()) == []


# going on


def half_of(finished: Path, run: Path) -> Path:
    """The run as it was when its first checkpoint had been written."""
    shutil.copytree(finished, run)
    shutil.rmtree(RunDir(run).checkpoint(6))
    config = (run / "config.yaml").read_text().replace(str(finished.parent), str(run.parent))
    (run / "config.yaml").write_text(config.replace("name: whole", f"name: {run.name}"))
    return run


def _section(title: str) -> str:
    """A section of the page about configuration."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_resumed_run_ends_with_the_same_bits(finished: Path, data: Path, tmp_path: Path) -> None:
    run = half_of(finished, tmp_path / "cut")
    result = go(data, run)
    assert (result.status, result.steps) == ("trained", 6)
    assert same_weights(finished, run)
    losses = [
        [row["loss"] for row in read_metrics(one / "metrics.jsonl")] for one in (finished, run)
    ]
    assert losses[0] == losses[1]


def test_resume_between_loader_processes_ends_with_the_same_bits(
    data: Path, tmp_path: Path
) -> None:
    # One micro-batch a step: after one step the next batch is the second process's.
    changes = {"data__num_workers": 2, "hparams__per_gpu_batch_size": 8, "total_train_steps": 3}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        go(data, run, save_every_n_steps=1, **changes)
    for step in (2, 3):
        shutil.rmtree(RunDir(cut).checkpoint(step))
    (cut / "metrics.jsonl").unlink()
    go(data, cut, save_every_n_steps=1, **changes)
    assert same_weights(whole, cut, step=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"data__num_workers": 2, "data__prefetch_factor": 1},
        {"num_checkpoints": 3, "max_checkpoint_limit": 2, "log_every_n_steps": 4},
    ],
)
def test_run_that_goes_on_with_other_harmless_keys_ends_with_the_same_bits(
    changes: dict[str, Any], finished: Path, data: Path, tmp_path: Path
) -> None:
    run = half_of(finished, tmp_path / "cut")
    assert go(data, run, **changes).status == "trained"
    assert same_weights(finished, run)


def test_keys_that_may_differ_are_the_documented_ones(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run")
    told = re.findall(r"^- `([a-z_.]+)`", _section("Resuming with other options"), re.MULTILINE)
    compared = set(_leaves(identity_keys(config)))
    free = {name for name in _leaves(config.model_dump(mode="json")) if name not in compared}
    documented = {name for name in free for one in told if f"{name}.".startswith(f"{one}.")}
    assert free == documented
    assert all(any(f"{name}.".startswith(f"{one}.") for name in free) for one in told)


def test_data_may_be_moved(finished: Path, data: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(data, tmp_path / "elsewhere")
    run = half_of(finished, tmp_path / "cut")
    assert go(moved, run).status == "trained"
    assert same_weights(finished, run)


def test_other_data_in_the_same_place_are_refused(finished: Path, tmp_path: Path) -> None:
    run = half_of(finished, tmp_path / "cut")
    other = world_shards(tmp_path, episodes=2, frames=10)
    with pytest.raises(UsageError) as caught:
        go(other, run)
    assert caught.value.code == "usage.output_differs"
    assert caught.value.details["differences"] == [
        "data set 1: 48 samples (now 20 samples)",
        "statistics: other contents",
    ]


def test_run_of_an_earlier_order_of_samples_is_refused_with_a_sentence(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    run = half_of(finished, tmp_path / "cut")
    record = run / ".vlatool" / "run.json"
    tree = json.loads(record.read_text())
    del tree["options"]["order of samples"], tree["digest"]
    record.write_text(json.dumps(tree))
    with pytest.raises(UsageError) as caught:
        go(data, run)
    assert caught.value.code == "usage.earlier_version"
    assert go(data, run, overwrite=True).status == "trained"


def test_keys_without_effect_on_weights_may_change(finished: Path, data: Path) -> None:
    result = go(data, finished, log_every_n_steps=3, data__prefetch_factor=2)
    assert result.status == "already complete"


def test_run_of_a_version_with_fewer_keys_goes_on(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    record = run / ".vlatool" / "run.json"
    tree = json.loads(record.read_text())
    del tree["options"]["data"]["augmentation"], tree["options"]["model"]["resume_weights_only"]
    del tree["options"]["hparams"]["z_loss_coefficient"], tree["digest"]
    record.write_text(json.dumps(tree))
    assert go(data, run).status == "already complete"


def test_warmup_as_long_as_the_run_is_refused_of_who_typed_it(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", hparams__warmup=1000, dry_run=True)
    with pytest.raises(ConfigError) as caught:
        train(config, typed={"hparams.warmup"})
    assert caught.value.code == "usage.warmup_too_long"
    heard = Recorder()
    assert train(config, typed=(), reporter=heard).status == "planned"
    assert [code for code, _ in heard.warnings] == ["inherited_value"]


def test_other_options_are_refused_and_named(finished: Path, data: Path) -> None:
    with pytest.raises(UsageError) as caught:
        go(data, finished, hparams__lr=0.5)
    assert caught.value.code == "usage.output_differs"
    assert caught.value.details["differences"] == ["hparams.lr 0.001 (now 0.5)"]


def test_larger_budget_goes_on_and_ends_as_if_it_had_been_given_at_once(
    data: Path, tmp_path: Path
) -> None:
    constant = {"hparams__lr_scheduler": "const", "hparams__warmup": 0}
    go(data, tmp_path / "grown", total_train_steps=2, **constant)
    go(data, tmp_path / "whole", total_train_steps=4, **constant)

    result = go(data, tmp_path / "grown", total_train_steps=4, **constant)

    assert (result.status, result.steps) == ("trained", 4)
    assert same_weights(tmp_path / "whole", tmp_path / "grown", step=4)
    assert go(data, tmp_path / "grown", total_train_steps=4, **constant).status == (
        "already complete"
    )


def test_larger_budget_says_what_becomes_of_the_rate(data: Path, tmp_path: Path) -> None:
    go(data, tmp_path / "run", total_train_steps=2)
    heard = Recorder()

    train(tiny_config(data, tmp_path / "run", total_train_steps=4), reporter=heard)

    assert any("computed anew" in note for note in heard.notes)


def test_smaller_budget_is_refused(finished: Path, data: Path) -> None:
    with pytest.raises(UsageError) as caught:
        go(data, finished, total_train_steps=3)
    assert caught.value.code == "usage.output_differs"


def test_overwrite_starts_anew(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(data, run, total_train_steps=2)
    result = go(data, run, total_train_steps=1, overwrite=True)
    assert (result.status, result.steps) == ("trained", 1)
    assert [step for step, _ in RunDir(run).checkpoints()] == [1]
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1]


def test_folder_with_other_content_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("three years")
    with pytest.raises(UsageError) as caught:
        go(data, run)
    assert caught.value.code == "usage.output_exists"
    assert [path.name for path in run.rglob("*")] == ["thesis.txt"]


# refusals


def test_train_without_data_is_a_usage_error() -> None:
    done = run_command(["-q", "train", "-p", "diffusion-policy-tiny", "--output", "x", "--dry-run"])
    assert done == UsageError.exit_code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data__action_fields": f"{XYZ}z"}, "data.unknown_field"),
        ({"data__proprioception_fields": f"{HAND}s"}, "data.unknown_field"),
        ({"data__camera_names": "scene_rihgt_0"}, "data.unknown_camera_names"),
        ({"data__image_indices": "-5"}, "data.unknown_image_indices"),
        ({"data__lowdim_future_timesteps": 99}, "data.window_too_large"),
        ({"data__allow_multiple_epochs": False, "total_train_steps": 99}, "data.too_few_samples"),
    ],
)
def test_what_the_data_lack_is_refused_before_the_first_step(
    changes: dict[str, Any], code: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        go(data, tmp_path / "run", **changes)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_policy_of_images_refuses_data_without_a_camera(tmp_path: Path) -> None:
    blind = lerobot_dataset(tmp_path / "blind", [6], cameras={})
    preprocessed(blind, tmp_path / "data", format="lerobot")
    with pytest.raises(DataError) as caught:
        go(
            tmp_path / "data",
            tmp_path / "run",
            data__action_fields="action",
            data__proprioception_fields="observation.state",
        )
    assert caught.value.code == "data.no_cameras"
    assert not (tmp_path / "run").exists()


def test_misspelt_field_names_the_nearest(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        go(data, tmp_path / "run", data__action_fields=f"{XYZ}z")
    assert XYZ in caught.value.hint


def test_loss_that_is_not_finite_names_samples_and_keeps_weights(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        go(data, run, hparams__lr=1e30, hparams__grad_clip_norm=1e30)
    assert caught.value.code == "data.loss_not_finite"
    assert caught.value.details["samples"]
    assert RunDir(run).checkpoints() == []


def test_samples_with_values_that_are_not_finite_are_dropped(data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    _spoil(sorted((broken / "shards").glob("*.tar"))[0])
    result = go(broken, tmp_path / "run", data__max_dropped_share=1.0)
    assert result.dropped["not_finite"] > 0


def _spoil(shard: Path) -> None:
    """Writes NaN into an observed field of every sample; every member keeps its size."""
    with tarfile.open(shard) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar.getmembers()]  # pyright: ignore[reportOptionalMemberAccess] - all are files
    with tarfile.open(shard, "w") as tar:
        for member, content in members:
            if member.name.endswith("lowdim.npz"):
                arrays = dict(np.load(io.BytesIO(content)))
                arrays[XYZ] = np.full_like(arrays[XYZ], np.nan)
                buffer = io.BytesIO()
                np.savez(buffer, **arrays)
                content = buffer.getvalue()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_broken_sample_is_dropped_counted_and_told(data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    damage_image(sorted((broken / "shards").glob("*.tar"))[0])
    result = go(broken, tmp_path / "run")
    assert result.dropped == {"broken_sample": 1}
    assert "1 samples were dropped: broken sample" in result.text()


def test_too_many_broken_samples_end_the_run(data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    for shard in (broken / "shards").glob("*.tar"):
        damage_image(shard)
    with pytest.raises(DataError) as caught:
        go(broken, tmp_path / "run", data__max_dropped_share=0.0)
    assert caught.value.code == "data.too_many_dropped"
    assert caught.value.details["dropped"]["broken_sample"] > 0


# Kilobytes: of the weights, then of the state of the optimizers, each writer fails in its own way.
@pytest.mark.parametrize("limit", [60, 150])
def test_full_disk_while_a_checkpoint_is_written_is_told_as_one(
    limit: int, data: Path, tmp_path: Path
) -> None:
    command = shlex.join([*VLATOOL, "--json", *tiny_arguments(data, tmp_path / "run")])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f {limit}; exec {command}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["code"]) == ("storage", "storage.write")
    assert error["details"]["needed"] > 300_000
    assert error["details"]["free"] > 0
    assert len(done.stderr.splitlines()) < 20
    assert RunDir(tmp_path / "run").checkpoints() == []


# held-out data


STILL = {"hparams__lr": 0.0, "hparams__lr_cooldown_end": 0.0}


def test_validation_measures_raw_and_averaged_weights_the_same_way_each_time(
    data: Path, tmp_path: Path
) -> None:
    changes = {"data__val_dataset_manifest": str(data), "total_val_samples": 20}
    result = go(data, tmp_path / "run", **changes, num_checkpoints=2, **STILL)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/loss" in row]
    assert [row["step"] for row in rows] == [3, 6]
    # With a rate of zero nothing moves: all four are one number.
    assert len({row[key] for row in rows for key in ("val/loss", "val/ema/loss")}) == 1
    assert result.loss is not None


def test_validation_needs_held_out_data(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        go(data, tmp_path / "run", total_val_samples=20)
    assert caught.value.code == "usage.no_validation_data"


# learning


def test_fit_overfits_one_batch(tmp_path: Path) -> None:
    changes = {
        "hparams__lr": 0.01,
        "hparams__lr_scheduler": "const",
        "hparams__per_gpu_batch_size": 8,
        "total_train_steps": 120,
        "num_checkpoints": 1,
        "model__num_action_head_repeats": 4,
    }
    small = world_shards(tmp_path, episodes=1, frames=3)
    go(small, tmp_path / "run", **changes)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


# processes


def started_training(command: list[str], run: Path) -> "subprocess.Popen[bytes]":
    """A training in a process group of its own, past its first step."""
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run / "metrics.jsonl").is_file():
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    return started


def test_sigterm_to_the_group_writes_a_checkpoint_and_the_same_command_finishes(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keys = {"total_train_steps": 200, "num_checkpoints": 1, "data__num_workers": 1}
    command = [*VLATOOL, "--json", *tiny_arguments(data, run, **keys)]
    started = started_training(command, run)
    os.killpg(started.pid, signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == 143
    ((step, _),) = RunDir(run).checkpoints()
    assert 0 < step < 200
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 200
    assert f"going on after step {step}" in done.stderr
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(1, 201))


def test_killed_loader_process_is_told_as_what_it_is(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {"total_train_steps": 5000, "num_checkpoints": 1, "data__num_workers": 1}
    started = started_training([*VLATOOL, "--json", *tiny_arguments(data, run, **keys)], run)
    for loader in loaders_of(started.pid):
        os.kill(loader, signal.SIGKILL)
    document, _ = started.communicate(timeout=60)
    assert started.returncode == 6, document
    assert json.loads(document)["error"]["code"] == "environment.loader_ended"


def test_loader_processes_of_a_killed_trainer_end(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {"total_train_steps": 5000, "num_checkpoints": 1, "data__num_workers": 2}
    started = started_training([*VLATOOL, "--json", *tiny_arguments(data, run, **keys)], run)
    left = psutil.Process(started.pid).children(recursive=True)
    assert len(loaders_of(started.pid)) == 2
    started.kill()
    # Returns when nobody holds its stdout any more.
    started.communicate(timeout=20)
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []


def test_checkpoint_of_a_stop_is_gone_when_the_run_is_complete(data: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    keys = {"total_train_steps": 60, "num_checkpoints": 2, "max_checkpoint_limit": 1}
    command = [*VLATOOL, *tiny_arguments(data, run.root, **keys)]
    started = started_training(command, run.root)
    started.terminate()
    started.communicate(timeout=60)
    assert started.returncode == 143
    assert json.loads((run.latest()[1] / "manifest.json").read_text())["stopped"]
    whole = tmp_path / "whole"
    for one in (run.root, whole):
        go(data, one, **keys)
    assert [step for step, _ in run.checkpoints()] == [60]
    for path in RunDir(whole).checkpoint(60).iterdir():
        assert (run.checkpoint(60) / path.name).read_bytes() == path.read_bytes()


def loaders_of(pid: int) -> list[int]:
    """Children of the process that loaders are forked from."""
    servers = psutil.Process(pid).children()
    return [child.pid for server in servers for child in server.children()]


def test_two_processes_write_one_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = tiny_arguments(data, run, total_train_steps=2, num_checkpoints=1)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, "-m", "vlatool", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # only the main process writes its result, once
    assert (result["steps"], result["samples"]) == (2, 16)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2]
    assert read_metrics(run / "metrics.jsonl")[-1]["samples"] == 16
