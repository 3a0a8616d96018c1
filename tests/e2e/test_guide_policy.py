"""The policy guide's commands on small data: two processes, data and weights in a bucket."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.base_models import clip_base
from tests.builders.forks import Forks, Outcome
from tests.builders.s3_server import S3Server
from vlatool.checkpoints.layout import RunDir, read_metrics

PRESET = "diffusion-policy-bellpepper-published"
# The published job with its four cameras and all fields, but few and narrow layers.
SMALLER = {
    "model.transformer.hidden_dim": 32,
    "model.transformer.n_layers": 1,
    "model.transformer.n_heads": 2,
    "model.transformer.vocab_size": 16,
    "data.augmentation.image.crop.shape": "40,40",
    "data.num_workers": 0,
    "hparams.global_batch_size": 8,
    "hparams.per_gpu_batch_size": 2,
    "log_every_n_steps": 1,
}
# No weight changes.
STILL = {"hparams.lr": 0, "hparams.lr_cooldown_end": 0}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Lab:
    """A working folder, and a bucket with training data.

    Attributes:
        folder: Folder with `clip` and the runs.
        bucket: Bucket with `data`.
        env: Environment variables of commands.
        forks: Runner of commands.
    """

    folder: Path
    bucket: str
    env: dict[str, str]
    forks: Forks

    def vlatool(self, *arguments: object) -> Outcome:
        """Runs a command to its successful end."""
        words = [str(argument) for argument in arguments]
        done = self.forks.run(words, seconds=300, environment=self.env, folder=self.folder)
        assert done.code == 0, done.stderr
        return done

    def job(self, samples: int, **more: object) -> list[str]:
        """Arguments of the training job, for all commands that take them."""
        base = {"model.vision_language_backbone.hf_pretrained": "clip"}
        keys = [f"{key}={value}" for key, value in {**base, **SMALLER, **more}.items()]
        data = ["--preset", PRESET, "--nproc", "2", "--data", f"{self.bucket}/data"]
        budget = ["--num_checkpoints", "2", "--total_train_samples", str(samples)]
        return [*data, *budget, *keys]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, s3: S3Server, warm: Forks) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tmp").mkdir()
    env = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    result = Lab(folder, f"s3://{s3.bucket()}", {**s3.env, **env}, warm)
    clip_base(folder / "clip", max_position_embeddings=40)
    result.vlatool(
        "sample", "spartan", "raw", "--episodes", "2", "--frames", "20", "--cameras", "4"
    )
    windows = ["--preset", "lbm-1past-14future", "--resize-images-size", "48,48"]
    result.vlatool("preprocess", "spartan", "raw", *windows, "--output", f"{result.bucket}/data")
    return result


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Outcome:
    """Outcome of the training from the published preset."""
    return lab.vlatool("--json", "train", *lab.job(32), "--output", "runs/first")


@pytest.fixture(scope="module")
def run(lab: Lab, trained: Outcome) -> RunDir:
    """A run trained from the published preset."""
    assert trained.code == 0
    return RunDir(lab.folder / "runs/first")


@pytest.fixture(scope="module")
def stored(lab: Lab, run: RunDir, s3: S3Server) -> str:
    """A copy of the run in the bucket."""
    bucket = lab.bucket.removeprefix("s3://")
    for path in filter(Path.is_file, run.root.rglob("*")):
        key = f"run/{path.relative_to(run.root).as_posix()}"
        s3.client().upload_file(str(path), bucket, key)
    return f"{lab.bucket}/run"


def test_published_preset_trains_and_writes_the_configured_checkpoints(run: RunDir) -> None:
    assert [step for step, _ in run.checkpoints()] == [2, 4]


def test_two_ranks_write_one_run_and_one_document(lab: Lab, trained: Outcome, run: RunDir) -> None:
    result = trained.document
    assert (result["steps"], result["samples"]) == (4, 32)
    assert [row["step"] for row in read_metrics(run.metrics) if "loss" in row] == [1, 2, 3, 4]
    (shown,) = [line for line in trained.stderr.splitlines() if "-m vlatool" in line]
    assert "torchrun --standalone" in shown
    assert "--nproc " not in shown
    config = (run.root / "config.yaml").read_text()
    assert "nproc" not in config
    assert "world_size: 2" in config
    left = [path.name for path in (lab.folder / "tmp").iterdir()]
    assert [name for name in left if name.startswith(("vlatool", "torchelastic"))] == []


def test_resolve_config_with_the_same_arguments_writes_the_config_of_the_run(
    lab: Lab, run: RunDir
) -> None:
    lab.vlatool("resolve-config", *lab.job(32), "--resolve_configs_path", "resolved")
    arguments = ["--config", "resolved/resolved_config.yaml", "--output", run.root]
    assert lab.vlatool("--json", "train", *arguments).document["status"] == "already complete"


def test_run_in_the_bucket_is_evaluated_on_data_in_the_bucket(lab: Lab, stored: str) -> None:
    arguments = ["eval", "open-loop", stored, f"{lab.bucket}/data", "--output", "errors"]
    assert len(lab.vlatool("--json", *arguments).document["fields"]) == 6


def test_finetuning_from_the_bucket_starts_with_its_weights(
    lab: Lab, run: RunDir, stored: str
) -> None:
    arguments = [*lab.job(8, **STILL), "--output", "runs/tuned"]
    lab.vlatool("finetune", "--from", stored, *arguments)

    before = load_file(run.checkpoint(4) / "model.safetensors")
    after = load_file(RunDir(lab.folder / "runs/tuned").checkpoint(1) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
