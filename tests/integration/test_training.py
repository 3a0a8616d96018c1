"""Training runs from shards to checkpoints: output, resume, errors."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from tests.builders import training
from tests.builders.errors import fails
from tests.builders.forks import Forks, Started
from tests.builders.recording import Recorder
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.cli.app import run as run_command
from vlatool.config.resolve import load_config
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.errors import DataError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.events import NullProgress, NullReporter
from vlatool.models.diffusion_policy.objective import DenoisingObjective
from vlatool.models.flops import objective_losses
from vlatool.training.config import TrainConfig
from vlatool.training.resume import identity_keys
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.train import TrainResult, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of six steps with a checkpoint at three."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(training.tiny_config(data, run))
    return run


def run_training(data: Path, run: Path, **changes: Any) -> TrainResult:
    return train(training.tiny_config(data, run, **changes))


def same_weights(first: Path, second: Path, step: int = 6) -> bool:
    for name in ("model.safetensors", "ema.safetensors"):
        weights, other = (load_file(RunDir(r).checkpoint(step) / name) for r in (first, second))
        if any(not torch.equal(weights[key], other[key]) for key in weights):
            return False
    return True


# a complete run


def test_files_and_statistics_of_a_run(finished: Path, data: Path) -> None:
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
    stored = read_preprocessing_config(finished)
    measured = json.loads((data / "conventions.json").read_text())
    assert stored.pop("conventions").items() <= measured.items()
    assert stored == {**options, "image_size": [64, 64]}

    times = {row["step"]: row["step_ms"] for row in read_metrics(RunDir(finished).metrics)}
    assert min(times[3], times[6]) > 0.1 * min(times[2], times[5])

    statistics = json.loads((finished / "stats.json").read_text())
    assert len(statistics) == 4
    whole = json.loads((data / "shards" / "stats.json").read_text())
    assert statistics[training.XYZ]["mean"] == whole[training.XYZ]["mean"]


def test_operations_of_a_policy_are_those_of_a_real_step(finished: Path) -> None:
    config = load_config(TrainConfig, files=[str(finished / "config.yaml")]).config
    policy_type, losses = (
        config.model_type,
        objective_losses(lambda _: DenoisingObjective(config.model)),
    )
    with FlopCounterMode(display=False) as counter:
        for loss in losses(
            policy_type.build(config.model), policy_type.example(config.model, config.data, 1)
        ):
            loss.backward()
    assert policy_type.flops(config.model, config.data) == counter.get_total_flops() > 0


def test_loss_of_the_bar_is_that_of_the_result_and_the_start_says_how_much_a_kill_loses(
    data: Path, tmp_path: Path
) -> None:
    shown: list[float] = []

    class Bar(NullProgress):
        def advance(self, amount: int = 1, **fields: float | int | str) -> None:
            del amount
            shown.extend(float(fields[name]) for name in ("loss",) if name in fields)

    class Bars(Recorder):
        def progress(self, name: str, total: int | None, unit: str) -> Bar:
            return Bar()

    reporter = Bars()
    config = training.tiny_config(data, tmp_path / "run", total_train_steps=3, log_every_n_steps=3)
    assert train(config, reporter=reporter).loss == pytest.approx(shown[-1], rel=1e-8)
    assert any("lose at most 5 min" in note for note in reporter.notes)


def test_config_of_a_run_is_derived_and_can_be_trained_again(
    finished: Path, tmp_path: Path
) -> None:
    config = load_config(TrainConfig, files=[str(finished / "config.yaml")]).config
    assert config.data.camera_names == training.CAMERAS
    assert (config.data.action_dim, config.data.proprioception_dim) == (4, 4)
    assert config.model.vision_language_backbone.num_cameras == 2
    train(config.model_copy(update={"save_path": str(tmp_path), "name": "again"}))
    assert same_weights(finished, tmp_path / "again")


def test_complete_run_is_unchanged_by_its_command_with_other_keys_without_effect(
    finished: Path, data: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    result = run_training(data, finished, log_every_n_steps=3, data__prefetch_factor=2)
    assert (result.status, result.steps) == ("already complete", 6)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    result = run_training(data, tmp_path / "run", dry_run=True)
    assert (result.status, result.checkpoint_steps) == ("planned", (3, 6))
    assert result.parameters > 1000
    assert list(tmp_path.iterdir()) == []
    assert result.start == "new"
    assert "checkpoints at 3, 6;" in result.text()


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        ({}, "resume"),
        ({"total_train_steps": 12}, "extend"),
        ({"hparams__lr": 0.5, "overwrite": True}, "replace"),
    ],
)
def test_dry_run_says_that_the_output_is_a_run(
    finished: Path, data: Path, keys: dict[str, Any], start: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = run_training(data, finished, dry_run=True, **keys)
    assert (result.status, result.start) == ("planned", start)
    assert "the run that is there; nothing was written" in result.text()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


# resume


def half_of(finished: Path, run: Path) -> Path:
    """Copies a run in the state after its first checkpoint."""
    shutil.copytree(finished, run)
    shutil.rmtree(RunDir(run).checkpoint(6))
    config = (run / "config.yaml").read_text().replace(str(finished.parent), str(run.parent))
    (run / "config.yaml").write_text(config.replace("name: whole", f"name: {run.name}"))
    return run


def _section(title: str) -> str:
    """Text of a section of the configuration page."""
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_resumed_run_ends_with_the_same_bits(finished: Path, data: Path, tmp_path: Path) -> None:
    run = half_of(finished, tmp_path / "cut")
    result = run_training(data, run)
    assert (result.status, result.steps) == ("trained", 6)
    assert same_weights(finished, run)
    losses = [
        [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (finished, run)
    ]
    assert losses[0] == losses[1]


def test_run_that_died_between_planned_checkpoints_resumes_from_one_by_the_clock(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    class Dying(NullReporter):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            if step == 5:
                raise RuntimeError("the machine is lost")

    run = RunDir(tmp_path / "run")
    config = training.tiny_config(data, run.root, num_checkpoints=1, save_every_minutes=1e-6)
    with pytest.raises(RuntimeError, match="lost"):
        train(config, reporter=Dying())
    ((step, folder),) = run.checkpoints()
    assert 2 <= step < 5
    assert json.loads((folder / "manifest.json").read_text())["stopped"]
    train(config)
    assert [step for step, _ in run.checkpoints()] == [6]
    assert same_weights(finished, run.root)


def test_resume_between_loader_workers_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    # One micro-batch per step: after one step the next batch comes from the second worker.
    changes = {"hparams__per_gpu_batch_size": 8, "total_train_steps": 3, "save_every_n_steps": 1}
    whole, cut = tmp_path / "runs/run", tmp_path / "cut/run"
    run_training(data, whole, **changes)
    shutil.copytree(whole, cut)
    for step in (2, 3):
        shutil.rmtree(RunDir(cut).checkpoint(step))
    (cut / "metrics.jsonl").unlink()
    result = run_training(data, cut, data__num_workers=2, data__prefetch_factor=1, **changes)
    assert (result.status, result.steps) == ("trained", 3)
    assert same_weights(whole, cut, step=3)


def test_keys_that_may_differ_are_the_documented_ones(data: Path, tmp_path: Path) -> None:
    config = training.tiny_config(data, tmp_path / "run", lora__rank=2)
    section = _section("Resuming with other options")
    prefixes = re.findall(r"^- `([a-z_.]+)`", section, re.MULTILINE)
    compared = set(_leaves(identity_keys(config)))
    free = {name for name in _leaves(config.model_dump(mode="json")) if name not in compared}
    documented = {name for name in free for key in prefixes if f"{name}.".startswith(f"{key}.")}
    assert free == documented
    assert all(any(f"{name}.".startswith(f"{key}.") for name in free) for key in prefixes)


def test_data_may_be_moved_but_not_be_others(finished: Path, data: Path, tmp_path: Path) -> None:
    run = half_of(finished, tmp_path / "cut")
    other = training.world_shards(tmp_path, episodes=2, frames=10)
    with fails("usage.output_differs") as caught:
        run_training(other, run)
    first, second = caught.value.details["differences"]
    assert first.startswith('data set 1 "48 samples, ')
    assert second.startswith("statistics ")
    moved = shutil.copytree(data, tmp_path / "elsewhere")
    assert run_training(moved, run).status == "trained"
    assert same_weights(finished, run)


@pytest.mark.parametrize(
    ("keys", "difference"),
    [
        ({"hparams__lr": 0.5}, "hparams.lr 0.001 (now 0.5)"),
        ({"hparams__lr": 0.5, "dry_run": True}, "hparams.lr 0.001 (now 0.5)"),
        ({"total_train_steps": 3}, "total_train_steps 6 (now 3)"),
    ],
)
def test_other_options_or_a_smaller_budget_are_an_error_that_names_them(
    keys: dict[str, Any], difference: str, finished: Path, data: Path
) -> None:
    with fails("usage.output_differs") as caught:
        run_training(data, finished, **keys)
    assert caught.value.details["differences"] == [difference]


@pytest.mark.parametrize("scheduler", ["const", "cosine"])
def test_larger_budget_resumes_and_equals_a_run_with_that_budget_and_rate(
    scheduler: str, data: Path, tmp_path: Path
) -> None:
    keys = {"hparams__lr_scheduler": scheduler, "hparams__warmup": 0}
    run_training(data, tmp_path / "grown", total_train_steps=2, **keys)
    recorder = Recorder()
    grown = training.tiny_config(data, tmp_path / "grown", total_train_steps=4, **keys)

    result = train(grown, reporter=recorder)

    assert (result.status, result.steps) == ("trained", 4)
    assert any("recomputed" in note for note in recorder.notes) == (scheduler == "cosine")
    assert train(grown).status == "already complete"
    if scheduler == "const":
        run_training(data, tmp_path / "whole", total_train_steps=4, **keys)
        assert same_weights(tmp_path / "whole", tmp_path / "grown", step=4)


def test_overwrite_restarts_a_run_and_leaves_a_folder_with_other_content(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_training(data, run, total_train_steps=2)
    result = run_training(data, run, total_train_steps=1, overwrite=True)
    assert (result.status, result.steps) == ("trained", 1)
    assert [step for step, _ in RunDir(run).checkpoints()] == [1]
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1]

    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("three years")
    with fails("usage.output_exists"):
        run_training(data, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").rglob("*")] == ["thesis.txt"]


# errors


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data__action_fields": f"{training.XYZ}z"}, "data.unknown_field"),
        ({"data__proprioception_fields": f"{training.HAND}s"}, "data.unknown_field"),
        ({"data__camera_names": "scene_rihgt_0"}, "data.unknown_field"),
        ({"data__image_indices": "-5"}, "data.unknown_field"),
        ({"data__lowdim_past_timesteps": 99}, "data.mismatch"),
        ({"data__lowdim_future_timesteps": 99}, "data.mismatch"),
        ({"data__action_dim": 5}, "data.mismatch"),
        ({"data__allow_multiple_epochs": False, "total_train_steps": 99}, "data.no_samples"),
    ],
)
def test_missing_data_are_an_error_before_the_first_step(
    changes: dict[str, Any], code: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        run_training(data, tmp_path / "run", **changes)
    assert caught.value.code == code
    if next(iter(changes)).endswith("_fields"):
        assert any(name in caught.value.hint for name in (training.XYZ, training.HAND))
    assert list(tmp_path.iterdir()) == []


def test_loss_that_is_not_finite_names_samples_and_keeps_weights(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with fails("data.not_finite") as caught:
        run_training(data, run, hparams__lr=1e30, hparams__grad_clip_norm=1e30)
    assert caught.value.details["samples"]
    assert caught.value.details["checkpoint"] is None
    assert RunDir(run).checkpoints() == []


def test_broken_samples_are_dropped_counted_and_reported_unless_they_are_too_many(
    data: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    first, *others = sorted((broken / "shards").glob("*.tar"))
    training.damage_image(first)
    result = run_training(broken, tmp_path / "run")
    assert result.dropped == {"broken_sample": 1}
    assert "1 sample dropped: broken sample" in result.text()

    for shard in others:
        training.damage_image(shard)
    with fails("data.incomplete") as caught:
        run_training(broken, tmp_path / "many", data__max_dropped_share=0.0)
    assert caught.value.details["dropped"]["broken_sample"] > 0

    _write_nan(first)
    result = run_training(broken, tmp_path / "nan", data__max_dropped_share=1.0)
    assert result.dropped["not_finite"] > 0


def _write_nan(shard: Path) -> None:
    """Writes NaN into an observed field of every sample; every member keeps its size."""
    with tarfile.open(shard) as tar:
        members = [(item, tar.extractfile(item).read()) for item in tar.getmembers()]  # pyright: ignore[reportOptionalMemberAccess] - all are files
    with tarfile.open(shard, "w") as tar:
        for member, content in members:
            if member.name.endswith("lowdim.npz"):
                arrays = dict(np.load(io.BytesIO(content)))
                arrays[training.XYZ] = np.full_like(arrays[training.XYZ], np.nan)
                buffer = io.BytesIO()
                np.savez(buffer, **arrays)
                content = buffer.getvalue()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("limit", [60, 150])
def test_full_disk_while_a_checkpoint_is_written_is_reported(
    limit: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ["--json", *training.tiny_arguments(data, tmp_path / "run")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1024, before[1]))
    try:
        assert run_command([str(word) for word in words]) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert (error["kind"], error["code"]) == ("storage", "storage.write")
    assert len(shown.err.splitlines()) < 20
    assert RunDir(tmp_path / "run").checkpoints() == []


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("https://host/runs/one", "usage.unsupported"),
        ("abfs://bucket/one", "usage.unsupported"),
        ("s3://bucket", "usage.bad_value"),
    ],
)
def test_output_without_a_copy_is_an_error_before_anything_is_written(
    output: str,
    code: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "diffusion-policy-tiny", "--data", str(data), "--total-train-steps", "1"]

    assert run_command(["--json", "train", *words, "--output", output]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert list(tmp_path.iterdir()) == []


# validation


STILL = {"hparams__lr": 0.0, "hparams__lr_cooldown_end": 0.0}
# Five chunks are an unequal share for two processes.
SHORT = {**STILL, "total_train_steps": 2, "num_checkpoints": 1, "total_val_samples": 5}


def test_validation_measures_raw_and_averaged_weights_the_same_way_each_time(
    data: Path, tmp_path: Path
) -> None:
    with fails("usage.missing_key"):
        run_training(data, tmp_path / "run", total_val_samples=20)
    changes = {"data__val_dataset_manifest": str(data), "total_val_samples": 20}
    result = run_training(data, tmp_path / "run", **changes, num_checkpoints=2, **STILL)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/loss" in row]
    assert [row["step"] for row in rows] == [3, 6]
    # With a learning rate of zero all four values are equal.
    assert len({row[key] for row in rows for key in ("val/loss", "val/ema/loss")}) == 1
    assert result.loss is not None


class AtStep(Recorder):
    """Reporter that sends a signal when the metrics of a step are logged, before its validation."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self._step, self._number = step, number

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        if step == self._step:
            signal.raise_signal(self._number)


