"""A GAN and a language model through the one trainer: on one and two processes, sharded and not."""

import os
import shutil
import subprocess
import sys
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
from vlatool.artifacts.run_dir import RunDir, read_metrics
from vlatool.errors import DataError
from vlatool.events import NullReporter
from vlatool.workflows.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both toys trained on one process, and everything that two ranks make."""
    folder = toys(tmp_path_factory.mktemp("toys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / SITE))
        for model in ("toy_gan", "toy_lm"):
            train(toy_config(folder, model, f"{model}-one"))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = str(ROOT / "tests" / "builders" / "toy_runs.py")
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        done = subprocess.run(
            [sys.executable, *launch, script, str(folder)],
            env={**env, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        yield folder


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


def assert_equal_runs(root: Path, one: str, other: str) -> None:
    """Every byte of the last checkpoint: weights, averages, momenta, counters."""
    first, second = (RunDir(root / run).checkpoint(STEPS) for run in (one, other))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def assert_close_runs(root: Path, one: str, other: str) -> None:
    """To rounding."""
    torch.testing.assert_close(tensors(root, one), tensors(root, other), rtol=1e-4, atol=1e-6)


def losses(root: Path, run: str) -> list[float]:
    return [row["loss"] for row in read_metrics(RunDir(root / run).metrics)]


@pytest.mark.parametrize("model", ["toy_gan", "toy_lm"])
@pytest.mark.parametrize("placed", ["ddp", "fsdp"])
def test_two_processes_train_the_model_that_one_trains(root: Path, model: str, placed: str) -> None:
    assert losses(root, f"{model}-{placed}") == pytest.approx(
        losses(root, f"{model}-one"), rel=1e-5
    )
    assert_close_runs(root, f"{model}-one", f"{model}-{placed}")


def test_run_that_was_killed_equals_the_undisturbed_one(root: Path) -> None:
    half_of(root, "toy_gan-one", "toy_gan-one-resumed")
    assert resumed(root, "toy_gan", "toy_gan-one-resumed").status == "trained"
    assert_equal_runs(root, "toy_gan-one", "toy_gan-one-resumed")


def test_two_ranks_that_were_killed_equal_the_undisturbed_ones(root: Path) -> None:
    assert_equal_runs(root, "toy_gan-ddp", "toy_gan-ddp-resumed")


def test_sharded_checkpoint_goes_on_with_one_process(root: Path) -> None:
    half_of(root, "toy_gan-fsdp", "toy_gan-fsdp-to-one")
    resumed(root, "toy_gan", "toy_gan-fsdp-to-one")
    assert_close_runs(root, "toy_gan-one", "toy_gan-fsdp-to-one")


def test_checkpoint_of_one_process_goes_on_sharded(root: Path) -> None:
    assert_close_runs(root, "toy_gan-one", "toy_gan-one-to-fsdp")


def test_critic_starts_late_with_a_rate_and_momenta_of_its_own(root: Path) -> None:
    rows = read_metrics(RunDir(root / "toy_gan-one").metrics)
    assert ["critic/lr" in row for row in rows] == [False, False] + [True] * (STEPS - 2)
    assert max(row.get("critic/lr", 0.0) for row in rows) == pytest.approx(2e-3, rel=0.1)
    state = optimizer_states(root, "toy_gan-one")["critic"]
    assert state["param_groups"][0]["betas"] == (0.5, 0.9)
    steps = {float(one["step"]) for one in state["state"].values()}
    assert steps == {STEPS - 2}


def test_critic_that_has_not_moved_yet_begins_with_its_first_step(root: Path) -> None:
    late = {"model__critic_starts_at": HALF + 1}
    for run in ("toy_gan-late", "toy_gan-late-resumed"):
        if run.endswith("resumed"):
            half_of(root, "toy_gan-late", run)
        train(toy_config(root, "toy_gan", run, **late))
    assert_equal_runs(root, "toy_gan-late", "toy_gan-late-resumed")


def test_teacher_is_not_saved_and_another_one_is_refused(root: Path) -> None:
    assert not any("teacher" in name for name in tensors(root, "toy_gan-one"))
    half_of(root, "toy_gan-one", "toy_gan-other-teacher")
    teacher = root / "teacher.safetensors"
    kept = teacher.read_bytes()
    other = {name: value + 1 for name, value in load_file(teacher).items()}
    from safetensors.torch import save_file

    save_file(other, teacher)
    try:
        with pytest.raises(DataError) as caught:
            resumed(root, "toy_gan", "toy_gan-other-teacher")
    finally:
        teacher.write_bytes(kept)
    assert caught.value.code == "data.other_weights"


def test_only_the_generator_has_an_average(root: Path) -> None:
    files = {name.split()[0] for name in tensors(root, "toy_gan-one")}
    assert files == {
        "critic.safetensors",
        "ema.safetensors",
        "means.safetensors",
        "model.safetensors",
    }


def test_tied_weights_are_saved_once(root: Path) -> None:
    names = [name for name in tensors(root, "toy_lm-one") if name.startswith("model.")]
    assert sum("embed.weight" in name or "project.weight" in name for name in names) == 1


def test_empty_micro_batch_of_one_rank_does_not_hang_the_other(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-empty-one", **empty_micro_batches(root)))
    assert losses(root, "toy_gan-empty") == pytest.approx(losses(root, "toy_gan-empty-one"))
    assert (root / "dropped-0").read_text() == "{'no_number': 1}"
    assert (root / "dropped-1").read_text() == "{'no_number': 1}"


def test_loss_of_one_rank_that_is_not_finite_changes_no_weight_on_any(root: Path) -> None:
    told = [(root / f"halted-{rank}").read_text().split() for rank in (0, 1)]
    assert told[0] == told[1]
    code, samples, moved = told[0]
    assert code == "data.loss_not_finite"
    assert "block-0-30" in samples
    assert moved == "[]"


def test_blocks_that_are_computed_again_give_the_same_weights(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-checkpointed", hparams__grad_checkpointing=True))
    assert_equal_runs(root, "toy_gan-one", "toy_gan-checkpointed")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_blocks_give_the_same_weights_to_rounding(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-compiled", hparams__torchcompile=True))
    assert_close_runs(root, "toy_gan-one", "toy_gan-compiled")


def test_images_are_written_at_checkpoints(root: Path) -> None:
    names = [path.name for path in sorted((root / "toy_gan-one" / "images").iterdir())]
    assert names == ["step_00000004_made.png", "step_00000008_made.png"]


def test_images_are_those_of_the_averaged_weights(root: Path) -> None:
    train(toy_config(root, "toy_gan", "toy_gan-plain", ema__enabled=False))
    averaged, plain = RunDir(root / "toy_gan-one"), RunDir(root / "toy_gan-plain")
    of_model = [one.checkpoint(STEPS) / "model.safetensors" for one in (averaged, plain)]
    images = [one.image(STEPS, "made") for one in (averaged, plain)]
    assert of_model[0].read_bytes() == of_model[1].read_bytes()
    assert images[0].read_bytes() != images[1].read_bytes()


def test_held_out_data_of_which_nothing_can_be_used_have_no_loss_and_are_told(
    root: Path, tmp_path: Path
) -> None:
    held_out = write_numbers(tmp_path / "held-out", (5,))
    rows = np.load(held_out / "block-0.npy")
    np.save(held_out / "block-0.npy", rows * np.nan)
    changes = {"data__val_folders": [str(held_out)], "total_val_samples": 5}
    told = Told()
    train(toy_config(root, "toy_lm", "toy_lm-val", **changes), reporter=told)
    rows_told = read_metrics(RunDir(root / "toy_lm-val").metrics)
    assert not any("val/loss" in row for row in rows_told)
    assert told.codes == ["data.dropped_samples"]


class Told(NullReporter):
    """Remembers the codes of warnings."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def warn(self, code: str, message: str) -> None:
        del message
        self.codes.append(code)
