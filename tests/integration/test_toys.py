"""A GAN and a language model in the trainer: one and two processes, sharded and not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.builders.toy_runs import (
    HALF,
    SITE,
    STEPS,
    empty_micro_batches,
    half_of,
    resumed,
    toy_config,
    toys,
)
from tests.builders.toys import write_numbers
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.errors import DataError
from vlatool.events import NullReporter
from vlatool.workflows.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with both toys trained on one process."""
    folder = toys(tmp_path_factory.mktemp("toys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / SITE))
        for model in ("toy_gan", "toy_lm"):
            train(toy_config(folder, model, f"{model}-one"))
        yield folder


@pytest.fixture(scope="module")
def two_ranks(root: Path) -> None:
    """All runs of two ranks, for slow tests: test_training has two that train as one does."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "tests/builders/toy_runs.py"), str(root)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def tensors(root: Path, run: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, named by file."""
    folder = RunDir(root / run).checkpoint(step)
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {
        f"{file.name} {name}": value for file in files for name, value in load_file(file).items()
    }


def optimizer_states(root: Path, run: str) -> dict[str, object]:
    path = RunDir(root / run).checkpoint(STEPS) / "trainer.pt"
    return torch.load(path, weights_only=True)["optimizers"]


def assert_equal_runs(root: Path, run: str, other: str) -> None:
    """Compares all bytes of the last checkpoint: weights, averages, moments, counters."""
    first, second = (RunDir(root / name).checkpoint(STEPS) for name in (run, other))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def assert_close_runs(root: Path, run: str, other: str) -> None:
    """Compares the last checkpoint up to rounding."""
    torch.testing.assert_close(tensors(root, run), tensors(root, other), rtol=1e-4, atol=1e-6)


def losses(root: Path, run: str) -> list[float]:
    return [row["loss"] for row in read_metrics(RunDir(root / run).metrics)]


@pytest.mark.slow
@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("model", ["toy_gan", "toy_lm"])
@pytest.mark.parametrize("placed", ["ddp", "fsdp"])
def test_two_processes_train_the_model_that_one_trains(root: Path, model: str, placed: str) -> None:
    assert losses(root, f"{model}-{placed}") == pytest.approx(
        losses(root, f"{model}-one"), rel=1e-5
    )
    assert_close_runs(root, f"{model}-one", f"{model}-{placed}")


@pytest.mark.slow
@pytest.mark.usefixtures("two_ranks")
def test_only_the_first_rank_has_whole_models_and_a_bad_loss_changes_no_weight_on_any(
    root: Path,
) -> None:
    # Rank 0 also builds on the meta device: to look at a model before the run starts.
    devices = [(root / f"devices-{rank}").read_text() for rank in (0, 1)]
    assert devices == ["cpu meta", "meta"]

    results = [(root / f"halted-{rank}").read_text().split() for rank in (0, 1)]
    assert results[0] == results[1]
    code, samples, changed = results[0]
    assert code == "data.not_finite"
    assert "block-0-30" in samples
    assert changed == "[]"


def test_killed_run_equals_the_uninterrupted_one(root: Path) -> None:
    half_of(root, "toy_gan-one", "toy_gan-one-resumed")
    assert resumed(root, "toy_gan", "toy_gan-one-resumed").status == "trained"
    assert_equal_runs(root, "toy_gan-one", "toy_gan-one-resumed")


@pytest.mark.parametrize("model", ["toy_gan", "toy_lm"])
def test_run_continues_another_one_of_any_model_type(root: Path, model: str) -> None:
    checkpoint = RunDir(root / f"{model}-one").checkpoint(HALF)
    keys = {"init_from": str(checkpoint), "init_weights_only": False}
    train(toy_config(root, model, f"{model}-continued", **keys))
    assert_equal_runs(root, f"{model}-one", f"{model}-continued")


@pytest.mark.slow
@pytest.mark.usefixtures("two_ranks")
def test_resumed_runs_of_two_ranks_equal_the_uninterrupted_ones(root: Path) -> None:
    assert_equal_runs(root, "toy_gan-ddp", "toy_gan-ddp-resumed")

    half_of(root, "toy_gan-fsdp", "toy_gan-fsdp-to-one")
    resumed(root, "toy_gan", "toy_gan-fsdp-to-one")
    assert_close_runs(root, "toy_gan-one", "toy_gan-fsdp-to-one")

    assert_close_runs(root, "toy_gan-one", "toy_gan-one-to-fsdp")


def test_critic_starts_late_with_its_own_rate_and_betas(root: Path) -> None:
    rows = read_metrics(RunDir(root / "toy_gan-one").metrics)
    assert ["critic/lr" in row for row in rows] == [False, False] + [True] * (STEPS - 2)
    assert max(row.get("critic/lr", 0.0) for row in rows) == pytest.approx(2e-3, rel=0.1)
    state = optimizer_states(root, "toy_gan-one")["critic"]
    assert state["param_groups"][0]["betas"] == (0.5, 0.9)
    steps = {float(moments["step"]) for moments in state["state"].values()}
    assert steps == {STEPS - 2}


def test_critic_without_steps_starts_with_its_first_step_after_a_resume(root: Path) -> None:
    late = {"model__critic_starts_at": HALF + 1}
    for run in ("toy_gan-late", "toy_gan-late-resumed"):
        if run.endswith("resumed"):
            half_of(root, "toy_gan-late", run)
        train(toy_config(root, "toy_gan", run, **late))
    assert_equal_runs(root, "toy_gan-late", "toy_gan-late-resumed")


def test_teacher_is_not_saved_and_another_one_is_an_error(root: Path) -> None:
    assert not any("teacher" in name for name in tensors(root, "toy_gan-one"))
    half_of(root, "toy_gan-one", "toy_gan-other-teacher")
    teacher = root / "teacher.safetensors"
    original = teacher.read_bytes()
    other = {name: value + 1 for name, value in load_file(teacher).items()}
    from safetensors.torch import save_file

    save_file(other, teacher)
    try:
        with pytest.raises(DataError) as caught:
            resumed(root, "toy_gan", "toy_gan-other-teacher")
    finally:
        teacher.write_bytes(original)
    assert caught.value.code == "data.mismatch"


def test_files_of_a_run_have_one_average_tied_weights_once_and_images(root: Path) -> None:
    files = {name.split()[0] for name in tensors(root, "toy_gan-one")}
    assert files == {
        "critic.safetensors",
        "ema.safetensors",
        "means.safetensors",
        "model.safetensors",
    }

    names = [name for name in tensors(root, "toy_lm-one") if name.startswith("model.")]
    assert sum("embed.weight" in name or "project.weight" in name for name in names) == 1

    names = [path.name for path in sorted((root / "toy_gan-one" / "images").iterdir())]
    assert names == ["step_00000004_made.png", "step_00000008_made.png"]


@pytest.mark.slow
@pytest.mark.usefixtures("two_ranks")
def test_empty_micro_batch_of_one_rank_does_not_hang_the_other(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-empty-one", **empty_micro_batches(root)))
    assert losses(root, "toy_gan-empty") == pytest.approx(losses(root, "toy_gan-empty-one"))
    assert (root / "dropped-0").read_text() == "{'no_number': 1}"
    assert (root / "dropped-1").read_text() == "{'no_number': 1}"


def test_gradient_checkpointing_gives_the_same_weights(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-checkpointed", hparams__grad_checkpointing=True))
    assert_equal_runs(root, "toy_gan-one", "toy_gan-checkpointed")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_blocks_give_the_same_weights_up_to_rounding(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-compiled", hparams__torchcompile=True))
    assert_close_runs(root, "toy_gan-one", "toy_gan-compiled")


def test_images_are_those_of_the_averaged_weights(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-plain", ema__enabled=False))
    averaged, plain = RunDir(root / "toy_gan-one"), RunDir(root / "toy_gan-plain")
    weights = [run.checkpoint(STEPS) / "model.safetensors" for run in (averaged, plain)]
    images = [run.image(STEPS, "made") for run in (averaged, plain)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert images[0].read_bytes() != images[1].read_bytes()


def test_unusable_validation_data_have_no_loss_and_are_reported(root: Path, tmp_path: Path) -> None:
    validation = write_numbers(tmp_path / "validation", (5,))
    rows = np.load(validation / "block-0.npy")
    np.save(validation / "block-0.npy", rows * np.nan)
    changes = {"data__val_folders": [str(validation)], "total_val_samples": 5}
    reporter = RecordingReporter()
    train(toy_config(root, "toy_lm", "toy_lm-val", **changes), reporter=reporter)
    metrics = read_metrics(RunDir(root / "toy_lm-val").metrics)
    assert not any("val/loss" in row for row in metrics)
    assert reporter.codes == ["data.dropped_samples"]


class RecordingReporter(NullReporter):
    """Reporter that records the codes of warnings."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def warn(self, code: str, message: str) -> None:
        del message
        self.codes.append(code)
