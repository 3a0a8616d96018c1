"""The published training command of FUTURE-VLA, typed with its first words changed."""

import shlex
from typing import Any

import pytest
import yaml

from tests.builders.errors import fails
from tests.surface.invoke import run_vlatool
from vlatool.config.coerce import plain
from vlatool.config.includes import read_file
from vlatool.config.presets import builtin_root
from vlatool.config.resolve import Resolved, load_config, parse_override
from vlatool.training.config import TrainConfig

PUBLISHED = shlex.split("""
    --model Qwen3vl+dinov3 --train_type full --freeze_vit false --freeze_aligner false
    --freeze_llm false --trainable_parameters_regex ".*" --dataset A/data --torch_dtype bfloat16
    --num_train_epochs 2 --per_device_train_batch_size 8 --learning_rate 1e-4 --warmup_steps 1000
    --save_steps 5000 --logging_steps 100 --dataloader_num_workers 10 --output_dir out/vla
    --model_author me --model_name vla --ddp_find_unused_parameters true
    --gradient_checkpointing true --gradient_checkpointing_kwargs '{"use_reentrant": false}'
""")
# Values of the command and of the defaults that it relies on; reference/future-vla-model 3.2, 3.3.
VALUES: dict[str, Any] = {
    "model.type": "future_vla",
    "model.freeze_dino": True,
    "model.segment_weights.text": 1,
    "model.segment_weights.action": 1,
    "model.segment_weights.future": 1,
    "data.type": "vla",
    "data.num_workers": 10,
    "data.prefetch_factor": 10,
    "data.allow_multiple_epochs": True,
    "hparams.precision": "amp_bfloat16",
    "hparams.global_batch_size": 64,
    "hparams.per_gpu_batch_size": 8,
    "hparams.seed": 42,
    "hparams.lr": 1e-4,
    "hparams.lr_scheduler": "cosine",
    "hparams.warmup": 1000,
    "hparams.lr_cooldown_end": 0,
    "hparams.wd": 0.1,
    "hparams.decay_by_name": True,
    "hparams.beta1": 0.9,
    "hparams.beta2": 0.95,
    "hparams.eps": 1e-8,
    "hparams.grad_clip_norm": 1.0,
    "hparams.grad_checkpointing": True,
    "distributed.fsdp": True,
    "num_epochs": 2,
    "save_every_n_steps": 5000,
    "log_every_n_steps": 100,
}
# Keys of the preset that the command line does not have, and those that follow from its place.
OF_THE_COMMAND = {"data.samples", "init_from", "save_path", "name"}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return values


def resolved(*options: str) -> Resolved[TrainConfig]:
    """The configuration of options `key=value` of the published command."""
    return load_config(TrainConfig, overrides=[parse_override(option) for option in options])


def test_published_command_is_the_preset() -> None:
    preset = flat(
        load_config(TrainConfig, presets=["future-vla-libero"]).config.model_dump(mode="json")
    )
    assert {key: preset[key] for key in VALUES} == VALUES
    code, stdout = run_vlatool("resolve-config", *PUBLISHED)
    assert code == 0
    typed = flat(yaml.safe_load(stdout))
    differences = {key: value for key, value in typed.items() if preset.get(key) != value}
    assert differences.keys() == OF_THE_COMMAND
    assert differences["data.samples"] == ["A/data"]
    assert (differences["save_path"], differences["name"]) == ("out", "vla")


def test_every_value_of_the_preset_is_held() -> None:
    path = builtin_root() / "runs/future-vla-libero.yaml"
    assert flat(plain(read_file(path))).keys() == VALUES.keys()


def test_options_without_effect_have_a_reason() -> None:
    ignored = resolved("train_type=full", "model_name=vla").ignored
    assert ignored["model_name"].startswith("it names the model in")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["freeze_vit=true", "freeze_llm=true"], {"freeze_vision": True, "freeze_language": True}),
        (["freeze_vit=true", "trainable_parameters_regex=.*"], {"freeze_vision": False}),
        (["train_type=lora"], {"freeze_vision": True, "freeze_mergers": True}),
        (["train_type=lora", "freeze_vit=false"], {"freeze_vision": False}),
        (["train_type=lora", "model.lora.rank=4"], {"freeze_mergers": True}),
    ],
)
def test_trained_parts_of_the_published_options(
    options: list[str], expected: dict[str, bool]
) -> None:
    model = resolved("train_type=full", *options).config.model.model_dump()
    assert {key: model[key] for key in expected} == expected


def test_checkpoint_to_resume_from_replaces_the_model() -> None:
    config = resolved("train_type=full", "model=composed", "resume_from_checkpoint=c").config
    assert (config.init_from, config.init_weights_only) == ("c", False)


@pytest.mark.parametrize(
    "option",
    ["train_type=longlora", "torch_dtype=float16", "trainable_parameters_regex=visual"],
)
def test_option_that_contradicts_what_runs_is_an_error(option: str) -> None:
    with fails("config.unsupported"):
        resolved("train_type=full", option) if "train_type" not in option else resolved(option)
