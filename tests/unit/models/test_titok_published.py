"""Published configurations of TiTok models and of their training."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders.errors import fails
from vlatool.config.resolve import load_config, parse_override
from vlatool.errors import ConfigError
from vlatool.models.titok.config import TitokConfig, VqConfig
from vlatool.models.titok.published import published_keys, published_tree
from vlatool.training.config import TrainConfig
from vlatool.training.plan import learning_rate

VQ_MODEL: dict[str, Any] = {
    "codebook_size": 4096,
    "token_size": 12,
    "use_l2_norm": True,
    "commitment_cost": 0.0,
    "vit_enc_model_size": "large",
    "vit_dec_model_size": "large",
    "vit_enc_patch_size": 16,
    "vit_dec_patch_size": 16,
    "num_latent_tokens": 32,
    "finetune_decoder": True,
    "pretrained_tokenizer_weight": "maskgit-vqgan-imagenet-f16-256.bin",
}
STAGE_2: dict[str, Any] = {
    "experiment": {
        "project": "titok",
        "name": "second",
        "output_dir": "out/titok_l32_stage2_run1",
        "max_train_examples": 100_000_000_000,
        "save_every": 50_000,
        "eval_every": 25_000,
        "generate_every": 5_000,
        "log_every": 50,
        "resume": True,
        "init_weight": "titok_l32_stage1_run1/pytorch_model.bin",
    },
    "model": {"vq_model": VQ_MODEL},
    "losses": {
        "quantizer_weight": 0.0,
        "discriminator_start": 20_000,
        "discriminator_factor": 1.0,
        "discriminator_weight": 0.01,
        "perceptual_loss": "convnext_s",
        "perceptual_weight": 0.1,
        "reconstruction_loss": "l2",
        "reconstruction_weight": 1.0,
        "lecam_regularization_weight": 0.001,
    },
    "dataset": {
        "params": {
            "train_shards_path_or_url": "train_files.txt",
            "eval_shards_path_or_url": ["val_files.txt"],
            "num_workers_per_gpu": 12,
            "pretokenization": "webdataset",
        },
        "preprocessing": {
            "resize_shorter_edge": 256, "crop_size": 256, "random_crop": True, "random_flip": True,
        },
    },
    "optimizer": {
        "name": "adamw",
        "params": {
            "learning_rate": 1e-4, "discriminator_learning_rate": 1e-4, "beta1": 0.9,
            "beta2": 0.999, "weight_decay": 1e-4, "epsilon": 1e-8,
        },
    },
    "lr_scheduler": {
        "scheduler": "cosine",
        "params": {"learning_rate": 1e-4, "warmup_steps": 5_000, "end_lr": 1e-5},
    },
    "training": {
        "gradient_accumulation_steps": 1, "per_gpu_batch_size": 32, "mixed_precision": "fp16",
        "enable_tf32": True, "use_ema": True, "seed": 42, "max_train_steps": 500_000,
        "max_grad_norm": 1.0,
    },
}  # fmt: skip


def titok(tree: dict[str, Any]) -> TitokConfig:
    return TitokConfig.model_validate(published_keys(tree))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (2, "legacy", "proxy", "vq", 12)),
        ({"finetune_decoder": False}, (1, "legacy", "proxy", "vq", 12)),
        (
            {"is_legacy": False, "quantize_mode": "vae", "token_size": 16},
            (1, "aligned", "pixel", "kl", 16),
        ),
    ],
    ids=["two stages", "stage 1", "one stage"],
)
def test_switches_decide_stage_layout_and_head(
    changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    section = {key: value for key, value in VQ_MODEL.items() if key != "finetune_decoder"}
    config = titok({"model": {"vq_model": {**section, **changes}}})
    quantizer = config.quantizer
    actual = config.stage, config.latent_layout, config.decoder_head
    assert (*actual, quantizer.type, quantizer.token_size) == expected


def test_references_outside_the_section_are_ignored() -> None:
    tree = {
        "model": {"vq_model": VQ_MODEL},
        "experiment": {"init_weight": "${experiment.output_dir}/x"},
    }

    assert titok(tree) == titok({"model": {"vq_model": VQ_MODEL}})


def test_configuration_without_a_tokenizer_raises_an_error() -> None:
    with fails("config.missing_key"):
        published_keys({"model": {"generator": {}}})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"stage": 2, "encoder": "small", "decoder": "base", "num_latent_tokens": 128},
        {"encoder": {"hidden_dim": 64, "n_layers": 2, "n_heads": 2}},
        {"vqgan": {"hidden_channels": 32}},
        {
            "decoder_head": "pixel",
            "latent_layout": "aligned",
            "quantizer": {"type": "kl", "token_size": 16},
        },
    ],
)
def test_written_configuration_is_read_unchanged(keys: dict[str, Any]) -> None:
    config = TitokConfig.model_validate({"image_size": 256, **keys})

    assert titok(published_tree(config)) == config


def test_published_stage_file_is_a_run(tmp_path: Path) -> None:
    config, ignored = run_of(tmp_path)
    model, h = config.model, config.hparams

    assert isinstance(model, TitokConfig)
    assert isinstance(model.quantizer, VqConfig)
    assert (model.stage, model.num_latent_tokens, model.quantizer.commitment_cost) == (2, 32, 0.0)
    assert (model.losses.discriminator_start, model.losses.quantizer_weight) == (20_000, 0.0)
    assert model.losses.discriminator_learning_rate == 1e-4
    assert (h.global_batch_size, h.per_gpu_batch_size) == (256, 32)
    assert (h.lr, h.lr_cooldown_end, h.warmup, h.beta2, h.wd) == (1e-4, 1e-5, 5_000, 0.999, 1e-4)
    assert (config.save_path, config.name) == ("out", "titok_l32_stage2_run1")
    assert (config.ema.enabled, config.ema.type, config.ema.max_value) == (True, "rising", 0.999)
    assert config.total_train_steps == 500_000
    assert config.data.model_dump()["shards"] == ["train_files.txt"]
    assert config.data.model_dump()["val_shards"] == ["val_files.txt"]
    assert config.val_every_n_steps == 25_000
    assert sorted(ignored) == [
        "dataset.params.pretokenization",
        "experiment.max_train_examples",
        "experiment.name",
        "experiment.project",
        "optimizer.params.epsilon",
    ]


def run_of(folder: Path, *overrides: str) -> tuple[TrainConfig, tuple[str, ...]]:
    """Returns the config of the stage file with overrides, and the unknown keys."""
    path = folder / "stage2.yaml"
    path.write_text(yaml.safe_dump(STAGE_2))
    parsed = [parse_override(text) for text in overrides]
    resolved = load_config(TrainConfig, files=[str(path)], overrides=parsed)
    return resolved.config, resolved.unknown_keys


def test_published_overrides_win_over_the_file(tmp_path: Path) -> None:
    config, ignored = run_of(
        tmp_path, "experiment.output_dir=elsewhere/run", "experiment.project=mine",
        "model.vq_model.num_latent_tokens=64", "hparams.lr=3e-4",
        "training.gradient_accumulation_steps=2",
    )  # fmt: skip

    assert isinstance(config.model, TitokConfig)
    assert (config.save_path, config.name) == ("elsewhere", "run")
    assert (config.model.num_latent_tokens, config.model.stage) == (64, 2)
    assert config.hparams.lr == 3e-4
    assert ignored.count("experiment.project") == 1
    assert (config.hparams.global_batch_size, config.hparams.per_gpu_batch_size) == (512, 32)


def test_published_override_of_a_preset_keeps_its_stage() -> None:
    overrides = [parse_override("model.vq_model.pretrained_tokenizer_weight=runs/vqgan")]
    config = load_config(TrainConfig, presets=["titok-tiny-stage1"], overrides=overrides).config

    assert isinstance(config.model, TitokConfig)
    assert (config.model.stage, config.model.teacher) == (1, "runs/vqgan")


@pytest.mark.parametrize(
    "override",
    [
        "training.mixed_precision=fp8",
        "lr_scheduler.scheduler=step",
        "training.per_gpu_batch_size=many",
        "model.vq_model.codebook_size=none",
    ],
)
def test_published_value_without_a_meaning_raises_an_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        run_of(tmp_path, override)


@pytest.mark.parametrize(
    "override",
    [
        "losses.reconstruction_loss=l1",
        "optimizer.name=sgd",
        "training.enable_tf32=False",
        "experiment.resume=False",
        "model.vq_model.vit_dec_patch_size=8",
        "model.vq_model.quantize_mode=fsq",
    ],
)
def test_published_value_that_contradicts_what_runs_is_refused_by_name(
    tmp_path: Path, override: str
) -> None:
    with fails("config.unsupported") as error:
        run_of(tmp_path, override)
    (problem,) = error.value.details["problems"]
    assert problem["key"] == override.partition("=")[0]
    assert problem["origin"].startswith("command line")


def test_all_contradictions_of_a_file_are_reported_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "stage.yaml"
    path.write_text("optimizer:\n  name: sgd\nlosses:\n  reconstruction_loss: l1\n")
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, files=[str(path)])

    lines = {problem["key"]: problem["origin"] for problem in error.value.details["problems"]}
    assert lines.keys() == {"optimizer.name", "losses.reconstruction_loss"}
    assert lines["optimizer.name"].endswith("stage.yaml:2")


@pytest.mark.parametrize("key", ["vit_dec_patch_size", "quantize_mode"])
def test_tokenizer_of_another_kind_is_refused_by_name(key: str) -> None:
    with fails("config.unsupported") as error:
        titok({"model": {"vq_model": {**VQ_MODEL, key: 8}}})
    assert f"model.vq_model.{key}" in error.value.message


def test_end_rate_is_scaled_like_the_peak_rate(tmp_path: Path) -> None:
    """The published schedule divides the end rate by a peak rate of its own."""
    assert run_of(tmp_path)[0].hparams.lr_cooldown_end == 1e-5
    config, _ = run_of(tmp_path, "optimizer.params.learning_rate=2e-4")

    assert (config.hparams.lr, config.hparams.lr_cooldown_end) == (2e-4, 2e-5)


def test_default_configuration_is_that_of_the_published_file() -> None:
    """Stage 1 of L-32, except for the values of a run."""
    section = {**VQ_MODEL, "finetune_decoder": False, "commitment_cost": 0.25}
    config = titok({"model": {"vq_model": section}})
    changes = {"teacher": None}

    assert config.model_copy(update=changes) == load_config(TitokConfig).config


@pytest.mark.parametrize(
    ("updates", "rate"),
    [(5_000, 5.0e-5), (10_000, 1.0e-4), (500_000, 5.57e-5), (1_000_000, 1.0e-5)],
)
@pytest.mark.parametrize("size", ["s128", "b64", "l32"])
def test_learning_rates_of_stage_1_are_the_published_ones(
    size: str, updates: int, rate: float
) -> None:
    config = load_config(TrainConfig, presets=[f"titok-{size}-stage1"]).config
    assert config.total_train_steps is not None
    result = learning_rate(config.hparams, updates - 1, config.total_train_steps)
    assert result == pytest.approx(rate, rel=1e-3)