def validated_rows(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [
        {key: row[key] for key in row if key == "step" or key.startswith("val/")} for row in rows
    ]


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_run_that_is_stopped_in_a_validation_repeats_it_when_it_resumes(
    step: int, number: signal.Signals, data: Path, tmp_path: Path
) -> None:
    keys = {"data__val_dataset_manifest": str(data), "total_val_samples": 20, "num_checkpoints": 2}
    run_training(data, tmp_path / "whole", **keys)
    config = training.tiny_config(data, tmp_path / "run", **keys)
    with pytest.raises(SystemExit) as end:
        train(config, reporter=AtStep(step, number))
    assert end.value.code == 143
    assert [step for step, _ in RunDir(tmp_path / "run").checkpoints()][-1] == step
    assert not [row for row in validated_rows(tmp_path / "run") if "val/loss" in row][step // 6 :]
    train(config)
    assert validated_rows(tmp_path / "run") == validated_rows(tmp_path / "whole")
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_validation_of_the_last_step_that_is_repeated_chooses_the_best_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    keys = {"data__val_dataset_manifest": str(data), "total_val_samples": 20, "num_checkpoints": 2}
    keys |= {"max_checkpoint_limit": 1}
    best = run_training(data, tmp_path / "whole", **keys).best
    assert best is not None
    assert best.step == 6
    config = training.tiny_config(data, tmp_path / "run", **keys)
    with pytest.raises(SystemExit):
        train(config, reporter=AtStep(6, signal.SIGTERM))
    train(config)
    run = RunDir(tmp_path / "run")
    assert run.read_best() == best
    assert [step for step, _ in run.checkpoints()] == [6]


# learning


def test_open_loop_error_of_an_overfit_run_is_small(tmp_path: Path) -> None:
    changes = {
        "hparams__lr": 0.003,
        "hparams__per_gpu_batch_size": 8,
        "total_train_steps": 300,
        "num_checkpoints": 1,
        "model__num_action_head_repeats": 4,
    }
    small, run = training.world_shards(tmp_path, episodes=1, frames=3), tmp_path / "run"
    run_training(small, run, **changes)
    config = OpenLoopConfig(
        checkpoint=str(run), data=str(small), output=str(tmp_path / "eval"), weights="raw"
    )
    errors = open_loop(config).overall
    assert errors["policy"] < 0.3 * errors["mean_action"]  # measured: 0.21


# processes


def started_training(warm: Forks, words: Sequence[str | Path], run: Path) -> Started:
    """A training process in its own process group, after its first step."""
    started = warm.start(words)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run / "metrics.jsonl").is_file():
        assert started.is_running(), started.finish()
        time.sleep(0.02)
    return started


@pytest.mark.slow
def test_sigterm_to_the_group_writes_a_checkpoint_and_the_same_command_finishes_without_it(
    data: Path, warm: Forks, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    keys = {"total_train_steps": 60, "num_checkpoints": 2, "max_checkpoint_limit": 1}
    words = ["--json", *training.tiny_arguments(data, run.root, **keys, data__num_workers=1)]
    started = started_training(warm, words, run.root)
    os.killpg(started.pid, signal.SIGTERM)
    stopped = started.finish()
    assert stopped.code == 143
    assert "--output" not in stopped.stderr.partition("stopped after step")[2]
    ((step, folder),) = run.checkpoints()
    assert 0 < step < 60
    assert json.loads((folder / "manifest.json").read_text())["stopped"]
    done = warm.run(words, seconds=120)
    assert done.code == 0, done.stderr
    assert done.document["steps"] == 60
    assert f"resuming after step {step}" in done.stderr
    assert [row["step"] for row in read_metrics(run.metrics)] == list(range(1, 61))
    assert [step for step, _ in run.checkpoints()] == [60]


def test_ctrl_c_while_loader_workers_start_is_no_bug(
    data: Path, warm: Forks, tmp_path: Path
) -> None:
    keys = {"total_train_steps": 5000, "num_checkpoints": 1, "data__num_workers": 2}
    started = warm.start(["--json", *training.tiny_arguments(data, tmp_path / "run", **keys)])
    process, deadline = psutil.Process(started.pid), time.monotonic() + 60
    while time.monotonic() < deadline and not process.children():
        assert started.is_running(), started.finish()
        time.sleep(0.01)
    time.sleep(0.4)  # the server process of the workers is importing
    os.killpg(started.pid, signal.SIGINT)
    done = started.finish()
    assert done.document["error"]["kind"] == "interrupted"
    assert "Traceback" not in done.stderr


def test_killed_loader_worker_is_reported(data: Path, warm: Forks, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {"total_train_steps": 5000, "num_checkpoints": 1, "data__num_workers": 1}
    started = started_training(warm, ["--json", *training.tiny_arguments(data, run, **keys)], run)
    for loader in loaders_of(started.pid):
        os.kill(loader, signal.SIGKILL)
    done = started.finish()
    assert done.code == 6, done
    assert done.document["error"]["code"] == "environment.process_failed"


def test_loader_workers_of_a_killed_trainer_end(data: Path, warm: Forks, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {"total_train_steps": 5000, "num_checkpoints": 1, "data__num_workers": 2}
    started = started_training(warm, ["--json", *training.tiny_arguments(data, run, **keys)], run)
    left = psutil.Process(started.pid).children(recursive=True)
    assert len(loaders_of(started.pid)) == 2
    os.kill(started.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []
    assert started.finish().code == -signal.SIGKILL


def loaders_of(pid: int) -> list[int]:
    """Process ids of the loader workers, children of the fork server."""
    servers = psutil.Process(pid).children()
    return [child.pid for server in servers for child in server.children()]


def test_two_processes_write_one_run_with_the_errors_of_sampled_chunks_of_one(
    data: Path, tmp_path: Path
) -> None:
    run, keys = tmp_path / "run", SHORT | {"data__val_dataset_manifest": str(data)}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*launch, "-m", "vlatool", "--json", *training.tiny_arguments(data, run, **SHORT)]
    # The data set is its own validation data: only its figures are compared.
    command = [sys.executable, *words, "--data.val_dataset_manifest", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # only rank 0 prints its result, once
    assert (result["steps"], result["samples"]) == (2, 16)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert rows[-1]["samples"] == 16

    run_training(data, tmp_path / "single", **keys)
    ours, theirs = read_metrics(tmp_path / "single" / "metrics.jsonl")[-1], rows[-1]
    names = [name for name in ours if "sampled_mae" in name]
    assert len(names) == 2 * 2 * 3  # weights, fields, steps
    assert [theirs[name] for name in names] == pytest.approx([ours[n] for n in names], rel=1e-5)
